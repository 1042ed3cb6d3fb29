/*
 * The anchor's cgroups. Whoever is moved from one to another by its number
 * makes the kernel wait for a grace period of RCU, 5 to 10 ms, and all forks of
 * the node with it. A process that is born in a cgroup of version 2 (clone3(2))
 * does not, nor does a thread that goes by itself, which version 1 takes for a
 * process of one thread.
 */
#include <linux/sched.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../common/sys.h"
#include "anchor.h"

/* *placed becomes 0 where it is born beside its parent. */
static pid_t fork_into(int directory, int *placed)
{
	struct clone_args a = {
	    .flags = CLONE_INTO_CGROUP,
	    .exit_signal = SIGCHLD,
	    .cgroup = (uint64_t) directory,
	};
	pid_t pid =
	    directory < 0 ? -1 : (pid_t) syscall(SYS_clone3, &a, sizeof(a));

	if (pid >= 0)
		return pid;
	*placed = directory < 0;
	return fork();
}

static int is_directory(const struct record *kinds, int i)
{
	const char *v = NULL;

	do
		v = record_next(kinds, "place", v);
	while (v && i--);
	return v && !strcmp(v, "directory");
}

pid_t places_fork(const struct record *kinds, struct msg_fds *fds, int *placed)
{
	int directory = -1;
	int there = fds->n > 0;
	pid_t pid;

	for (int i = 0; i < fds->n && directory < 0; i++)
		if (is_directory(kinds, i))
			directory = msg_fds_take(fds, i);
	pid = fork_into(directory, &there);
	sys_close(&directory);
	if (pid)
		return pid;
	for (int i = 0; i < fds->n; i++)
		if (fds->fd[i] >= 0 && write(fds->fd[i], "0", 1) != 1) {
			there = 0;
			break;
		}
	msg_fds_close(fds);
	*placed = there;
	return 0;
}
