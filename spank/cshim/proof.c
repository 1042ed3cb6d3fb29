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

static int check_device(const char *path, int fd, int own)
{
	int allowed = sys_device_allowed(fd);
	int visible = shown(path, fd);

	if (allowed && !own) {
		fail("%s can be opened, but Slurm did not give it to this job; "
		     "the admin must set ConstrainDevices=yes in cgroup.conf",
		     path);
		return -1;
	}
	if (visible && !own) {
		fail("%s of another job is visible in this one; tell the admin",
		     path);
		return -1;
	}
	if (allowed && !visible) {
		fail("%s was given to this job, but is missing from its /dev; "
		     "tell the admin",
		     path);
		return -1;
	}
	return allowed;
}

static size_t append(char *out, size_t at, size_t len, const char *uuid)
{
	int n = snprintf(out + at, len - at, "%s%s", at ? "," : "", uuid);

	if (n >= 0 && at + (size_t) n < len)
		return at + (size_t) n;
	out[at] = '\0'; /* no part of a UUID */
	return at;
}

int proof_devices(const struct step *s, char *uuids, size_t len)
{
	const char *path = NULL, *own = NULL, *uuid = NULL;
	size_t at = 0;

	uuids[0] = '\0';
	for (int i = 0; i < s->devices.n; i++) {
		int rc;

		path = record_next(&s->plan, "dev.path", path);
		own = record_next(&s->plan, "dev.own", own);
		uuid = record_next(&s->plan, "dev.uuid", uuid);
		if (!path || !own || !uuid) {
			fail("the plan of this job does not describe its "
			     "devices");
			return -1;
		}
		rc = check_device(path, s->devices.fd[i], own[0] == '1');
		if (rc < 0)
			return -1;
		if (rc && uuid[0])
			at = append(uuids, at, len, uuid);
	}
	if (!at)
		snprintf(uuids, len, "void");
	return 0;
}

int proof_namespaces(const struct step *s)
{
	uint64_t pid = sys_path_inode("/proc/self/ns/pid");

	if (!pid || pid != sys_inode(s->pidns)) {
		fail("this task was not born in the job's PID namespace; tell "
		     "the admin");
		return -1;
	}
	if (sys_path_inode("/proc/self/ns/mnt") != sys_inode(s->mntns)) {
		fail("this task is not in the job's mount namespace; tell the "
		     "admin");
		return -1;
	}
	return 0;
}
