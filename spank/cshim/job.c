/*
 * /run/carme/jobs/ID: root's, and only through descriptors. The kernel names
 * the job's processes; the directory is how later steps find the anchor.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "common/jobdir.h"
#include "common/rmtree.h"
#include "common/sys.h"
#include "plugin.h"

int job_is_sealed(uint32_t job)
{
	char path[64];

	snprintf(path, sizeof(path), CARME_JOBS "/%u", (unsigned int) job);
	return access(path, F_OK) == 0;
}

int job_open(uint32_t job, int create)
{
	return jobdir_open(job, create);
}

int job_lock(int dir, int64_t deadline_ms)
{
	/* flock() has no time limit of its own and slurmstepd's signals are not
	 * ours to use, hence the polling. */
	const struct timespec pause = {.tv_nsec = 1000 * 1000};

	while (flock(dir, LOCK_EX | LOCK_NB)) {
		if (errno != EWOULDBLOCK && errno != EINTR)
			return -1;
		if (sys_now_ms() > deadline_ms) {
			errno = ETIMEDOUT;
			return -1;
		}
		nanosleep(&pause, NULL);
	}
	return 0;
}

void job_unlock(int dir)
{
	flock(dir, LOCK_UN);
}

int job_connect(int dir)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -1;
	snprintf(addr.sun_path, sizeof(addr.sun_path),
		 "/proc/self/fd/%d/anchor.sock", dir);
	if (connect(fd, (struct sockaddr *) &addr, sizeof(addr))) {
		int e = errno;

		close(fd);
		errno = e;
		return -1;
	}
	return fd;
}

void job_remove(uint32_t job)
{
	char path[64];
	int dir = job_open(job, 0);

	if (dir < 0)
		return;
	if (rmtree_contents(dir))
		slurm_error("carme: empty " CARME_JOBS "/%u: %m",
			    (unsigned int) job);
	close(dir);
	snprintf(path, sizeof(path), CARME_JOBS "/%u", (unsigned int) job);
	if (rmdir(path) && errno != ENOENT)
		slurm_error("carme: remove %s: %m", path);
}
