/*
 * The fork hook in real forks. With the right to make and to enter a PID
 * namespace tasks are born in it; elsewhere at least the refusal is seen.
 */
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "../forkhook.c"
#include "stub.h"
#include "tap.h"

static int finished;

void step_finish(void)
{
	finished++;
}

static struct step step = {.tasks = 2, .pid1 = -1, .pidns = -1, .filter = -1};

/* What ended the child: its exit status. */
static int fork_and(int (*what)(void))
{
	int status = 0;
	pid_t pid = fork();

	if (pid == 0)
		_exit(what());
	waitpid(pid, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

static int is_inside(void)
{
	return sys_path_inode("/proc/self/ns/pid") == sys_inode(step.pidns);
}

/* The children themselves cannot ask /proc, which is the outer one's. */
static int is_first(void)
{
	return getpid() > 1 && getpid() < 10;
}

static int is_normal(void)
{
	return getpid() > 10 ? 0 : 1;
}

static int end_with_77(void)
{
	return 77;
}

static void *thread_forks(void *out)
{
	*(int *) out = fork_and(is_normal);
	return NULL;
}

static void *nothing(void *arg)
{
	return arg;
}

/* A PID namespace with an init, as the anchor makes it. */
static pid_t make_namespace(void)
{
	char path[64];
	pid_t pid;
	int sync[2];
	char c;

	if (pipe(sync))
		return -1;
	pid = fork();
	if (pid == 0) {
		/* The next child is PID 1; both stay until they are killed. */
		pid_t init;

		if (unshare(CLONE_NEWPID))
			_exit(1);
		init = fork();
		if (init == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
			if (write(sync[1], "1", 1) != 1)
				_exit(1);
			pause();
		}
		waitpid(init, NULL, 0);
		_exit(0);
	}
	close(sync[1]);
	if (read(sync[0], &c, 1) != 1) {
		close(sync[0]);
		waitpid(pid, NULL, 0);
		return -1;
	}
	close(sync[0]);
	snprintf(path, sizeof(path), "/proc/%d/ns/pid_for_children", (int) pid);
	step.pidns = open(path, O_RDONLY | O_CLOEXEC);
	step.pid1 = sys_pidfd_open(pid);
	return pid;
}

/* Another task of the step fails while this one is being forked: handlers that
 * were registered earlier run later before a fork, and so in the middle. */
static int fails_meanwhile;

static void another_fails(void)
{
	if (fails_meanwhile)
		fail("another task has failed");
}

/* In a process of its own, since a failure is for ever. 0: all is well. */
static int in_the_middle(void)
{
	struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct before[2], after[2];
	pthread_t t;
	pid_t pid;
	int bad = 0;

	pid = make_namespace();
	if (pid < 0 || fail_init() ||
	    pthread_atfork(another_fails, NULL, NULL) ||
	    forkhook_install(&step))
		return 1;
	syscall(SYS_capget, &h, before);
	before[0].effective &= ~(1U << CAP_SYS_CHROOT);
	syscall(SYS_capset, &h, before);
	forkhook_arm();
	fails_meanwhile = 1;
	fork_and(is_first);
	fails_meanwhile = hook.armed = 0;
	if (!failed() || sys_path_inode("/proc/self/ns/pid_for_children") !=
			     sys_path_inode("/proc/self/ns/pid"))
		bad |= 2;
	if (pthread_create(&t, NULL, nothing, NULL) || pthread_join(t, NULL))
		bad |= 4;
	syscall(SYS_capget, &h, after);
	if (after[0].effective != before[0].effective)
		bad |= 8;
	sys_pidfd_kill(step.pid1, SIGKILL);
	waitpid(pid, NULL, 0);
	return bad;
}

static void inside(void)
{
	pthread_t t;
	int other = -1;

	ok(fork_and(is_normal) == 0 && !finished,
	   "nothing happens before it is armed");
	forkhook_arm();
	ok(fork_and(is_first) == 1, "a task is born in the PID namespace");
	ok(finished == 1, "the set-up is waited for before");
	ok(sys_path_inode("/proc/self/ns/pid_for_children") ==
	       sys_path_inode("/proc/self/ns/pid"),
	   "the parent is out of it again");
	ok(!pthread_create(&t, NULL, thread_forks, &other) &&
	       !pthread_join(t, NULL),
	   "so that it can create threads");
	ok(other == 0 && finished == 1,
	   "a fork by another thread is left alone");
	ok(fork_and(is_first) == 1, "so is the second task");
	ok(!failed() && hook.forked == 2, "both are counted");
}

static void refused(void)
{
	close(step.pidns);
	step.pidns = -1;
	step.tasks = 2;
	hook.forked = 0;
	forkhook_arm();
	ok(fork_and(is_normal) == 0, "without the namespace a task is born");
	ok(failed(), "and the step has failed");
	ok(hook.forked == 1, "the fork is counted");
	/* Behind the tasks come the epilog scripts. */
	hook.forked = 2;
	ok(fork_and(is_normal) == 0, "an epilog of a failed step ends well");
	step.tasks = 0;
	ok(fork_and(end_with_77) == 77,
	   "without a number of tasks nothing is taken for an epilog");
}

int main(void)
{
	pthread_t t;
	pid_t pid;

	if (geteuid() == 0)
		ok(fork_and(in_the_middle) == 0,
		   "the parent gets out when another task fails meanwhile");
	if (fail_init() || pthread_create(&t, NULL, nothing, NULL) ||
	    pthread_join(t, NULL))
		return 1;
	pid = geteuid() == 0 ? make_namespace() : -1;
	ok(!forkhook_install(&step), "watch the forks");
	if (pid > 0) {
		inside();
		ok(!is_inside(), "this test stays where it is");
		sys_pidfd_kill(step.pid1, SIGKILL);
		waitpid(pid, NULL, 0);
	} else {
		tap_skip("tasks are born in the PID namespace",
			 "needs the right to enter one (root)");
	}
	refused();
	return tap_end();
}
