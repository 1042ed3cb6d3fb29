#include "enter.h"

#include <errno.h>
#include <limits.h>
#include <linux/capability.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int enter_container(int userns, int mntns, struct lost_directory *lost,
		    const char **what)
{
	lost->error = 0;
	if (!getcwd(lost->path, sizeof(lost->path)))
		snprintf(lost->path, sizeof(lost->path), "/");
	*what = "join the container's user namespace";
	if (setns(userns, CLONE_NEWUSER))
		return -1;
	*what = "join the container's mounts";
	if (setns(mntns, CLONE_NEWNS))
		return -1;
	/* As slurmstepd does where there is no such directory: the task runs,
	 * and its user is told. */
	*what = "change directory in the container";
	if (!chdir(lost->path)) {
		lost->path[0] = '\0';
		return 0;
	}
	lost->error = errno;
	return chdir("/");
}

void enter_tell_lost(int fd, const struct lost_directory *lost)
{
	if (lost->path[0])
		dprintf(fd,
			"carme: couldn't chdir to %s in the container: %s: "
			"going to / instead; show the directory with "
			"--carme-bind=%s, or choose another one with "
			"--carme-workdir=DIR\n",
			lost->path, strerror(lost->error), lost->path);
}

/* Who joins a user namespace has all capabilities in it; nobody in a job is to
 * have any, and no program may hand them out. */
int enter_drop_privileges(void)
{
	struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct none[2];

	/* EPERM: without CAP_SETPCAP there is nothing in the bounding set that
	 * no_new_privs would not withhold anyway, and the first call tells. */
	for (int c = 0; c <= CAP_LAST_CAP; c++)
		if (prctl(PR_CAPBSET_DROP, c, 0, 0, 0) && errno != EINVAL) {
			if (errno != EPERM)
				return -1;
			break;
		}
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
		return -1;
	memset(none, 0, sizeof(none));
	if (syscall(SYS_capset, &h, none))
		return -1;
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}
