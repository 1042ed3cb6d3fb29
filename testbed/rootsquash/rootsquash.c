/*
 * rootsquash SOURCE TARGET [FUSE options]: shows SOURCE at TARGET as an NFS
 * server with root_squash would. Every request is made with the file-system
 * uid, gid and groups of the process that asks, and root becomes nobody.
 *
 * A kernel without NFS cannot mount the real thing, and a FUSE mount without
 * allow_other is too strict: it compares real, effective and saved uid, and so
 * locks out slurmstepd, which opens a job's files as root with the user's
 * *effective* uid, and which NFS lets in.
 */
#define FUSE_USE_VERSION 31
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NOBODY 65534
#define MAX_GROUPS 256

/* "/proc/self/fd/N": SOURCE is held by a descriptor, so that its own mount can
 * be taken away and no path on the machine goes round this file system. */
static char source[32];

/*
 * Takes on the caller's identity for this thread alone (glibc's setgroups()
 * would change every thread). Each request sets it anew, so nothing has to be
 * put back, but root is needed in between: setgroups() asks for it.
 */
static void become_caller(void)
{
	struct fuse_context *caller = fuse_get_context();
	gid_t groups[MAX_GROUPS];
	int count = 0;

	setfsuid(0);
	if (caller->uid == 0) {
		syscall(SYS_setgroups, 0, NULL);
		setfsgid(NOBODY);
		setfsuid(NOBODY);
		return;
	}
	count = fuse_getgroups(MAX_GROUPS, groups);
	if (count < 0)
		count = 0;
	syscall(SYS_setgroups, count < MAX_GROUPS ? count : MAX_GROUPS, groups);
	setfsgid(caller->gid);
	setfsuid(caller->uid);
}

/* The path below SOURCE; the caller's identity is taken on with it. */
static const char *real_path(const char *path, char real[PATH_MAX])
{
	become_caller();
	if ((size_t) snprintf(real, PATH_MAX, "%s%s", source, path) >= PATH_MAX)
		real[0] = '\0'; /* ENOENT */
	return real;
}

static int result(long rc)
{
	return rc < 0 ? -errno : 0;
}

static void *do_init(struct fuse_conn_info *conn, struct fuse_config *config)
{
	(void) conn;
	/* Nothing is remembered from one caller for the next. */
	config->entry_timeout = config->attr_timeout =
	    config->negative_timeout = 0;
	config->use_ino = 1;
	config->nullpath_ok = 0;
	return NULL;
}

static int do_getattr(const char *path, struct stat *st,
		      struct fuse_file_info *file)
{
	char real[PATH_MAX];

	if (file)
		return result(fstat((int) file->fh, st));
	return result(lstat(real_path(path, real), st));
}

static int do_access(const char *path, int mode)
{
	char real[PATH_MAX];

	/* AT_EACCESS and a raw faccessat2: the answer must be for the fsuid,
	 * which access(2) would replace by the real uid, root's. */
	int fd = open(real_path(path, real), O_PATH | O_CLOEXEC);
	struct stat st;
	long rc;

	if (fd < 0)
		return -errno;
	rc = syscall(SYS_faccessat2, fd, "", mode, AT_EACCESS | AT_EMPTY_PATH);
	if (rc == 0 && (mode & X_OK) && fstat(fd, &st) == 0 &&
	    !(st.st_mode & 0111)) {
		errno = EACCES;
		rc = -1;
	}
	rc = result(rc);
	close(fd);
	return (int) rc;
}

static int do_readlink(const char *path, char *to, size_t size)
{
	char real[PATH_MAX];
	ssize_t n = readlink(real_path(path, real), to, size - 1);

	if (n < 0)
		return -errno;
	to[n] = '\0';
	return 0;
}

static int do_readdir(const char *path, void *buffer, fuse_fill_dir_t fill,
		      off_t offset, struct fuse_file_info *file,
		      enum fuse_readdir_flags flags)
{
	char real[PATH_MAX];
	DIR *dir = opendir(real_path(path, real));
	struct dirent *entry;

	(void) offset;
	(void) file;
	(void) flags;
	if (!dir)
		return -errno;
	while ((entry = readdir(dir))) {
		struct stat st = {.st_ino = entry->d_ino,
				  .st_mode = DTTOIF(entry->d_type)};

		if (fill(buffer, entry->d_name, &st, 0, 0))
			break;
	}
	closedir(dir);
	return 0;
}

static int do_mknod(const char *path, mode_t mode, dev_t dev)
{
	char real[PATH_MAX];

	return result(mknod(real_path(path, real), mode, dev));
}

static int do_mkdir(const char *path, mode_t mode)
{
	char real[PATH_MAX];

	return result(mkdir(real_path(path, real), mode));
}

static int do_unlink(const char *path)
{
	char real[PATH_MAX];

	return result(unlink(real_path(path, real)));
}

