/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * A counter that goes on, on another machine: the parent of `make simple-fork`.
 *
 *   cc -I include -I ../../kmod-glue/uapi counter.c -lmitosis_fork -o counter
 *   ./counter                          prints how to resume it, and stays until its input ends
 *   mitosis resume GID ID.GENERATION   on the other machine: counts on from there
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mitosis_fork.h"

static volatile sig_atomic_t stop;

static void on_signal(int signal)
{
	(void)signal;
	stop = 1;
}

static void count(const char *who, unsigned long *counter, int steps)
{
	while (!stop && steps--) {
		char host[64] = "";

		gethostname(host, sizeof(host) - 1);
		printf("%s on %s, pid %d: counter %lu\n", who, host, (int)getpid(),
		       (*counter)++);
		fflush(stdout);
		if (steps)
			sleep(1);
	}
}

int main(int argc, char **argv)
{
	const int steps = argc > 1 ? atoi(argv[1]) : 5;
	unsigned long *counter = malloc(sizeof(*counter));
	struct mitosis_seed seed;
	char who[32] = "parent";
	int i;

	if (!counter || steps < 1) {
		fprintf(stderr, "usage: %s [STEPS]\n", argv[0]);
		return 2;
	}
	*counter = 0;
	signal(SIGINT, on_signal);
	signal(SIGTERM, on_signal);
	count(who, counter, steps);

	switch (mitosis_prepare(NULL, &seed)) {
	case 0:
		break;
	case 1:
		snprintf(who, sizeof(who), "child %u", seed.child);
		count(who, counter, steps);
		free(counter);
		return 0;
	default:
		fprintf(stderr, "%s: %s\n", argv[0], mitosis_error());
		return 1;
	}
	printf("prepared: seed=%u.%u capability=", seed.id.id, seed.id.generation);
	for (i = 0; i < 16; i++)
		printf("%02x", seed.capability.bytes[i]);
	printf("\n");
	fflush(stdout);
	/* The seed has its own counter: what happens to this one is no concern of the children's. */
	*counter = 1000000;
	while (!stop && getchar() != EOF)
		;
	if (mitosis_unprepare(&seed)) {
		fprintf(stderr, "%s: %s\n", argv[0], mitosis_error());
		return 1;
	}
	free(counter);
	return 0;
}
