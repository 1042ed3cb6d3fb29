#include "rmtree.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sys.h"

/* Deep trees are the user's doing, and must go too: what lies deeper is moved
 * up into the top directory and removed from there, in a further round. */
#define DEPTH_MAX 64

struct removal {
	int top;
	unsigned long moved; /* directories, so far */
	unsigned long names; /* tried for them */
	const char *keep;    /* an entry of the top directory, or NULL */
	int64_t deadline;
};

static int remove_below(struct removal *r, int dirfd, int depth);

static int late(const struct removal *r)
{
	if (sys_now_ms() <= r->deadline)
		return 0;
	errno = ETIMEDOUT;
	return 1;
}

static int move_up(struct removal *r, int dirfd, const char *name)
{
	char to[64];
	int rc;

	do {
		snprintf(to, sizeof(to), ".carme-removed-%lu", r->names++);
		rc = renameat2(dirfd, name, r->top, to, RENAME_NOREPLACE);
	} while (rc && errno == EEXIST);
	r->moved += !rc;
	return rc;
}

/* The user may have kept it open, and would fill it again. Who is not root
 * removes only what is his own, and nobody else's to fill. */
static void take(int dir)
{
	struct stat st;

	if (!fstat(dir, &st) && st.st_uid && !fchown(dir, 0, 0))
		fchmod(dir, 0700);
}

static int remove_entry(struct removal *r, int dirfd, const char *name,
			int depth)
{
	int sub, rc;

	if (!unlinkat(dirfd, name, 0) || errno == ENOENT)
		return 0;
	if (errno != EISDIR && errno != EPERM)
		return -1;
	sub = sys_open_beneath(dirfd, name, O_RDONLY | O_DIRECTORY, 0);
	if (sub < 0)
		return -1;
	take(sub);
	rc = depth < DEPTH_MAX ? remove_below(r, sub, depth + 1)
			       : move_up(r, dirfd, name);
	close(sub);
	if (unlinkat(dirfd, name, AT_REMOVEDIR) && errno != ENOENT)
		return -1;
	return rc;
}

static int remove_below(struct removal *r, int dirfd, int depth)
{
	/* A descriptor of its own: closedir() closes it. */
	int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;
	int rc = 0;

	if (!d) {
		sys_close(&fd);
		return -1;
	}
	while (!late(r) && (e = readdir(d))) {
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		if (!depth && r->keep && !strcmp(e->d_name, r->keep))
			continue;
		if (remove_entry(r, dirfd, e->d_name, depth))
			rc = -1;
	}
	closedir(d);
	return late(r) ? -1 : rc;
}

int rmtree_contents(int dirfd, const char *keep, int64_t deadline_ms)
{
	struct removal r = {
	    .top = dirfd, .keep = keep, .deadline = deadline_ms};
	unsigned long before;
	int rc;

	do {
		before = r.moved;
		rc = remove_below(&r, dirfd, 0);
	} while (r.moved > before && !late(&r));
	return rc;
}
