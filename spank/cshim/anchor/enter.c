/*
 * carme-enter: what slurmstepd executes in place of a task's command when the
 * step has an image: joins the container and becomes the command. Same process
 * id, so that cgroups, signals, ptys and accounting do not notice.
 *
 *   carme-enter USERNS MNTNS WORKDIR COMMAND [ARGUMENT...]
 *
 * The first two are descriptors that the plugin left open; WORKDIR may be
 * empty. Messages and exit codes are those of slurmstepd (task.c:exec_task).
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../common/enter.h"

#define EXIT_EXEC 2 /* what slurmstepd ends with when execve() fails */

static int refuse(const char *what)
{
	fprintf(stderr, "carme: %s: %s\n", what, strerror(errno));
	return 1;
}

static int first_task(void)
{
	const char *id = getenv("SLURM_LOCALID");

	return !id || !strcmp(id, "0");
}

int main(int argc, char **argv)
{
	const char *what = "";
	int userns, mntns, error;

	if (argc < 5) {
		fputs("usage: carme-enter USERNS MNTNS WORKDIR COMMAND...\n",
		      stderr);
		return 1;
	}
	userns = atoi(argv[1]);
	mntns = atoi(argv[2]);
	if (enter_container(userns, mntns, &what))
		return refuse(what);
	close(userns);
	close(mntns);
	if (enter_drop_privileges())
		return refuse("drop capabilities");
	if (argv[3][0] && chdir(argv[3])) {
		/* The same for all tasks: one line is enough. */
		if (first_task())
			fprintf(stderr,
				"carme: --carme-workdir=%s: %s in the "
				"container; choose a directory that it has\n",
				argv[3], strerror(errno));
		return 1;
	}
	execvp(argv[4], argv + 4);
	error = errno;
	fprintf(stderr,
		"carme: run %s in the container: %s; check the name, and that "
		"the image has it\n",
		argv[4], strerror(error));
	return error == ENOENT ? EXIT_EXEC : error;
}
