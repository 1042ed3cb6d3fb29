/*
 * The job's PID 1: mounts /proc of the new PID namespace, gives up everything
 * and reaps. It runs as nobody with no capability, so that nothing in the job
 * can signal or trace it and it could do nothing if somebody did.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../common/sys.h"
#include "anchor.h"

#define NOBODY 65534

int enter_namespaces(const struct namespaces *ns)
{
	static const int type[NS_COUNT] = {CLONE_NEWNS, CLONE_NEWIPC,
					   CLONE_NEWUTS, CLONE_NEWNET};

	/* The mount namespace last: it changes the root that paths start at. */
	for (int i = NS_COUNT - 1; i >= 0; i--)
		if (ns->fd[i] >= 0 && setns(ns->fd[i], type[i]))
			return -1;
	return 0;
}

static int give_up_privileges(void)
{
	if (setgroups(0, NULL) || setresgid(NOBODY, NOBODY, NOBODY))
		return -1;
	for (int c = 0; c <= CAP_LAST_CAP; c++)
		if (prctl(PR_CAPBSET_DROP, c, 0, 0, 0) && errno != EINVAL)
			return -1;
	if (setresuid(NOBODY, NOBODY, NOBODY))
		return -1;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return -1;
	return prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
}

static int become_init(const struct namespaces *ns)
{
	if (enter_namespaces(ns) || chdir("/"))
		return -1;
	if (mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC,
		  NULL))
		return -1;
	if (setsid() < 0)
		return -1;
	prctl(PR_SET_NAME, "carme-init", 0, 0, 0);
	return give_up_privileges();
}

/* A blocked SIGCHLD and sigwaitinfo() would do the same; PID 1 has no other
 * work, so a blocking wait that restarts when there is no child is enough. */
static void __attribute__((noreturn)) reap_for_ever(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	for (;;) {
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		sigwaitinfo(&set, NULL);
	}
}

int pid1_start(struct namespaces *ns, pid_t *pid, const char **why)
{
	char path[64];
	int sync[2];
	char ok = 0;
	int pidfd;

	/* From here on every child of the anchor is born inside. */
	*why = "create a PID namespace";
	if (unshare(CLONE_NEWPID) || pipe2(sync, O_CLOEXEC))
		return -1;
	*why = "fork PID 1";
	*pid = fork();
	if (*pid < 0)
		return -1;
	if (*pid == 0) {
		if (become_init(ns))
			_exit(1);
		if (write(sync[1], "1", 1) != 1)
			_exit(1);
		sys_close_range(0, ~0U);
		signal(SIGCHLD, SIG_DFL);
		reap_for_ever();
	}
	close(sync[1]);
	*why = "mount /proc in the job's namespaces";
	if (read(sync[0], &ok, 1) != 1)
		ok = 0;
	close(sync[0]);
	pidfd = ok ? sys_pidfd_open(*pid) : -1;
	if (pidfd < 0)
		return -1;
	*why = "open the PID namespace";
	if (snprintf(path, sizeof(path), "/proc/%d/ns/pid", (int) *pid) < 0)
		return -1;
	ns->pid = open(path, O_RDONLY | O_CLOEXEC);
	return ns->pid < 0 ? -1 : pidfd;
}
