/*
 * Tasks must be born in the job's PID namespace and still be slurmstepd's own
 * children: any process between them would take the program out of Slurm's
 * cgroups, signals and accounting (docs/adr/0002). setns(CLONE_NEWPID) decides
 * where the children of a thread are born, and forbids the thread to create
 * threads as long as it differs from its own namespace; so it is entered for
 * the fork alone, by pthread_atfork(3) handlers, which Slurm itself uses too.
 *
 * slurmstepd forks its tasks from the main thread with the user's effective
 * uid. Its permitted capabilities are still full; the two that setns() needs
 * are raised in this thread alone, by the raw system call.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/keyring.h"
#include "common/sys.h"
#include "plugin.h"

static struct {
	const struct step *step;
	pid_t thread; /* the one that forks tasks */
	int own;      /* its PID namespace */
	int armed;
	int inside;  /* between prepare and parent */
	int entered; /* the job's PID namespace, with raised capabilities */
	int forked;  /* tasks so far */
	struct __user_cap_data_struct caps[2];
} hook = {.own = -1};

static int raise_capabilities(void)
{
	struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct d[2];

	if (syscall(SYS_capget, &h, hook.caps))
		return -1;
	memcpy(d, hook.caps, sizeof(d));
	d[0].effective |= 1U << CAP_SYS_ADMIN | 1U << CAP_SYS_CHROOT;
	return (int) syscall(SYS_capset, &h, d);
}

static void restore_capabilities(void)
{
	struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};

	if (syscall(SYS_capset, &h, hook.caps))
		fail("give back capabilities: %s", strerror(errno));
}

static void before_fork(void)
{
	if (!hook.armed || (pid_t) syscall(SYS_gettid) != hook.thread)
		return;
	step_finish();
	if (failed()) {
		hook.inside = 1;
		return;
	}
	if (raise_capabilities()) {
		fail("raise capabilities for the fork: %s", strerror(errno));
	} else if (setns(hook.step->pidns, CLONE_NEWPID)) {
		fail("enter the job's PID namespace: %s", strerror(errno));
		restore_capabilities();
	} else {
		hook.entered = 1;
	}
	hook.inside = 1;
}

static void in_parent(void)
{
	if (!hook.inside)
		return;
	hook.inside = 0;
	hook.forked++;
	/* Not failed(): a task that was born before this one may have failed
	 * meanwhile, and this thread must get out all the same. */
	if (!hook.entered)
		return;
	hook.entered = 0;
	if (setns(hook.own, CLONE_NEWPID))
		fail("leave the job's PID namespace: %s", strerror(errno));
	restore_capabilities();
}

/*
 * slurmstepd holds a script back until it has written a byte into a pipe
 * (mgr.c:exec_wait_signal_child) and complains if the child is gone by then.
 * Which pipe is not told, so all that this process can read are watched.
 */
static void wait_to_be_released(void)
{
	struct pollfd p[64];
	int waiting = 0;
	nfds_t n = 0;

	for (int fd = 3; fd < 256 && n < sizeof(p) / sizeof(p[0]); fd++) {
		struct stat st;

		if (fstat(fd, &st) || !S_ISFIFO(st.st_mode) ||
		    (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY)
			continue;
		p[n] = (struct pollfd){fd, POLLIN, 0};
		if (poll(&p[n], 1, 0) == 0)
			n++;
		else if (!ioctl(fd, FIONREAD, &waiting) && waiting == 1)
			return; /* the byte is there already */
	}
	poll(p, n, 1000);
}

/* With what a task gets in task_start(): no way to new privileges. */
static int join_as_epilog(void)
{
	if (filter_enter(hook.step) || keyring_leave(hook.step->keyring) ||
	    setns(hook.step->pid1,
		  CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET))
		return -1;
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

static void in_child(void)
{
	/* When Slurm could not tell how many, none is taken for an epilog. */
	int after_tasks =
	    hook.step->tasks > 0 && hook.forked >= (int) hook.step->tasks;

	if (!hook.inside)
		return;
	hook.inside = hook.armed = 0;
	/* A task goes on to task_init_privileged, where SPANK calls us again.
	 * What is forked later, TaskEpilog and --task-epilog, SPANK does not
	 * see: it joins here, or does not run at all. */
	if (failed()) {
		if (after_tasks) {
			/* The step has its error line already. */
			wait_to_be_released();
			_exit(0);
		}
	} else if (after_tasks && join_as_epilog()) {
		_exit(1);
	}
	if (hook.entered)
		restore_capabilities();
	hook.entered = 0;
}

int forkhook_install(struct step *s)
{
	int rc;

	hook.step = s;
	hook.thread = (pid_t) syscall(SYS_gettid);
	hook.own = open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC);
	/* Also without it: a step that has failed holds back its epilogs. */
	rc = pthread_atfork(before_fork, in_parent, in_child);
	if (rc)
		errno = rc;
	return (rc || hook.own < 0) ? -1 : 0;
}

void forkhook_arm(void)
{
	hook.armed = hook.step != NULL;
}
