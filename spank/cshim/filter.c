/*
 * Carme's own device cgroup of a job, on cgroup v1 and where Slurm does not
 * constrain devices: the core makes it (spank/core/filter.go), the anchor sits
 * in it, and here tasks enter it. On v2 the filter is a program on the job's
 * cgroup, in which they are born.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/sys.h"
#include "plugin.h"

#define DEVICES "/sys/fs/cgroup/devices"

int filter_enter(const struct step *s)
{
	/* "0" is whoever writes (cgroups(7)); the kernel looks at who opened
	 * the file, which was root. */
	return s->filter < 0 || write(s->filter, "0", 1) == 1 ? 0 : -1;
}

/* The cgroup of this slurmstepd, below which the core makes those of jobs. */
static int own_devices(char *path, size_t len)
{
	FILE *f = fopen("/proc/self/cgroup", "re");
	char line[4096];
	int rc = -1;

	while (f && rc && fgets(line, sizeof(line), f)) {
		char *list = strchr(line, ':');
		char *rel = list ? strchr(list + 1, ':') : NULL;

		line[strcspn(line, "\n")] = '\0';
		if (!rel || strncmp(list, ":devices:", 9) != 0)
			continue;
		rel++;
		snprintf(path, len, "%s", strcmp(rel, "/") ? rel : "");
		rc = 0;
	}
	if (f)
		fclose(f);
	return rc;
}

int filter_remove(uint32_t job)
{
	/* The last process may still be on its way out of the kernel. */
	const struct timespec pause = {.tv_nsec = 2 * 1000 * 1000};
	char own[4096], path[sizeof(own) + 64];

	int rc;

	if (own_devices(own, sizeof(own)))
		return 0;
	snprintf(path, sizeof(path), DEVICES "%s/carme/job_%u", own,
		 (unsigned int) job);
	for (int i = 0; (rc = rmdir(path)) && errno == EBUSY && i < 100; i++)
		nanosleep(&pause, NULL);
	if (!rc || errno == ENOENT)
		return 0;
	if (errno != EBUSY)
		return -1;
	slurm_error("carme: remove %s: it is still in use", path);
	return 0;
}
