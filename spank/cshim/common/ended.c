#include "ended.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#include "sys.h"

/* A step that slurmd has started before it was told of the job's end takes
 * seconds to get here. Longer is for a job that lives on after its extern step,
 * because somebody killed that. In a week no cluster has used up its ids, so
 * that they could come again (slurm.conf(5), MaxJobId). */
#define KEPT_S (7 * 24 * 3600)

#define PLACES 4096

/* Two processes write to one place at a time only if their jobs share it. */
struct note {
	uint32_t job;
	uint32_t when; /* seconds since boot */
};

static uint32_t seconds(void)
{
	struct timespec t = {0};

	clock_gettime(CLOCK_BOOTTIME, &t);
	return (uint32_t) t.tv_sec;
}

static off_t place(uint32_t job)
{
	return (off_t) (job % PLACES * sizeof(struct note));
}

int ended_note(const char *file, uint32_t job)
{
	const struct note n = {.job = job, .when = seconds()};
	int fd = open(file, O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
	ssize_t written;

	if (fd < 0)
		return -1;
	errno = ENOSPC; /* of a write that is cut short */
	written = pwrite(fd, &n, sizeof(n), place(job));
	sys_close(&fd);
	return written == (ssize_t) sizeof(n) ? 0 : -1;
}

int ended_lately(const char *file, uint32_t job)
{
	int fd = open(file, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	struct note n = {0};
	ssize_t got;

	if (fd < 0)
		return 0;
	got = pread(fd, &n, sizeof(n), place(job));
	sys_close(&fd);
	return got == (ssize_t) sizeof(n) && job && n.job == job &&
	       seconds() - n.when < KEPT_S;
}
