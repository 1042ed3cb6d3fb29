/*
 * A task, between fork and exec. task_start_privileged() runs as root before
 * Slurm has opened the task's output, task_start() as the user and in its
 * final cgroups; only the latter can speak, so that all errors end there.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <slurm/slurm.h>

#include "common/enter.h"
#include "common/keyring.h"
#include "common/sys.h"
#include "plugin.h"

/* Variables that an image sets for itself but that are the task's. */
static const char *const task_owns[] = {
    "HOME", "USER", "LOGNAME", "PWD", "OLDPWD", "SHLVL", "_", "TMPDIR",
    "DISPLAY", "TERM", "SHELL", "HOSTNAME", "XDG_RUNTIME_DIR", "LANG", "LC_ALL",
    "APPTAINER_BIND", "SINGULARITY_BIND",
    /* Slurm's, by the task's GPUs */
    "CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK"};

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
	if (filter_enter(s)) {
		fail("enter the job's device cgroup: %s", strerror(errno));
		return;
	}
	if (keyring_leave(s->keyring)) {
		fail("make a keyring for the task: %s", strerror(errno));
		return;
	}
	if (setns(s->pid1,
		  CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET)) {
		fail("join the job's namespaces: %s", strerror(errno));
		return;
	}
	if (!proof_namespaces(s))
		xauthority_write(&s->xauthority, s->uid, s->gid);
}

static int is_tasks_own(const char *entry)
{
	size_t n = strcspn(entry, "=");

	if (!strncmp(entry, "SLURM", 5) || !strncmp(entry, "CARME", 5) ||
	    !strncmp(entry, "PMI", 3))
		return 1;
	for (size_t i = 0; i < sizeof(task_owns) / sizeof(*task_owns); i++)
		if (strlen(task_owns[i]) == n &&
		    !strncmp(entry, task_owns[i], n))
			return 1;
	return 0;
}

/* Patterns as in spank/policy/env.go: a name, or its beginning and "*". */
static int matches(const struct record *plan, const char *key,
		   const char *entry)
{
	size_t n = strcspn(entry, "=");
	const char *p = NULL;

	while ((p = record_next(plan, key, p))) {
		size_t len = strlen(p);

		if (len && p[len - 1] == '*') {
			if (n >= len - 1 && !strncmp(p, entry, len - 1))
				return 1;
		} else if (len == n && !strncmp(p, entry, n)) {
			return 1;
		}
	}
	return 0;
}

/* What means something on the host only is not for a container. */
static void drop_environment(spank_t sp, const struct record *plan)
{
	char **env = NULL;
	int i = 0;

	if (spank_get_item(sp, S_JOB_ENV, &env) || !env)
		return;
	while (env[i]) {
		char name[256];
		size_t n = strcspn(env[i], "=");

		if (n < sizeof(name) && (matches(plan, "drop.always", env[i]) ||
					 (matches(plan, "drop", env[i]) &&
					  !matches(plan, "pass", env[i])))) {
			memcpy(name, env[i], n);
			name[n] = '\0';
			/* The array closes the gap: look at i again. */
			if (!spank_unsetenv(sp, name) &&
			    !spank_get_item(sp, S_JOB_ENV, &env) && env)
				continue;
		}
		i++;
	}
}

