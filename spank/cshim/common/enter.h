/*
 * enter.h - how a task goes from the job's mounts into its container, as the
 * user. It happens as late as possible, after Slurm's TaskProlog, so that the
 * admin's scripts run where their paths are.
 */
#ifndef CARME_ENTER_H
#define CARME_ENTER_H

#include <limits.h>

/* A working directory that the container does not show, and why: errno. */
struct lost_directory {
	char path[PATH_MAX]; /* "" if none is lost */
	int error;
};

/* Join the container; the working directory is found again by its name. Where
 * it is not there, the task is in / and *lost says what it was. 0, or -1 with
 * *what (and errno) set. */
int enter_container(int userns, int mntns, struct lost_directory *lost,
		    const char **what);

/* Tell the user of it, on fd; nothing if none is lost. */
void enter_tell_lost(int fd, const struct lost_directory *lost);

/* Give up all capabilities and the way to new ones. 0, or -1 with errno. */
int enter_drop_privileges(void);

#endif
