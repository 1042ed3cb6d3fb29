/*
 * When slurmstepd of a step is killed with SIGKILL, nobody ends the step's
 * processes at once. The anchor sees its lease break and does, through the
 * cgroup that Slurm made for the step beside the anchor's own (step_extern).
 * The paths come from /proc/self/cgroup and are never built from a job id,
 * because Slurm 26.05 names the job's directory after its SLUID.
 */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "anchor.h"

#define DEPTH_MAX 6

static void kill_listed(int dir)
{
	int fd = openat(dir, "cgroup.procs", O_RDONLY | O_CLOEXEC);
	FILE *f = fd < 0 ? NULL : fdopen(fd, "r");
	int pid;

	if (!f) {
		if (fd >= 0)
			close(fd);
		return;
	}
	while (fscanf(f, "%d", &pid) == 1)
		if (pid > 1)
			kill(pid, SIGKILL);
	fclose(f);
}

static void kill_below(int dir, int depth)
{
	DIR *d;
	struct dirent *e;

	kill_listed(dir);
	d = fdopendir(dir);
	if (!d) {
		close(dir);
		return;
	}
	while (depth < DEPTH_MAX && (e = readdir(d))) {
		int sub;

		if (e->d_type != DT_DIR || e->d_name[0] == '.')
			continue;
		sub = openat(dirfd(d), e->d_name,
			     O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (sub >= 0)
			kill_below(sub, depth + 1);
	}
	closedir(d);
}

/* "5:freezer:/slurm/uid_1/job_2/step_extern" or "0::/…/step_extern/user/…":
 * where the hierarchy is mounted and the path up to the step's name. */
static int step_parent(const char *line, char *path, size_t len)
{
	const char *list = strchr(line, ':');
	const char *rel = list ? strchr(list + 1, ':') : NULL;
	const char *cut = rel ? strstr(rel, "/step_extern") : NULL;

	if (!cut)
		return -1;
	list++;
	rel++;
	if (list[0] == ':')
		snprintf(path, len, "/sys/fs/cgroup%.*s", (int) (cut - rel),
			 rel);
	else
		snprintf(path, len, "/sys/fs/cgroup/%.*s%.*s",
			 (int) (rel - 1 - list), list, (int) (cut - rel), rel);
	return 0;
}

void stepkill(const char *step)
{
	FILE *f = fopen("/proc/self/cgroup", "re");
	char line[4096];
	char path[4096];

	while (f && fgets(line, sizeof(line), f)) {
		char full[4200];
		int dir;

		line[strcspn(line, "\n")] = '\0';
		if (step_parent(line, path, sizeof(path)))
			continue;
		snprintf(full, sizeof(full), "%s/step_%s", path, step);
		dir = open(full, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (dir >= 0)
			kill_below(dir, 0);
	}
	if (f)
		fclose(f);
}