static void take_environment(spank_t sp, const struct record *plan,
			     const struct record *r)
{
	const char *e = NULL;

	drop_environment(sp, plan);

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

/* Wait until the container is up. Its environment becomes the task's; its
 * namespaces come as descriptors. */
static int await_container(spank_t sp, const struct step *s, int *userns,
			   int *mntns)
{
	const char *message;
	struct msg_fds fds;
	struct record r;
	int rc;

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
	message = record_get(&r, "message");
	*userns = msg_fds_take(&fds, 0);
	*mntns = msg_fds_take(&fds, 1);
	msg_fds_close(&fds);
	if (message)
		fail("start %s: %s; check the image (and the overlay, if there "
		     "is one)",
		     s->image, message);
	else if (*userns < 0 || *mntns < 0)
		fail(
		    "the job's anchor sent no container; submit the job again");
	else
		take_environment(sp, &s->plan, &r);
	/* What the core says of the job wins over both: the conda environment
	 * over what was dropped of the host's, the image's path over the place
	 * where the runtime found it. */
	step_set_environment(sp, s);
	record_free(&r);
	return failed() ? -1 : 0;
}

typedef spank_err_t prepend_f(spank_t sp, int argc, const char *argv[]);

static prepend_f *prepend_function(void)
{
	prepend_f *f;

	*(void **) &f = dlsym(RTLD_DEFAULT, "spank_prepend_task_argv");
	return f;
}

/* An app is started beside the command of the batch script, or of the first
 * task where there is none. The program that does it (session/run) becomes the
 * command where another task of the job has started the app already. */
static int runs_app(spank_t sp, const struct step *s)
{
	uint32_t rank = 0;

	if (!record_get(&s->plan, "app"))
		return 0;
	if (s->id == SLURM_BATCH_SCRIPT || s->id == SLURM_INTERACTIVE_STEP)
		return 1;
	return s->id == 0 && !spank_get_item(sp, S_TASK_GLOBAL_ID, &rank) &&
	       rank == 0;
}

static int start_app(spank_t sp, const struct step *s)
{
	prepend_f *prepend = prepend_function();

	if (!runs_app(sp, s))
		return 0;
	if (prepend &&
	    !prepend(sp, 3,
		     (const char *[]){CARME_RUN "/session", "run", "--"}))
		return 0;
	fail("--carme-app=%s: %s", record_get(&s->plan, "app"),
	     prepend ? strerror(errno) : "apps need Slurm 23.02 or later");
	return -1;
}

static int go_to_workdir(spank_t sp, const struct step *s)
{
	const char *dir = record_get(step_record(s), "workdir");
	char own[PATH_MAX];
	int by_variable, rc;

	if (!dir || !dir[0] || !chdir(dir))
		return 0;
	rc = errno;
	by_variable = !spank_getenv(sp, "CARME_WORKDIR", own, sizeof(own)) &&
		      !strcmp(own, dir);
	fail("%s=%s: %s in the job; choose a directory that is there",
	     by_variable ? "CARME_WORKDIR" : "--carme-workdir", dir,
	     strerror(rc));
	return -1;
}

/*
 * Where Slurm can put a command in front of the task's (23.02 and later), the
 * container is joined by that command, after TaskProlog: the script and, in
 * 24.11.0 to 24.11.6, slurmstepd itself with all its libraries are executed
 * before, and need not be in the image.
 */
static int enter(spank_t sp, const struct step *s)
{
	const char *workdir = record_get(step_record(s), "workdir");
	struct lost_directory lost = {.path = ""};
	const char *what = "";
	int local = 0;
	char user[16], mnt[16];
	int userns = -1, mntns = -1;
	prepend_f *prepend = prepend_function();

	if (await_container(sp, s, &userns, &mntns))
		return -1;
	if (!prepend) {
		if (enter_container(userns, mntns, &lost, &what))
			fail("%s: %s", what, strerror(errno));
		else if (workdir && workdir[0])
			go_to_workdir(sp, s);
		else if (!spank_get_item(sp, S_TASK_ID, &local) && !local)
			enter_tell_lost(2, &lost);
		sys_close(&userns);
		sys_close(&mntns);
		return failed() ? -1 : 0;
	}
	snprintf(user, sizeof(user), "%d", userns);
	snprintf(mnt, sizeof(mnt), "%d", mntns);
	if (fcntl(userns, F_SETFD, 0) || fcntl(mntns, F_SETFD, 0) ||
	    prepend(sp, 4,
		    (const char *[]){CARME_RUN "/enter", user, mnt,
				     workdir ? workdir : ""})) {
		fail("put the container in front of the command: %s",
		     strerror(errno));
		return -1;
	}
	return 0;
}

static void show_debug(const struct step *s)
{
	const char *line = NULL;

	while ((line = record_next(&s->result, "debug", line)))
		dprintf(2, "carme: debug: %s\n", line);
}

/* The programs of a conda environment come before all others. */
static void extend_path(spank_t sp, const struct step *s)
{
	const char *front = record_get(step_record(s), "path.front");
	char old[8192], path[sizeof(old) + 4096];
	int n;

	if (!front)
		return;
	if (spank_getenv(sp, "PATH", old, sizeof(old)))
		old[0] = '\0';
	n = snprintf(path, sizeof(path), "%s%s%s", front, old[0] ? ":" : "",
		     old);
	if (n > 0 && (size_t) n < sizeof(path))
		spank_setenv(sp, "PATH", path, 1);
}

/*
 * Where the filter is Carme's, it is the job's, and what can be opened does not
 * tell a step's or a task's share. Slurm's variable does: slurmstepd sets it or
 * takes it away for each task (gres_common.c:gres_common_gpu_set_env). A batch
 * script and an interactive step have the whole job.
 */
static const char *share(spank_t sp, const struct step *s, char *list,
			 size_t len)
{
	if (record_num(&s->plan, "filter.own", 0) != 1 ||
	    s->id == SLURM_BATCH_SCRIPT || s->id == SLURM_INTERACTIVE_STEP)
		return NULL;
	if (spank_getenv(sp, "SLURM_STEP_GPUS", list, (int) len))
		list[0] = '\0';
	return list;
}

void task_start(spank_t sp)
{
	struct step *s = &the_step;
	char uuids[4096], list[1024];
	int local = 0;

	if (failed() || proof_namespaces(s) ||
	    proof_devices(s, share(sp, s, list, sizeof(list)), uuids,
			  sizeof(uuids)))
		fail_exit();
	if (s->late)
		step_set_environment(sp, s);
	if (start_app(sp, s))
		fail_exit();
	if (s->image && s->image[0]) {
		if (enter(sp, s))
			fail_exit();
	} else if (go_to_workdir(sp, s)) {
		fail_exit();
	}
	sys_close(&s->enter);
	if (enter_drop_privileges()) {
		fail("drop capabilities: %s", strerror(errno));
		fail_exit();
	}
	spank_setenv(sp, "NVIDIA_VISIBLE_DEVICES", uuids, 1);
	extend_path(sp, s);
	if (!spank_get_item(sp, S_TASK_ID, &local) && local == 0)
		show_debug(s);
}
