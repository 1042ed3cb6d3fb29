/* Steps that start at the same time, and a directory that one of them removes.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* The directory of jobs is another one here. */
#define jobdir_open jobdir_of_the_test
#include "../common/ended.h"
#include "../common/jobdir.h"
#include "../plugin.h"
#undef CARME_JOBS
#define CARME_JOBS "."
#undef CARME_ENDED
#define CARME_ENDED "ended"
#include "../job.c"
#include "stub.h"
#include "tap.h"

static int top = -1;

int jobdir_of_the_test(uint32_t job, int create)
{
	(void) job;
	if (create && mkdirat(top, "7", 0700) && errno != EEXIST)
		return -1;
	return sys_open_beneath(top, "7", O_RDONLY | O_DIRECTORY, 0);
}

static void wait_a_moment(void)
{
	const struct timespec moment = {.tv_nsec = 100 * 1000 * 1000};

	nanosleep(&moment, NULL);
}

/* A step that waits for the lock while another one, which has it, removes the
 * directory. The status of the waiting one. */
static int removed_meanwhile(int create)
{
	int dir = job_open_locked(7, 1, sys_now_ms() + 1000);
	int status = 0;
	pid_t pid = fork();

	if (pid == 0) {
		int mine;

		close(dir); /* the lock is the parent's */
		mine = job_open_locked(7, create, sys_now_ms() + 10000);
		if (mine < 0)
			_exit(errno == ENOENT ? 2 : 3);
		_exit(openat(mine, "f", O_WRONLY | O_CREAT, 0600) < 0);
	}
	wait_a_moment();
	unlinkat(top, "7", AT_REMOVEDIR);
	close(dir);
	waitpid(pid, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* Of a job that was submitted with --carme. */
static void ends(void)
{
	close(job_open(7, 1));
	close(openat(top, "7/" JOB_ASKED, O_WRONLY | O_CREAT, 0600));
	mkdirat(top, "ended", 0700);
	ok(job_end(7, sys_now_ms() + 1000) && !faccessat(top, "7", F_OK, 0),
	   "a job whose end cannot be noted keeps its directory");
	unlinkat(top, "ended", AT_REMOVEDIR);
	ok(!job_end(7, sys_now_ms() + 1000) && faccessat(top, "7", F_OK, 0) &&
	       job_has_ended(7),
	   "and when it goes, the end is known");
	ok(!job_end(7, sys_now_ms() + 1000), "once gone it stays gone");
	unlinkat(top, "ended", 0);
}

int main(void)
{
	char path[] = "/tmp/carme-job-XXXXXX";
	int dir;

	top = mkdtemp(path) ? open(path, O_RDONLY | O_DIRECTORY) : -1;
	ok(top >= 0 && !fchdir(top), "a place for it");
	ok(job_open_locked(7, 0, sys_now_ms()) < 0 && errno == ENOENT,
	   "a job that is not sealed has no directory");
	ok(removed_meanwhile(1) == 0,
	   "a step to be sealed gets a directory that is there");
	unlinkat(top, "7/f", 0);
	unlinkat(top, "7", AT_REMOVEDIR);
	ok(removed_meanwhile(0) == 2,
	   "and a plain one learns that there is none");
	dir = job_open_locked(7, 1, sys_now_ms());
	ok(dir >= 0 && job_open_locked(7, 1, sys_now_ms() + 50) < 0 &&
	       errno == ETIMEDOUT,
	   "nobody waits for ever");
	job_unlock(dir);
	close(dir);
	dir = job_open_locked(7, 1, sys_now_ms() + 50);
	ok(dir >= 0, "nor longer than it takes");
	close(dir);
	unlinkat(top, "7", AT_REMOVEDIR);
	ends();
	close(top);
	rmdir(path);
	return tap_end();
}
