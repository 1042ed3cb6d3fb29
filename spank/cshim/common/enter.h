/*
 * enter.h - how a task goes from the job's mounts into its container, as the
 * user. It happens as late as possible, after Slurm's TaskProlog, so that the
 * admin's scripts run where their paths are.
 */
#ifndef CARME_ENTER_H
#define CARME_ENTER_H

/* Join the container; the working directory is found again by its name.
 * 0, or -1 with *what (and errno) set. */
int enter_container(int userns, int mntns, const char **what);

/* Give up all capabilities and the way to new ones. 0, or -1 with errno. */
int enter_drop_privileges(void);

#endif
