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
#include <sys/resource.h>
#include <unistd.h>

#ifndef CARME_CORE
#define CARME_CORE "/usr/lib/carme/libcarme.so"
#endif

/* What the Go runtime needs to begin with, less than which it ends in pages of
 * its own words: half a gigabyte of addresses, and a few descriptors. */
static const struct need {
	int resource;
	rlim_t least;
	const char *name, *amount;
} needs[] = {
    {RLIMIT_AS, (rlim_t) 1 << 30, "ulimit -v", "1048576"},
    {RLIMIT_DATA, (rlim_t) 256 << 20, "ulimit -d", "262144"},
    {RLIMIT_NOFILE, 16, "ulimit -n", "16"},
};

/* Whatever a user's soft limits are, up to the hard ones they are the user's to
 * choose. */
static int raise_limits(void)
{
	for (size_t i = 0; i < sizeof(needs) / sizeof(*needs); i++) {
		struct rlimit l;

		if (getrlimit(needs[i].resource, &l) ||
		    l.rlim_cur >= needs[i].least)
			continue;
		if (l.rlim_max < needs[i].least) {
			fprintf(stderr,
				"carme: %s is too low to read the options; it "
				"takes %s\n",
				needs[i].name, needs[i].amount);
			return -1;
		}
		l.rlim_cur = needs[i].least;
		if (setrlimit(needs[i].resource, &l)) {
			fprintf(stderr, "carme: raise %s to %s: %m\n",
				needs[i].name, needs[i].amount);
			return -1;
		}
	}
	return 0;
}

int main(int argc, char **argv)
{
	int (*call)(void);
	void *core;
	const char *name;

	if (argc != 2 || (argv[1][0] != 's' && argv[1][0] != 'c')) {
		fputs("usage: carme-host setup|check\n", stderr);
		return 2;
	}
	if (raise_limits())
		return 3;
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
