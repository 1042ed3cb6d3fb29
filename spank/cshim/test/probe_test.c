/* Will the core ask slurmctld? This test is the anchor, too. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "../probe.c"
#include "tap.h"

static char top[] = "/tmp/carme-probe-XXXXXX";

static void touch(const char *name)
{
	char path[256];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", top, name);
	fd = open(path, O_WRONLY | O_CREAT, 0600);
	close(fd);
}

/* answers: one letter for each device, 1 or 0; "-": the anchor says nothing. */
static int asks(const char *constrain, const char *answers)
{
	int pair[2], result;
	struct msg_fds fds;
	struct record r;
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair))
		return -1;
	pid = fork();
	if (pid == 0) {
		close(pair[0]);
		if (msg_recv(pair[1], &r, &fds, NULL, 1000) != 1 ||
		    (size_t) fds.n != strlen(answers))
			_exit(1);
		record_free(&r);
		record_init(&r);
		record_add(&r, "type", "probed");
		for (const char *a = answers; *a; a++)
			record_add(&r, "ok", *a == '1' ? "1" : "0");
		_exit(answers[0] == '-' || msg_send(pair[1], &r, NULL));
	}
	close(pair[1]);
	result = probe_core_asks(pair[0], constrain, top, 1000);
	close(pair[0]);
	waitpid(pid, NULL, 0);
	return result;
}

int main(void)
{
	if (!mkdtemp(top))
		return 1;
	touch("nvidiactl");
	touch("nvidia-uvm");
	touch("nvidia");
	ok(asks("yes", "") == 0, "not on a node without GPUs");
	ok(asks("no", "") == 0, "whatever Slurm constrains");
	touch("nvidia0");
	touch("nvidia15");
	ok(asks("yes", "10") == 0 && asks("yes", "00") == 0,
	   "not where the kernel denies one");
	ok(asks("yes", "11") == 1, "where it denies none");
	ok(asks("no", "10") == 1 && asks(NULL, "10") == 1,
	   "where it may be another's filter that does");
	ok(asks("yes", "-") == 1, "and when in doubt");
	for (const char *const *n =
		 (const char *const[]){"nvidiactl", "nvidia-uvm", "nvidia",
				       "nvidia0", "nvidia15", NULL};
	     *n; n++) {
		char path[256];

		snprintf(path, sizeof(path), "%s/%s", top, *n);
		unlink(path);
	}
	rmdir(top);
	return tap_end();
}
