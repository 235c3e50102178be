// SPDX-License-Identifier: MIT
// agents COUNT PER_SECOND SECONDS: COUNT processes named "benchagent" that each wait in
// clock_nanosleep PER_SECOND times a second, cheaply.
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	long count = argc > 3 ? atol(argv[1]) : 0, rate = argc > 3 ? atol(argv[2]) : 0;
	long steps = argc > 3 ? rate * atol(argv[3]) : 0;

	if (count < 1 || rate < 1)
		return 2;
	for (long i = 0; i < count; i++) {
		struct timespec t;

		if (fork())
			continue;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		prctl(PR_SET_NAME, "benchagent");
		clock_gettime(CLOCK_MONOTONIC, &t);
		for (long n = 0; n < steps; n++) {
			t.tv_nsec += 1000000000 / rate;
			if (t.tv_nsec >= 1000000000) {
				t.tv_nsec -= 1000000000;
				t.tv_sec++;
			}
			clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, 0);
		}
		_exit(0);
	}
	while (wait(0) > 0)
		;
	return 0;
}
