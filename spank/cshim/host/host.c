/*
 * carme-host: opens libcarme.so, the Go core, and makes one call. The plugin
 * and the command line tools start it where Go must not live themselves
 * (docs/adr/0001). Its arguments are constant words, never user text:
 *
 *   carme-host setup   request on fd 3, result on fd 4, anchor on fd 5, and
 *                      Slurm's mount namespace of the job on fd 6, if any
 *   carme-host check   request on fd 3; errors and lists on the terminal
 */
#include <dlfcn.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#ifndef CARME_CORE
#define CARME_CORE "/usr/lib/carme/libcarme.so"
#endif

int main(int argc, char **argv)
{
	int (*call)(void);
	void *core;
	const char *name;

	if (argc != 2 || (argv[1][0] != 's' && argv[1][0] != 'c')) {
		fputs("usage: carme-host setup|check\n", stderr);
		return 2;
	}
	name = argv[1][0] == 's' ? "carme_setup" : "carme_check";
	/* It lives for some milliseconds: no memory of its own for each thread,
	 * and no more of Go's processors than it has things to do at once,
	 * however many the node has. */
	mallopt(M_ARENA_MAX, 1);
	setenv("GOMAXPROCS", "2", 1);
	/* Lazily: go-nvml refers to functions that are there only when a driver
	 * is, and looks them up itself. */
	core = dlopen(CARME_CORE, RTLD_LAZY);
	if (!core) {
		fprintf(stderr, "carme: %s\n", dlerror());
		return 3;
	}
	*(void **) &call = dlsym(core, name);
	if (!call) {
		fprintf(stderr, "carme: %s\n", dlerror());
		return 3;
	}
	_exit(call()); /* nothing is buffered */
}
