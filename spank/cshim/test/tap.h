/*
 * tap.h - the tests of the C parts: one program per file of the plugin, each
 * check one line of TAP. They need neither root nor Slurm: slurm/ holds the few
 * declarations that the plugin uses, stub.c answers for SPANK.
 */
#ifndef CARME_TAP_H
#define CARME_TAP_H

#include <stdio.h>

static int tap_count, tap_failures;

static inline int tap_line(int good, const char *name, const char *file,
			   int line)
{
	tap_count++;
	tap_failures += !good;
	printf("%sok %d - %s\n", good ? "" : "not ", tap_count, name);
	if (!good)
		printf("# at %s:%d\n", file, line);
	fflush(stdout);
	return good;
}

static inline void tap_skip(const char *name, const char *why)
{
	printf("ok %d - %s # SKIP %s\n", ++tap_count, name, why);
}

static inline int tap_end(void)
{
	printf("1..%d\n", tap_count);
	return tap_failures != 0;
}

#define ok(condition, name) tap_line(!!(condition), name, __FILE__, __LINE__)

#endif
