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

/* By the name under which the user knows it. */
static void refuse_directory(const char *dir)
{
	int error = errno;
	const char *own = getenv("CARME_WORKDIR");
	const char *name =
	    own && !strcmp(own, dir) ? "CARME_WORKDIR" : "--carme-workdir";

	if (error == ENOENT)
		fprintf(stderr,
			"carme: %s=%s: %s in the container; choose a directory "
			"that it has, or show this one with --carme-bind=%s\n",
			name, dir, strerror(error), dir);
	else
		fprintf(stderr,
			"carme: %s=%s: %s in the container; choose another "
			"directory\n",
			name, dir, strerror(error));
}

/* What to do about a command that does not run. The kernel says of a script
 * whose interpreter is missing, and of a program without its loader, what it
 * says of a file that is not there. */
static const char *advice(int error, const char *command)
{
	if (error == EACCES)
		return "make it executable (chmod +x), and its directories "
		       "accessible";
	if (error == ENOENT && strchr(command, '/') && !access(command, F_OK))
		return "it is there, but the interpreter in its first line, or "
		       "its loader, is not in the image";
	return "check the name, and that the image has it";
}

int main(int argc, char **argv)
{
	struct lost_directory lost;
	const char *what = "";
	int userns, mntns, error;

	if (argc < 5) {
		fputs("usage: carme-enter USERNS MNTNS WORKDIR COMMAND...\n",
		      stderr);
		return 1;
	}
	userns = atoi(argv[1]);
	mntns = atoi(argv[2]);
	if (enter_container(userns, mntns, &lost, &what))
		return refuse(what);
	close(userns);
	close(mntns);
	if (enter_drop_privileges())
		return refuse("drop capabilities");
	if (argv[3][0] && chdir(argv[3])) {
		/* The same for all tasks: one line is enough. */
		if (first_task())
			refuse_directory(argv[3]);
		return 1;
	}
	if (!argv[3][0] && first_task())
		enter_tell_lost(2, &lost);
	execvp(argv[4], argv + 4);
	error = errno;
	fprintf(stderr, "carme: run %s in the container: %s; %s\n", argv[4],
		strerror(error), advice(error, argv[4]));
	return error == ENOENT ? EXIT_EXEC : error;
}
