/*
 * Step markers as nobody who means well would send them: from many threads
 * and processes, with random arguments, bad pointers and ever new names; and
 * io_uring requests with any user_data.
 *
 *	step_fuzz SECONDS
 */
#include <linux/io_uring.h>
#include <linux/time_types.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "agenttop_step.h"

#define FORKERS 24
#define THREADS 4
#define NAMES 100000

static time_t end;
static char *pages;		/* readable, then a hole, then one that is not readable */
static long page;

static unsigned long rnd(unsigned long *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static unsigned long pointer(unsigned long *state, struct agenttop_step_context *own)
{
	switch (rnd(state) % 10) {
	case 0:
		return 0;
	case 1:
		return 1;
	case 2:
		return 0xffffffff81000000UL;	/* the kernel's text */
	case 3:
		return 0xffff888000000000UL;	/* its memory */
	case 4:
		return 0x8000000000000000UL;	/* no address at all */
	case 5:
		return (unsigned long)pages + page - rnd(state) % 64;	/* over the edge */
	case 6:
		return (unsigned long)pages + 2 * page;
	case 7:
		own->size = rnd(state) >> (rnd(state) % 64);
		break;
	default:
		own->size = sizeof(*own);
	}
	own->budget_ns = rnd(state) >> (rnd(state) % 64);
	for (unsigned i = 0; i < sizeof(own->name); i++)
		own->name[i] = rnd(state);
	if (rnd(state) % 2)
		snprintf(own->name, sizeof(own->name), "%lu", rnd(state) % NAMES);
	return (unsigned long)own;
}

static void *send(void *seed)
{
	unsigned long state = (unsigned long)seed * 2654435761UL + 88172645463325252UL;
	struct agenttop_step_context own;

	for (int i = 0; i < 20000 && time(NULL) < end; i++) {
		unsigned long id = rnd(&state), how = rnd(&state), deadline = rnd(&state);
		struct timespec nap = { 0, 1000 };

		if (rnd(&state) % 4)
			how &= 0x703;
		if (rnd(&state) % 2)
			id &= 0x1ffff;
		if (rnd(&state) % 4)
			deadline >>= 20 + rnd(&state) % 40;
		prctl(AGENTTOP_STEP, id, how, deadline, pointer(&state, &own));
		if (!(rnd(&state) % 16))
			nanosleep(&nap, NULL);
	}
	return NULL;
}

static unsigned long any_user_data(unsigned long *state)
{
	unsigned long data = rnd(state);

	if (rnd(state) % 4)
		data = data >> 16 | (unsigned long)AGENTTOP_URING_MAGIC << 48;
	return rnd(state) % 4 ? data & 0xffff00ffffffffffUL : data;
}

struct ring {
	int fd;
	unsigned *sq_tail, *cq_head, *cq_tail, *array, mask;
	struct io_uring_sqe *sqes;
};

static int ring_open(struct ring *r)
{
	struct io_uring_params p = { 0 };
	char *memory;

	r->fd = syscall(SYS_io_uring_setup, 8, &p);
	if (r->fd < 0)
		return -1;
	memory = mmap(NULL, p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe),
		      PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, IORING_OFF_SQ_RING);
	r->sqes = mmap(NULL, p.sq_entries * sizeof(*r->sqes), PROT_READ | PROT_WRITE, MAP_SHARED,
		       r->fd, IORING_OFF_SQES);
	r->sq_tail = (unsigned *)(memory + p.sq_off.tail);
	r->cq_head = (unsigned *)(memory + p.cq_off.head);
	r->cq_tail = (unsigned *)(memory + p.cq_off.tail);
	r->array = (unsigned *)(memory + p.sq_off.array);
	r->mask = p.sq_entries - 1;
	return 0;
}

/* A request that completes at once, or one that is waited for, or is left on its way. */
static void ask(struct ring *r, unsigned long *state)
{
	static const struct __kernel_timespec soon = { 0, 20000 }, never = { 1000, 0 };
	unsigned at = *r->sq_tail & r->mask, left = !(rnd(state) % 64);
	struct io_uring_sqe *sqe = &r->sqes[at];

	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = left || rnd(state) % 3 ? IORING_OP_TIMEOUT : IORING_OP_NOP;
	sqe->fd = -1;
	sqe->addr = sqe->opcode == IORING_OP_NOP ? 0 : (unsigned long)(left ? &never : &soon);
	sqe->len = sqe->addr ? 1 : 0;
	sqe->user_data = any_user_data(state);
	r->array[at] = at;
	__atomic_store_n(r->sq_tail, *r->sq_tail + 1, __ATOMIC_RELEASE);
	syscall(SYS_io_uring_enter, r->fd, 1, !left, IORING_ENTER_GETEVENTS, NULL, 0);
	__atomic_store_n(r->cq_head, *r->cq_tail, __ATOMIC_RELEASE);
}

/* From threads of their own: agents by their markers, while there is room for more. */
static void *ask_and_tell(void *seed)
{
	unsigned long state = (unsigned long)seed * 2654435761UL + 88172645463325252UL;
	struct agenttop_step_context own;
	struct ring r;

	if (ring_open(&r))
		return NULL;
	for (int i = 0; i < 20000 && time(NULL) < end; i++) {
		if (!(rnd(&state) % 4))
			prctl(AGENTTOP_STEP, rnd(&state) % 70000, AGENTTOP_STEP_URING | rnd(&state) % 5,
			      rnd(&state) >> (rnd(&state) % 64), pointer(&state, &own));
		ask(&r, &state);
	}
	close(r.fd);
	return NULL;
}

static void fork_and_send(unsigned long seed)
{
	while (time(NULL) < end) {
		if (!fork()) {
			pthread_t threads[THREADS];

			for (unsigned long i = 0; i < THREADS; i++)
				pthread_create(&threads[i], NULL, i ? send : ask_and_tell,
					       (void *)(seed * THREADS + i + 1));
			for (int i = 0; i < THREADS; i++)
				pthread_join(threads[i], NULL);
			_exit(0);
		}
		seed += FORKERS;
		wait(NULL);
	}
	_exit(0);
}

int main(int argc, char **argv)
{
	page = sysconf(_SC_PAGESIZE);
	pages = mmap(NULL, 3 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(pages, 'x', page);
	munmap(pages + page, page);
	mprotect(pages + 2 * page, page, PROT_NONE);
	/* This one gets a slot before all are taken. */
	agenttop_step_end();
	puts("ready");
	fflush(stdout);
	getchar();
	end = time(NULL) + (argc > 1 ? atoi(argv[1]) : 3);
	for (unsigned long i = 0; i < FORKERS; i++)
		if (!fork())
			fork_and_send(i);
	/* One thread with more names than anybody has. */
	struct agenttop_step_context own = { sizeof(own), 0, "" };
	unsigned long state = 88172645463325252UL;
	struct ring r;
	int ring = !ring_open(&r);

	for (long i = 0; i < NAMES || time(NULL) < end; i++) {
		snprintf(own.name, sizeof(own.name), "name %ld", i % NAMES);
		agenttop_step(i + 1, AGENTTOP_CLASS_BATCH, 1, &own);
		agenttop_step(i % 65535 + 1, AGENTTOP_STEP_URING, 1, &own);
		if (ring && !(i % 16))
			ask(&r, &state);
	}
	while (wait(NULL) > 0)
		;
	/* Stay, so that the last of it can be looked at. */
	puts("done");
	fflush(stdout);
	getchar();
	return 0;
}