static int do_rmdir(const char *path)
{
	char real[PATH_MAX];

	return result(rmdir(real_path(path, real)));
}

static int do_symlink(const char *target, const char *path)
{
	char real[PATH_MAX];

	return result(symlink(target, real_path(path, real)));
}

static int do_rename(const char *from, const char *to, unsigned int flags)
{
	char real_from[PATH_MAX], real_to[PATH_MAX];

	real_path(from, real_from);
	real_path(to, real_to);
	return result(renameat2(AT_FDCWD, real_from, AT_FDCWD, real_to, flags));
}

static int do_link(const char *from, const char *to)
{
	char real_from[PATH_MAX], real_to[PATH_MAX];

	real_path(from, real_from);
	real_path(to, real_to);
	return result(link(real_from, real_to));
}

static int do_chmod(const char *path, mode_t mode, struct fuse_file_info *file)
{
	char real[PATH_MAX];

	(void) file;
	return result(chmod(real_path(path, real), mode));
}

static int do_chown(const char *path, uid_t uid, gid_t gid,
		    struct fuse_file_info *file)
{
	char real[PATH_MAX];

	(void) file;
	return result(lchown(real_path(path, real), uid, gid));
}

static int do_truncate(const char *path, off_t size,
		       struct fuse_file_info *file)
{
	char real[PATH_MAX];

	if (file)
		return result(ftruncate((int) file->fh, size));
	return result(truncate(real_path(path, real), size));
}

static int do_utimens(const char *path, const struct timespec times[2],
		      struct fuse_file_info *file)
{
	char real[PATH_MAX];

	(void) file;
	return result(utimensat(AT_FDCWD, real_path(path, real), times,
				AT_SYMLINK_NOFOLLOW));
}

static int keep(int fd, struct fuse_file_info *file)
{
	if (fd < 0)
		return -errno;
	file->fh = (uint64_t) fd;
	return 0;
}

static int do_open(const char *path, struct fuse_file_info *file)
{
	char real[PATH_MAX];

	return keep(open(real_path(path, real), file->flags | O_CLOEXEC), file);
}

static int do_create(const char *path, mode_t mode, struct fuse_file_info *file)
{
	char real[PATH_MAX];

	return keep(open(real_path(path, real),
			 file->flags | O_CREAT | O_CLOEXEC, mode),
		    file);
}

static int do_read(const char *path, char *buffer, size_t size, off_t offset,
		   struct fuse_file_info *file)
{
	ssize_t n = pread((int) file->fh, buffer, size, offset);

	(void) path;
	return n < 0 ? -errno : (int) n;
}

static int do_write(const char *path, const char *buffer, size_t size,
		    off_t offset, struct fuse_file_info *file)
{
	ssize_t n = pwrite((int) file->fh, buffer, size, offset);

	(void) path;
	return n < 0 ? -errno : (int) n;
}

static int do_statfs(const char *path, struct statvfs *st)
{
	char real[PATH_MAX];

	return result(statvfs(real_path(path, real), st));
}

static int do_fsync(const char *path, int data_only,
		    struct fuse_file_info *file)
{
	(void) path;
	return result(data_only ? fdatasync((int) file->fh)
				: fsync((int) file->fh));
}

static int do_flock(const char *path, struct fuse_file_info *file,
		    int operation)
{
	(void) path;
	return result(flock((int) file->fh, operation));
}

static int do_release(const char *path, struct fuse_file_info *file)
{
	(void) path;
	return result(close((int) file->fh));
}

static const struct fuse_operations operations = {
    .init = do_init,
    .getattr = do_getattr,
    .access = do_access,
    .readlink = do_readlink,
    .readdir = do_readdir,
    .mknod = do_mknod,
    .mkdir = do_mkdir,
    .unlink = do_unlink,
    .rmdir = do_rmdir,
    .symlink = do_symlink,
    .rename = do_rename,
    .link = do_link,
    .chmod = do_chmod,
    .chown = do_chown,
    .truncate = do_truncate,
    .utimens = do_utimens,
    .open = do_open,
    .create = do_create,
    .read = do_read,
    .write = do_write,
    .statfs = do_statfs,
    .fsync = do_fsync,
    .flock = do_flock,
    .release = do_release,
};

int main(int argc, char **argv)
{
	if (argc < 3) {
		fprintf(stderr,
			"usage: rootsquash SOURCE TARGET [FUSE options]\n");
		return EXIT_FAILURE;
	}
	int fd =
	    open(argv[1], O_PATH | O_DIRECTORY); /* kept through the fork */

	if (fd < 0) {
		perror(argv[1]);
		return EXIT_FAILURE;
	}
	snprintf(source, sizeof(source), "/proc/self/fd/%d", fd);
	/* The rest is fuse_main's, which takes argv[1] for the mount point. */
	argv[1] = argv[0];
	umask(0);
	return fuse_main(argc - 1, argv + 1, &operations, NULL);
}
