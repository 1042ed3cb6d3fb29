/*
 * sys.h - the few system calls that glibc does not wrap everywhere, and small
 * helpers around file descriptors. Everything a root process opens goes through
 * sys_open_beneath(), which follows no symbolic link and leaves no mount.
 */
#ifndef CARME_SYS_H
#define CARME_SYS_H

#include <stdint.h>
#include <sys/types.h>

int sys_pidfd_open(pid_t pid);
int sys_pidfd_kill(int pidfd, int sig);
int sys_close_range(unsigned int first, unsigned int last);

/*
 * openat2(2) with RESOLVE_BENEATH|NO_SYMLINKS|NO_MAGICLINKS|NO_XDEV under the
 * directory dirfd. A descriptor, or -1 with errno.
 */
int sys_open_beneath(int dirfd, const char *path, uint64_t flags,
		     uint64_t mode);

/* Can the caller read and write the device behind an O_PATH descriptor?
 * faccessat2(2) with AT_EMPTY_PATH: the same kernel check as open(2), device
 * cgroup included, without starting a driver. 1 yes, 0 no. */
int sys_device_allowed(int fd);

/* Inode number of an open namespace (namespaces(7)); 0 on error. */
uint64_t sys_inode(int fd);
uint64_t sys_path_inode(const char *path);
/* The same of this process's own; kind is "pid" or "mnt". */
uint64_t sys_own_inode(const char *kind);

/* Monotonic milliseconds, for deadlines. */
int64_t sys_now_ms(void);

/* close(fd) when it is open, and forget it. */
void sys_close(int *fd);

#endif
