/*
 * A task, between fork and exec. task_start_privileged() runs as root before
 * Slurm has opened the task's output, task_start() as the user and in its
 * final cgroups; only the latter can speak, so that all errors end there.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/sys.h"
#include "plugin.h"

/* Variables that an image sets for itself but that are the task's. */
static const char *const task_owns[] = {
    "HOME",   "USER",	"LOGNAME", "PWD",     "OLDPWD",	    "SHLVL", "_",
    "TMPDIR", "DISPLAY", "TERM",   "SHELL", "HOSTNAME", "XDG_RUNTIME_DIR"};

void task_start_privileged(spank_t sp)
{
	struct step *s = &the_step;

	(void) sp;
	if (failed())
		return;
	/* The anchor answers root alone; this is the last moment as root. */
	if (s->image && s->image[0]) {
		s->enter = job_connect(s->dir);
		if (s->enter < 0) {
			fail("reach the job's anchor: %s", strerror(errno));
			return;
		}
	}
	if (setns(s->pid1, CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS |
			       CLONE_NEWNET)) {
		fail("join the job's namespaces: %s", strerror(errno));
		return;
	}
	proof_namespaces(s);
}

static int is_tasks_own(const char *entry)
{
	size_t n = strcspn(entry, "=");

	if (!strncmp(entry, "SLURM", 5) || !strncmp(entry, "CARME", 5))
		return 1;
	for (size_t i = 0; i < sizeof(task_owns) / sizeof(*task_owns); i++)
		if (strlen(task_owns[i]) == n && !strncmp(entry, task_owns[i], n))
			return 1;
	return 0;
}

static void take_environment(spank_t sp, const struct record *r)
{
	const char *e = NULL;

	while ((e = record_next(r, "env", e))) {
		char name[256];
		size_t n = strcspn(e, "=");

		if (!e[n] || n >= sizeof(name) || is_tasks_own(e))
			continue;
		memcpy(name, e, n);
		name[n] = '\0';
		spank_setenv(sp, name, e + n + 1, 1);
	}
}

static int enter_container(spank_t sp, const struct step *s)
{
	int userns = -1, mntns = -1, rc = -1;
	char cwd[PATH_MAX] = "/";
	const char *message;
	struct msg_fds fds;
	struct record r;

	record_init(&r);
	record_add(&r, "type", "enter");
	record_add(&r, "key", s->image);
	rc = msg_send(s->enter, &r, NULL);
	record_free(&r);
	/* Without a time limit: scancel and the job's own limit end it. */
	if (rc || msg_recv(s->enter, &r, &fds, NULL, -1) != 1) {
		fail("the job's anchor is gone; submit the job again");
		return -1;
	}
	rc = -1;
	message = record_get(&r, "message");
	userns = msg_fds_take(&fds, 0);
	mntns = msg_fds_take(&fds, 1);
	if (message) {
		fail("start %s: %s", s->image, message);
		goto done;
	}
	if (!getcwd(cwd, sizeof(cwd)))
		snprintf(cwd, sizeof(cwd), "/");
	if (setns(userns, CLONE_NEWUSER) || setns(mntns, CLONE_NEWNS)) {
		fail("join the container of %s: %s", s->image, strerror(errno));
		goto done;
	}
	if (chdir(cwd) && chdir("/")) {
		fail("change to %s in the container: %s", cwd, strerror(errno));
		goto done;
	}
	take_environment(sp, &r);
	rc = 0;
done:
	msg_fds_close(&fds);
	record_free(&r);
	sys_close(&userns);
	sys_close(&mntns);
	return rc;
}

/* Who joins a user namespace gets all capabilities in it; nobody in a job is
 * to have any, and no program may hand them out. */
static int drop_privileges(void)
{
	struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct none[2];

	for (int c = 0; c <= CAP_LAST_CAP; c++)
		if (prctl(PR_CAPBSET_DROP, c, 0, 0, 0) && errno != EINVAL &&
		    errno != EPERM)
			return -1;
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	memset(none, 0, sizeof(none));
	if (syscall(SYS_capset, &h, none))
		return -1;
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

static int go_to_workdir(const struct step *s)
{
	const char *dir = record_get(&s->plan, "workdir");

	if (!dir || !dir[0] || !chdir(dir))
		return 0;
	fail("change to --carme-workdir=%s in the job: %s", dir,
	     strerror(errno));
	return -1;
}

void task_start(spank_t sp)
{
	const struct step *s = &the_step;
	char uuids[4096];

	if (failed() || proof_namespaces(s))
		fail_exit();
	if (s->image && s->image[0] && enter_container(sp, s))
		fail_exit();
	sys_close(&the_step.enter);
	if (drop_privileges()) {
		fail("drop capabilities: %s", strerror(errno));
		fail_exit();
	}
	if (go_to_workdir(s) || proof_devices(s, uuids, sizeof(uuids)))
		fail_exit();
	spank_setenv(sp, "NVIDIA_VISIBLE_DEVICES", uuids, 1);
}
