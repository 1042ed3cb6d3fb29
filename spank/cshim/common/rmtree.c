#include "rmtree.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "sys.h"

/* Deep trees are the user's doing; stop rather than run out of stack. */
#define DEPTH_MAX 64

static int remove_below(int dirfd, int depth);

static int remove_entry(int dirfd, const char *name, int depth)
{
	int sub, rc;

	if (!unlinkat(dirfd, name, 0) || errno == ENOENT)
		return 0;
	if (errno != EISDIR && errno != EPERM)
		return -1;
	sub = sys_open_beneath(dirfd, name, O_RDONLY | O_DIRECTORY, 0);
	if (sub < 0)
		return -1;
	rc = remove_below(sub, depth + 1);
	close(sub);
	if (unlinkat(dirfd, name, AT_REMOVEDIR) && errno != ENOENT)
		return -1;
	return rc;
}

static int remove_below(int dirfd, int depth)
{
	/* A descriptor of its own: closedir() closes it. */
	int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;
	int rc = 0;

	if (!d || depth > DEPTH_MAX) {
		if (d)
			closedir(d);
		else
			sys_close(&fd);
		return -1;
	}
	while ((e = readdir(d))) {
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		if (remove_entry(dirfd, e->d_name, depth))
			rc = -1;
	}
	closedir(d);
	return rc;
}

int rmtree_contents(int dirfd)
{
	return remove_below(dirfd, 0);
}
