/*
 * The proof that a task makes before its program starts, as the user and in
 * the task's final cgroups. Device nodes of the whole node are at hand as
 * O_PATH descriptors, so that the kernel is asked about foreign devices too,
 * although the job's /dev does not show them.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/sys.h"
#include "plugin.h"

static int shown(const char *path, int fd)
{
	struct stat a, b;

	return !stat(path, &a) && !fstat(fd, &b) && a.st_rdev == b.st_rdev &&
	       S_ISCHR(a.st_mode);
}

struct entry {
	const char *path, *uuid;
	const char *own, *parent, *index; /* as the plan has them */
	int mine;			  /* the job may use it */
	int gpu; /* index of the GPU of a capability file, -1 for a GPU */
	int fd;
};

/* A capability file that gres.conf does not name is open to everybody, and
 * useless without its GPU; that it is not shown is what matters. */
static int check_device(const struct entry *e)
{
	int allowed = sys_device_allowed(e->fd);
	int visible = shown(e->path, e->fd);

	if (allowed && !e->mine && e->gpu < 0) {
		fail("%s can be opened, but Slurm did not give it to this job; "
		     "the admin must set ConstrainDevices=yes in cgroup.conf",
		     e->path);
		return -1;
	}
	if (visible && !e->mine) {
		fail("%s of another job is visible in this one; tell the admin",
		     e->path);
		return -1;
	}
	if (allowed && e->mine && !visible) {
		fail("%s was given to this job, but is missing from its /dev; "
		     "tell the admin",
		     e->path);
		return -1;
	}
	return allowed && e->mine;
}

static size_t append(char *out, size_t at, size_t len, const char *uuid)
{
	int n = snprintf(out + at, len - at, "%s%s", at ? "," : "", uuid);

	if (n >= 0 && at + (size_t) n < len)
		return at + (size_t) n;
	out[at] = '\0'; /* no part of a UUID */
	return at;
}

static int next_entry(const struct record *plan, struct entry *e)
{
	e->path = record_next(plan, "dev.path", e->path);
	e->uuid = record_next(plan, "dev.uuid", e->uuid);
	e->own = record_next(plan, "dev.own", e->own);
	e->parent = record_next(plan, "dev.parent", e->parent);
	e->index = record_next(plan, "dev.index", e->index);
	if (!e->path || !e->uuid || !e->own || !e->parent || !e->index)
		return -1;
	e->mine = e->own[0] == '1';
	e->gpu = atoi(e->parent);
	return 0;
}

/* Is index one of the comma separated numbers? */
static int listed(const char *list, const char *index)
{
	size_t n = strlen(index);

	while (n && *list) {
		size_t len = strcspn(list, ",");

		if (len == n && !strncmp(list, index, n))
			return 1;
		list += len + (list[len] == ',');
	}
	return 0;
}

int proof_devices(const struct step *s, const char *given, char *uuids,
		  size_t len)
{
	int usable[MSG_FDS_MAX] = {0};
	struct entry e = {0};
	size_t at = 0;

	uuids[0] = '\0';
	for (int i = 0; i < s->devices.n; i++) {
		if (next_entry(&s->plan, &e)) {
			fail("the plan of this job does not describe its "
			     "devices");
			return -1;
		}
		e.fd = s->devices.fd[i];
		usable[i] = check_device(&e);
		if (usable[i] < 0)
			return -1;
		if (given && e.gpu < 0 && !listed(given, e.index))
			usable[i] = 0;
		/* GPUs come before the files of their partitions. */
		if (e.gpu >= 0 && (e.gpu >= i || !usable[e.gpu]))
			continue;
		if (usable[i] && e.uuid[0])
			at = append(uuids, at, len, e.uuid);
	}
	if (!at)
		snprintf(uuids, len, "void");
	return 0;
}

int proof_namespaces(const struct step *s)
{
	uint64_t pid = sys_own_inode("pid");

	if (!pid || pid != sys_inode(s->pidns)) {
		fail("this task was not born in the job's PID namespace; tell "
		     "the admin");
		return -1;
	}
	if (sys_own_inode("mnt") != sys_inode(s->mntns)) {
		fail("this task is not in the job's mount namespace; tell the "
		     "admin");
		return -1;
	}
	return 0;
}
