/* The note of jobs that have ended on a node. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "../common/ended.h"
#include "tap.h"

/* Make a job's note look as old as that, in seconds. */
static int age(const char *file, uint32_t job, uint32_t by)
{
	int fd = open(file, O_RDWR);
	off_t at = (off_t) (job % 4096 * 8 + 4);
	uint32_t when = 0;
	int rc = pread(fd, &when, sizeof(when), at) == sizeof(when);

	when -= by;
	rc = rc && pwrite(fd, &when, sizeof(when), at) == sizeof(when);
	close(fd);
	return rc;
}

int main(void)
{
	char dir[] = "/tmp/carme-ended-XXXXXX";
	char file[64], link[64];
	struct stat st;

	if (!mkdtemp(dir))
		return 1;
	snprintf(file, sizeof(file), "%s/ended", dir);
	snprintf(link, sizeof(link), "%s/link", dir);
	ok(!ended_lately(file, 7), "where no job has ended there is no file");
	ok(!ended_note(file, 7) && ended_lately(file, 7),
	   "a job that has ended is known");
	ok(!ended_lately(file, 8) && !ended_lately(file, 7 + 4096),
	   "others are not, nor one with the same place");
	ok(!ended_lately(file, 0), "an empty place is no job's");
	ok(!ended_note(file, 7 + 4096) && ended_lately(file, 7 + 4096) &&
	       !ended_lately(file, 7),
	   "a later job takes the place");
	for (uint32_t job = 1; job <= 100000; job++)
		ended_note(file, job);
	ok(!stat(file, &st) && st.st_size <= 32768 &&
	       (st.st_mode & 07777) == 0600,
	   "it does not grow, and is root's alone");
	ok(age(file, 100000, 6 * 86400) && ended_lately(file, 100000),
	   "it is kept for a week");
	ok(age(file, 100000, 86400) && !ended_lately(file, 100000),
	   "and no longer: ids may come again");
	ok(!symlink(file, link) && ended_note(link, 3) == -1 &&
	       !ended_lately(link, 99999),
	   "a link is not followed");
	ok(ended_note("/nonexistent/ended", 3) == -1,
	   "what cannot be written is said");
	unlink(link);
	unlink(file);
	rmdir(dir);
	return tap_end();
}
