/*
 * /run/carme/jobs/ID: root's, and only through descriptors. The kernel names
 * the job's processes; the directory is how later steps find the anchor.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "common/ended.h"
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

int job_has_ended(uint32_t job)
{
	return ended_lately(CARME_ENDED, job);
}

int job_open(uint32_t job, int create)
{
	return jobdir_open(job, create);
}

/* flock(2) with a deadline; 0 or -1 with errno. */
static int lock(int dir, int64_t deadline_ms)
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

/* Has somebody removed it? */
static int is_gone(int dir)
{
	struct stat st;

	return fstat(dir, &st) || !st.st_nlink;
}

int job_open_locked(uint32_t job, int create, int64_t deadline_ms)
{
	for (;;) {
		int dir = job_open(job, create);
		int e;

		if (dir < 0)
			return -1;
		if (lock(dir, deadline_ms)) {
			e = errno;
			close(dir);
			errno = e;
			return -1;
		}
		if (!is_gone(dir))
			return dir;
		/* Before we had the lock another step had it, and took the
		 * directory for an earlier job's leftover. */
		close(dir);
	}
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

int job_remove(uint32_t job, int64_t deadline_ms)
{
	char path[64];
	int dir = job_open(job, 0);
	int e;

	if (dir < 0)
		return errno == ENOENT ? 0 : -1;
	/* Whose it is stays to the last: what there was no time for is known to
	 * be a leftover by it. */
	if (rmtree_contents(dir, JOB_EXTERN, deadline_ms) ||
	    (unlinkat(dir, JOB_EXTERN, 0) && errno != ENOENT)) {
		e = errno;
		close(dir);
		errno = e;
		return -1;
	}
	close(dir);
	snprintf(path, sizeof(path), CARME_JOBS "/%u", (unsigned int) job);
	return rmdir(path) && errno != ENOENT ? -1 : 0;
}

void job_discard(uint32_t job, int64_t deadline_ms)
{
	if (job_remove(job, deadline_ms))
		slurm_error("carme: remove " CARME_JOBS "/%u: %m",
			    (unsigned int) job);
}

static int note_end(uint32_t job)
{
	char path[64];

	/* Other steps of a job that has a sealed step only were plain, and may
	 * be so when it is requeued. */
	snprintf(path, sizeof(path), CARME_JOBS "/%u/" JOB_ASKED,
		 (unsigned int) job);
	return access(path, F_OK) ? 0 : ended_note(CARME_ENDED, job);
}

int job_end(uint32_t job, int64_t deadline_ms)
{
	return note_end(job) ? -1 : job_remove(job, deadline_ms);
}
