/* SPDX-License-Identifier: MIT */
/*
 * Step markers: how a thread tells agenttop what it is doing.
 *
 *	prctl(AGENTTOP_STEP, step_id, class | flags, deadline_ns, context)
 *
 * There is no such prctl: the call answers EINVAL, on purpose, and agenttop
 * sees it in the kernel. Where no agenttop runs it costs a system call and
 * does nothing. It needs no privileges.
 *
 * step_id	the caller's number for the step; 0 ends the context
 * class	one of AGENTTOP_CLASS_*
 * flags	AGENTTOP_STEP_PAUSE, AGENTTOP_STEP_RESUME
 * deadline_ns	when the step should be over, CLOCK_MONOTONIC; 0: no deadline
 * context	NULL, or a struct agenttop_step_context
 *
 * A context lasts from its marker to the thread's next one or to the thread's
 * end. Then it is judged: a deadline that has passed counts as missed (per
 * class), time on a CPU beyond the budget as an overrun.
 *
 * Who switches between contexts on one thread (an event loop) passes PAUSE
 * with the next marker: the context before is set aside, not over; and RESUME
 * with the marker of a context that was set aside. The kernel does not
 * remember it: the marker says all of it again, and budget_ns is what is left.
 *
 * A step (from one gate to the next) belongs to the name that held when it
 * was entered, or, where none held, to the one resumed first after its
 * wake-up. At most 16 names for each agent; the rest is counted together.
 *
 * io_uring: with AGENTTOP_STEP_URING the marker says what requests are whose
 * user_data agenttop_uring_user_data() made of the same number (step_id, 1 to
 * 65535), and nothing of its thread. Each such request of the process is a
 * context of its own, without a further call: it begins with its submission
 * and ends with its completion, and deadline_ns is how long that may take.
 * The step that the completion ends is one of that name, if it has none yet.
 * Say it again now and then, as every second: agenttop may have come since.
 * An agent has room for some 30 at least; what was told longest ago goes first.
 *
 * The first marker of a thread that is no agent's makes it an agent.
 */
#ifndef AGENTTOP_STEP_H
#define AGENTTOP_STEP_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>

#define AGENTTOP_STEP			0x41475354	/* "AGST" */

#define AGENTTOP_CLASS_NONE		0
#define AGENTTOP_CLASS_INTERACTIVE	1	/* somebody waits for it */
#define AGENTTOP_CLASS_NORMAL		2
#define AGENTTOP_CLASS_BATCH		3	/* nobody does */

#define AGENTTOP_STEP_PAUSE		0x100	/* the context before is set aside */
#define AGENTTOP_STEP_RESUME		0x200	/* this one was set aside */

#define AGENTTOP_STEP_URING		0x400	/* tells what io_uring requests are */

#define AGENTTOP_URING_MAGIC		0x4147	/* "AG", the upper 16 bits of their user_data */

#define AGENTTOP_STEP_NAME		32

struct agenttop_step_context {
	uint64_t size;			/* sizeof(struct agenttop_step_context) */
	uint64_t budget_ns;		/* time on a CPU; 0: no budget */
	char name[AGENTTOP_STEP_NAME];	/* NULs to its end; empty: no name */
};

#define AGENTTOP_STEP_CONTEXT(name)					\
	{ sizeof(struct agenttop_step_context), 0, name }

static inline void agenttop_step(uint64_t step_id, unsigned long how,
				 uint64_t deadline_ns,
				 const struct agenttop_step_context *context)
{
	(void)prctl(AGENTTOP_STEP, (unsigned long)step_id, how,
		    (unsigned long)deadline_ns, (unsigned long)context);
}

static inline void agenttop_step_end(void)
{
	(void)prctl(AGENTTOP_STEP, 0UL, 0UL, 0UL, 0UL);
}

/* @own: 32 bits for the caller. */
static inline uint64_t agenttop_uring_user_data(uint16_t number, uint32_t own)
{
	return (uint64_t)AGENTTOP_URING_MAGIC << 48 | (uint64_t)number << 32 | own;
}

#endif /* AGENTTOP_STEP_H */
