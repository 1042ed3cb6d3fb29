/* From a line of /proc/self/cgroup to the directory of the job. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "../anchor/stepkill.c"
#include "tap.h"

static int parent_is(const char *line, const char *want)
{
	char path[4096] = "";

	if (step_parent(line, path, sizeof(path)))
		return !want;
	if (want && strcmp(path, want))
		printf("# got %s\n", path);
	return want && !strcmp(path, want);
}

static void paths(void)
{
	ok(parent_is("5:freezer:/slurm/uid_1/job_2/step_extern",
		     "/sys/fs/cgroup/freezer/slurm/uid_1/job_2"),
	   "version 1");
	ok(parent_is("4:cpu,cpuacct:/slurm/job_2/step_extern/task_0",
		     "/sys/fs/cgroup/cpu,cpuacct/slurm/job_2"),
	   "controllers that share a hierarchy");
	ok(parent_is("0::/system.slice/slurmstepd.scope/job_7/step_extern/user/"
		     "task_special",
		     "/sys/fs/cgroup/system.slice/slurmstepd.scope/job_7"),
	   "version 2");
	ok(parent_is("0::/s/s88NM80ABC/step_extern/user",
		     "/sys/fs/cgroup/s/s88NM80ABC"),
	   "a job named after its SLUID");
	ok(parent_is("0::/user.slice", NULL), "not in an extern step");
	ok(parent_is("", NULL) && parent_is("5", NULL) &&
	       parent_is("5:freezer", NULL) && parent_is(":::", NULL),
	   "no lines of that form");
}

/* A directory that looks like a step's, with one process in its depth. */
static void killing(void)
{
	char top[] = "/tmp/carme-stepkill-XXXXXX";
	char path[256], list[512];
	pid_t pid = fork();
	int status = 0, fd;
	FILE *f;

	if (pid == 0) {
		pause();
		_exit(0);
	}
	if (!mkdtemp(top))
		return;
	snprintf(path, sizeof(path), "%s/user", top);
	mkdir(path, 0700);
	snprintf(list, sizeof(list), "%s/cgroup.procs", path);
	f = fopen(list, "w");
	fprintf(f, "0\n1\n-1\n%d\n", (int) pid);
	fclose(f);
	fd = open(top, O_RDONLY | O_DIRECTORY);
	kill_below(fd, 0);
	ok(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) &&
	       WTERMSIG(status) == SIGKILL,
	   "every process is killed, and no group of them");
	unlink(list);
	rmdir(path);
	rmdir(top);
}

int main(void)
{
	paths();
	killing();
	return tap_end();
}
