/*
 * Step markers as nobody who means well would send them: from many threads
 * and processes, with random arguments, bad pointers and ever new names.
 *
 *	step_fuzz SECONDS
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
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
			how &= 0x303;
		if (rnd(&state) % 4)
			deadline >>= 20 + rnd(&state) % 40;
		prctl(AGENTTOP_STEP, id, how, deadline, pointer(&state, &own));
		if (!(rnd(&state) % 16))
			nanosleep(&nap, NULL);
	}
	return NULL;
}

static void fork_and_send(unsigned long seed)
{
	while (time(NULL) < end) {
		if (!fork()) {
			pthread_t threads[THREADS];

			for (unsigned long i = 0; i < THREADS; i++)
				pthread_create(&threads[i], NULL, send, (void *)(seed * THREADS + i + 1));
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

	for (long i = 0; i < NAMES || time(NULL) < end; i++) {
		snprintf(own.name, sizeof(own.name), "name %ld", i % NAMES);
		agenttop_step(i + 1, AGENTTOP_CLASS_BATCH, 1, &own);
	}
	while (wait(NULL) > 0)
		;
	/* Stay, so that the last of it can be looked at. */
	puts("done");
	fflush(stdout);
	getchar();
	return 0;
}
