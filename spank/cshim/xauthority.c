/*
 * srun --x11: the extern step makes TmpFS/.Xauthority-XXXXXX on the host, and
 * names it in XAUTHORITY. The job's /tmp is its own, so the file is carried
 * over. The variable is the user's to set, hence only a file of that form, made
 * for that user, in /tmp itself, is read (mgr.c:_spawn_job_container).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/sys.h"
#include "plugin.h"

#define PREFIX "/tmp/.Xauthority-"
#define COOKIE_MAX (64 * 1024)

static int open_in_tmp(const char *name, uint64_t flags, uint64_t mode)
{
	int tmp = open("/tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int fd = tmp < 0 ? -1 : sys_open_beneath(tmp, name, flags, mode);

	sys_close(&tmp);
	return fd;
}

void xauthority_read(struct xauthority *x, const char *path, uid_t uid)
{
	const char *name = path + strlen("/tmp/");
	struct stat st;
	ssize_t n;
	int fd;

	if (strncmp(path, PREFIX, strlen(PREFIX)) != 0 || strchr(name, '/') ||
	    strlen(name) >= sizeof(x->name))
		return;
	fd = open_in_tmp(name, O_RDONLY | O_NONBLOCK, 0);
	if (fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode) ||
	    st.st_uid != uid || st.st_size > COOKIE_MAX)
		goto done;
	x->bytes = malloc(COOKIE_MAX);
	if (!x->bytes)
		goto done;
	n = read(fd, x->bytes, COOKIE_MAX);
	if (n <= 0)
		goto done;
	x->len = (size_t) n;
	snprintf(x->name, sizeof(x->name), "%s", name);
done:
	sys_close(&fd);
}

void xauthority_write(const struct xauthority *x, uid_t uid, gid_t gid)
{
	int fd;

	if (!x->name[0])
		return;
	/* Another task or step of the job may have been first. */
	fd = open_in_tmp(x->name, O_WRONLY | O_CREAT | O_EXCL, 0600);
	if (fd < 0)
		return;
	if (fchown(fd, uid, gid) ||
	    write(fd, x->bytes, x->len) != (ssize_t) x->len)
		slurm_error("carme: carry the X11 cookie into the job: %m");
	close(fd);
}
