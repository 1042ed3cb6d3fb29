#include "sys.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int sys_pidfd_open(pid_t pid)
{
	return (int) syscall(SYS_pidfd_open, pid, 0);
}

int sys_pidfd_kill(int pidfd, int sig)
{
	return (int) syscall(SYS_pidfd_send_signal, pidfd, sig, NULL, 0);
}

int sys_close_range(unsigned int first, unsigned int last)
{
	return (int) syscall(SYS_close_range, first, last, 0);
}

int sys_open_beneath(int dirfd, const char *path, uint64_t flags, uint64_t mode)
{
	struct open_how how = {
	    .flags = flags | O_CLOEXEC,
	    .mode = mode,
	    .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS |
		       RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV,
	};

	return (int) syscall(SYS_openat2, dirfd, path, &how, sizeof(how));
}

int sys_device_allowed(int fd)
{
	/* Either will do: MIG's capability files are read-only. */
	return !syscall(SYS_faccessat2, fd, "", R_OK,
			AT_EMPTY_PATH | AT_EACCESS) ||
	       !syscall(SYS_faccessat2, fd, "", W_OK,
			AT_EMPTY_PATH | AT_EACCESS);
}

uint64_t sys_inode(int fd)
{
	struct stat st;

	return fstat(fd, &st) ? 0 : (uint64_t) st.st_ino;
}

uint64_t sys_path_inode(const char *path)
{
	struct stat st;

	return stat(path, &st) ? 0 : (uint64_t) st.st_ino;
}

/* linux/pidfd.h, since Linux 6.11. The first look of a process into /proc costs
 * ten times as much: the kernel makes a directory for it, and takes it away
 * when it ends. */
#ifndef PIDFD_GET_MNT_NAMESPACE
#define PIDFD_GET_MNT_NAMESPACE _IO(0xFF, 3)
#define PIDFD_GET_PID_NAMESPACE _IO(0xFF, 5)
#endif

uint64_t sys_own_inode(const char *kind)
{
	char path[64];
	uint64_t inode = 0;
	int self = sys_pidfd_open(getpid());
	int ns = self < 0 ? -1
			  : ioctl(self,
				  kind[0] == 'm' ? PIDFD_GET_MNT_NAMESPACE
						 : PIDFD_GET_PID_NAMESPACE,
				  0);

	if (ns >= 0)
		inode = sys_inode(ns);
	sys_close(&ns);
	sys_close(&self);
	if (inode)
		return inode;
	snprintf(path, sizeof(path), "/proc/self/ns/%s", kind);
	return sys_path_inode(path);
}

int64_t sys_now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t) t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

void sys_close(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}
