// SPDX-License-Identifier: MIT
// churn PER_SECOND SECONDS: starts processes named "churnagent" that live for a second, each with
// threads that come and go and steps under names out of many.
#include "agenttop_step.h"
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define STEPS	20
#define NAMES	40
#define THREADS	3

static long number;

static void pause_ms(long ms)
{
	struct timespec t = { ms / 1000, ms % 1000 * 1000000 };

	clock_nanosleep(CLOCK_MONOTONIC, 0, &t, 0);
}

static void *work(void *arg)
{
	long which = (long)arg;

	/* The later ones start later, and end sooner. */
	pause_ms(50 * which);
	for (long i = 0; i < STEPS; i++) {
		struct agenttop_step_context context = AGENTTOP_STEP_CONTEXT("");

		snprintf(context.name, sizeof(context.name), "step-%ld",
			 (number + which + i / 4) % NAMES);
		agenttop_step(1 + i, AGENTTOP_CLASS_NORMAL, 0, &context);
		pause_ms(40 - 10 * which);
	}
	agenttop_step_end();
	return 0;
}

static void agent(void)
{
	pthread_t threads[THREADS];
	long i, n = 0;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_NAME, "churnagent");
	for (i = 1; i <= THREADS; i++)
		n += !pthread_create(&threads[n], 0, work, (void *)i);
	work(0);
	for (i = 0; i < n; i++)
		pthread_join(threads[i], 0);
	_exit(0);
}

int main(int argc, char **argv)
{
	long rate = argc > 2 ? atol(argv[1]) : 0, left = argc > 2 ? rate * atol(argv[2]) : 0;
	struct timespec t;

	if (rate < 1)
		return 2;
	signal(SIGCHLD, SIG_IGN);
	clock_gettime(CLOCK_MONOTONIC, &t);
	for (; number < left; number++) {
		if (!fork())
			agent();
		t.tv_nsec += 1000000000 / rate;
		if (t.tv_nsec >= 1000000000) {
			t.tv_nsec -= 1000000000;
			t.tv_sec++;
		}
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, 0);
	}
	return 0;
}
