/* A process that goes to its cgroups by itself. */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../anchor/places.c"
#include "tap.h"

#define PLACES 2

/* Pipes stand for lists of threads. Returns the child's exit status. */
static int go(const char *extra, int extra_fd, char *wrote, size_t len)
{
	int pipes[PLACES][2], status = -1, placed = -1;
	struct msg_fds fds;
	struct record r;
	pid_t pid;

	msg_fds_init(&fds);
	record_init(&r);
	record_add(&r, "type", "places");
	for (int i = 0; i < PLACES; i++) {
		if (pipe(pipes[i]))
			return -1;
		record_add(&r, "place", "tasks");
		msg_fds_add(&fds, pipes[i][1]);
		if (!i && extra) {
			record_add(&r, "place", extra);
			msg_fds_add(&fds, extra_fd);
		}
	}
	pid = places_fork(&r, &fds, &placed);
	if (!pid)
		_exit(fds.n ? 1 : 42 + placed); /* they must not stay open */
	msg_fds_close(&fds);
	record_free(&r);
	waitpid(pid, &status, 0);
	memset(wrote, 0, len);
	for (int i = 0; i < PLACES; i++) {
		if (read(pipes[i][0], wrote + i, 1) != 1)
			wrote[i] = '-';
		close(pipes[i][0]);
	}
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

int main(void)
{
	char wrote[PLACES + 1];
	int null;

	ok(go(NULL, -1, wrote, sizeof(wrote)) == 43 && !strcmp(wrote, "00"),
	   "itself is written into each list, and then it is placed");
	ok(go("directory", open("/tmp", O_PATH | O_DIRECTORY), wrote,
	      sizeof(wrote)) == 42 &&
	       !strcmp(wrote, "00"),
	   "a directory that is no cgroup keeps nobody from being born, but "
	   "it is not placed");
	null = open("/dev/null", O_RDONLY);
	ok(go("tasks", null, wrote, sizeof(wrote)) == 42 &&
	       !strcmp(wrote, "0-"),
	   "what cannot be written to ends it, and it is not placed");
	return tap_end();
}
