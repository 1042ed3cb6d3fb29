/* The process above an early set-up, which ends it when nobody wants it. */
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/wait.h>

int host_main(int argc, char **argv);
#define main host_main
#include "../host/host.c"
#undef main
#include "tap.h"

/* What the core does in the test. */
enum core { WORKS, HANGS };

/* Starts it as slurmstepd does, and returns slurmstepd's end of the result's
 * socket; *first is the status of the process that it waits for. */
static int start(enum core core, int *first)
{
	int pair[2], status = -1;
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return -1;
	pid = fork();
	if (!pid) {
		int null = open("/dev/null", O_RDWR);
		int result = fcntl(pair[1], F_DUPFD, 100);

		for (int fd = REQUEST_FD; fd <= LAST_FD; fd++)
			dup2(fd == RESULT_FD ? result : null, fd);
		sys_close_range(LAST_FD + 1, ~0U);
		if (leave_alone())
			_exit(9);
		while (core == HANGS)
			pause();
		_exit(send(RESULT_FD, "done", 4, 0) != 4);
	}
	close(pair[1]);
	waitpid(pid, &status, 0);
	*first = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
	return pair[0];
}

/* What comes next: 1 a record, 0 the end of all who have the other end, -1
 * nothing for that time. */
static int next(int fd, int timeout_ms)
{
	struct pollfd p = {fd, POLLIN, 0};
	char text[16];

	if (poll(&p, 1, timeout_ms) != 1)
		return -1;
	return recv(fd, text, sizeof(text), 0) > 0;
}

int main(void)
{
	int first, fd;

	fd = start(WORKS, &first);
	ok(first == 0, "slurmstepd waits for the first process alone");
	ok(next(fd, 20000) == 1, "the core goes on");
	ok(next(fd, 20000) == 0, "and when it has ended, so has its watcher");
	close(fd);
	fd = start(HANGS, &first);
	ok(first == 0 && next(fd, 200) == -1, "a core that hangs is let be");
	shutdown(fd, SHUT_WR);
	ok(next(fd, 20000) == 0, "until the job ends");
	close(fd);
	return tap_end();
}
