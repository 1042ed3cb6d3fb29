/*
 * carme-host: opens libcarme.so, the Go core, and makes one call. The plugin
 * and the command line tools start it where Go must not live themselves
 * (docs/adr/0001). Its arguments are constant words, never user text:
 *
 *   carme-host setup   request on fd 3, result on fd 4, anchor on fd 5, and
 *                      Slurm's mount namespace of the job on fd 6, if any
 *   carme-host early   the same, by a process that nobody waits for; it ends
 *                      when the other end of fd 4 is shut down
 *   carme-host check   request on fd 3; errors and lists on the terminal
 */
#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "../common/early.h"
#include "../common/sys.h"

#ifndef CARME_CORE
#define CARME_CORE "/usr/lib/carme/libcarme.so"
#endif

enum { REQUEST_FD = 3, RESULT_FD, ANCHOR_FD, LAST_FD };

/* For a process to end after SIGKILL. */
#define KILL_MS 2000

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

/* Wait for the end of a process, or for the time or the word to end it: a name
 * service that does not answer must not keep it for ever, nor a job that ends.
 */
static void watch(pid_t pid)
{
	struct pollfd p[] = {{sys_pidfd_open(pid), POLLIN, 0},
			     {RESULT_FD, POLLIN | POLLRDHUP, 0}};
	int rc;

	while ((rc = poll(p, 2, EARLY_MS)) < 0 && errno == EINTR)
		;
	if (rc > 0 && p[0].revents)
		return;
	kill(pid, SIGKILL);
	poll(p, 1, KILL_MS);
}

/* Goes on in a process whose parent, which is nobody's child either, watches
 * it. The other end of RESULT_FD sees the end of both. */
static int leave_alone(void)
{
	pid_t pid = fork();

	if (pid)
		_exit(pid < 0 ? 3 : 0);
	pid = fork();
	if (pid <= 0)
		return (int) pid;
	for (int fd = REQUEST_FD; fd <= LAST_FD; fd++)
		if (fd != RESULT_FD)
			close(fd);
	watch(pid);
	_exit(0);
}

int main(int argc, char **argv)
{
	int (*call)(void);
	void *core;
	const char *name;

	if (argc != 2 ||
	    (strcmp(argv[1], "setup") && strcmp(argv[1], "early") &&
	     strcmp(argv[1], "check"))) {
		fputs("usage: carme-host setup|early|check\n", stderr);
		return 2;
	}
	if (raise_limits())
		return 3;
	if (argv[1][0] == 'e' && leave_alone())
		return 3;
	name = argv[1][0] == 'c' ? "carme_check" : "carme_setup";
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
