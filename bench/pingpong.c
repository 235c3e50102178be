// SPDX-License-Identifier: MIT
// Two processes on one CPU pass a byte back and forth through pipes.
// pingpong ROUNDS CPU: says READY PID, waits for a line, prints ns per round trip.
#define _GNU_SOURCE
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

int main(int argc, char **argv)
{
	long rounds = argc > 2 ? atol(argv[1]) : 0;
	int there[2], back[2];
	cpu_set_t set;
	char byte = 0;
	uint64_t start = 0;
	pid_t child;

	if (rounds < 1 || pipe(there) || pipe(back))
		return 2;
	CPU_ZERO(&set);
	CPU_SET(atoi(argv[2]), &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		return 2;
	printf("READY %d\n", getpid());
	fflush(stdout);
	if (read(0, &byte, 1) != 1)
		return 2;
	child = fork();
	if (!child) {
		close(there[1]);
		while (read(there[0], &byte, 1) == 1 && write(back[1], &byte, 1) == 1)
			;
		_exit(0);
	}
	for (long i = -1000; i < rounds; i++) {
		if (!i)
			start = now();
		if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
			return 2;
	}
	printf("%.2f\n", (double)(now() - start) / rounds);
	close(there[1]);
	waitpid(child, 0, 0);
	return 0;
}
