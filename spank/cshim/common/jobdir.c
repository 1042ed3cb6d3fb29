#include "jobdir.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

#include "sys.h"

static int open_dir(int at, const char *name, mode_t mode, int create)
{
	if (create && mkdirat(at, name, mode) && errno != EEXIST)
		return -1;
	return sys_open_beneath(at, name, O_RDONLY | O_DIRECTORY, 0);
}

/* It may be a file system of its own, of a size that users cannot exceed
 * (packaging/systemd/run-carme-jobs.mount). */
static int open_jobs(int carme, int create)
{
	if (create && mkdirat(carme, "jobs", 0700) && errno != EEXIST)
		return -1;
	return openat(carme, "jobs",
		      O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

int jobdir_open(uint32_t job, int create)
{
	char name[16];
	int run, carme = -1, jobs = -1, dir = -1;

	snprintf(name, sizeof(name), "%u", (unsigned int) job);
	run = open("/run", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (run >= 0)
		carme = open_dir(run, "carme", 0755, create);
	if (carme >= 0)
		jobs = open_jobs(carme, create);
	if (jobs >= 0)
		dir = open_dir(jobs, name, 0700, create);
	sys_close(&run);
	sys_close(&carme);
	sys_close(&jobs);
	return dir;
}
