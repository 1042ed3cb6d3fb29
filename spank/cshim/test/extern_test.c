/* Who the extern step is, told from proc(5) stat. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../extern.c"
#include "stub.h"
#include "tap.h"

static int ends, filters;

int job_is_sealed(uint32_t job)
{
	return job == 7;
}

int job_open(uint32_t job, int create)
{
	(void) job;
	(void) create;
	return -1;
}

/* Each refuses once. */
int job_end(uint32_t job, int64_t deadline_ms)
{
	(void) deadline_ms;
	errno = EACCES;
	return job == 7 && ends++ > 0 ? 0 : -1;
}

int filter_remove(uint32_t job)
{
	errno = EACCES;
	return job == 7 && filters++ ? 0 : -1;
}

/* Not what a test links against, so extern_open() must find it missing. */
static void without_slurm(void)
{
	struct extern_step e;
	const char *why = NULL;

	ok(extern_open(1, &e, &why) == -1 && e.sock == -1,
	   "a Slurm without the calls is an error");
	ok(why && strstr(why, "slurm_stepd_connect"), "and the error says so");
	ok(extern_adopt(&e, getpid()) == -1, "nothing can be adopted");
}

static unsigned long long own_start(void)
{
	/* Field 22 the other way round: counted from the end of the command. */
	unsigned long long t = 0;
	FILE *f = fopen("/proc/self/stat", "re");
	char text[2048] = "";

	if (f && fgets(text, sizeof(text), f))
		sscanf(strrchr(text, ')') + 2,
		       "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u "
		       "%*d %*d %*d %*d %*d %*d %llu",
		       &t);
	if (f)
		fclose(f);
	return t;
}

static int dir_is(const char *line, const char *want)
{
	char path[256] = "";

	return cgroup_dir(line, path, sizeof(path))
		   ? !want
		   : want && !strcmp(path, want);
}

static void cgroups(void)
{
	struct extern_step e = {.pid = getpid()};
	struct msg_fds fds;
	struct record r;
	char line[512];

	ok(dir_is("4:memory:/slurm/job_2/step_extern/task_0",
		  "/sys/fs/cgroup/memory/slurm/job_2/step_extern/task_0"),
	   "a cgroup of version 1");
	ok(dir_is("0::/s/job_2/step_extern/user/task_special",
		  "/sys/fs/cgroup/s/job_2/step_extern/user/task_special"),
	   "a cgroup of version 2");
	ok(dir_is("4:memory:/slurm/job_2/step_0", NULL) && dir_is("", NULL) &&
	       dir_is("4:memory", NULL),
	   "no cgroup of an extern step");
	memset(line, 'x', sizeof(line));
	memcpy(line, "0::/step_extern/", 16);
	line[sizeof(line) - 1] = '\0';
	ok(dir_is(line, NULL), "a path that is too long is refused");
	ok(join_cgroups(getpid(), getpid()) == -1,
	   "beside a process of no extern step there is nothing to join");
	ok(!beside(getpid(), getpid()) && !beside(-1, getpid()),
	   "and nobody is beside it");
	record_init(&r);
	extern_places(&e, &r, &fds);
	ok(fds.n == 0 && !record_get(&r, "place"),
	   "an extern step without a process has no places");
	record_free(&r);
	ok(has_line("1:a:/x\n2:b:/y\n", "2:b:/y") &&
	       has_line("1:a:/x\n2:b:/y", "2:b:/y") &&
	       has_line("1:a:/x\n", "1:a:/x"),
	   "a line is found wherever it stands");
	ok(!has_line("12:b:/y\n", "2:b:/y") &&
	       !has_line("2:b:/y/task_0\n", "2:b:/y") &&
	       !has_line("", "2:b:/y"),
	   "but not a part of one");
}

static void mark(int dir, const char *text)
{
	int fd = openat(dir, JOB_EXTERN, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	ok(write(fd, text, strlen(text)) == (ssize_t) strlen(text), "a mark");
	close(fd);
}

/* Of a job that was submitted with --carme and has not run here. Without Slurm
 * no extern step is found. */
static void awaits_a_step(int dir)
{
	time_t now = time(NULL);
	struct timespec minutes[2] = {{.tv_sec = now - 1800},
				      {.tv_sec = now - 1800}};
	struct timespec hours[2] = {{.tv_sec = now - 7200},
				    {.tv_sec = now - 7200}};
	int fd = openat(dir, JOB_ASKED, O_WRONLY | O_CREAT, 0600);

	close(fd);
	ok(!futimens(dir, minutes) && !is_leftover(7, dir),
	   "a Prolog may take half an hour");
	ok(!futimens(dir, hours) && is_leftover(7, dir), "but not two");
	unlinkat(dir, JOB_ASKED, 0);
}

static void leftovers(void)
{
	struct timespec old[2] = {{.tv_sec = 1}, {.tv_sec = 1}};
	char top[] = "/tmp/carme-extern-XXXXXX", text[64];
	int dir = mkdtemp(top) ? open(top, O_RDONLY | O_DIRECTORY) : -1;

	ok(!is_leftover(7, dir),
	   "a young directory without a mark is a set-up");
	ok(!futimens(dir, old) && is_leftover(7, dir),
	   "an old one is a leftover");
	mark(dir, "1 1");
	ok(is_leftover(7, dir), "another process has that number now");
	snprintf(text, sizeof(text), "%d %llu", (int) getpid(),
		 start_time(getpid()));
	mark(dir, text);
	ok(!futimens(dir, old) && !is_leftover(7, dir), "the process is alive");
	mark(dir, "rubbish\n\n\n\n\n\n\n\n\n\n\n\n\n");
	ok(!is_leftover(7, dir), "what cannot be read is left alone");
	unlinkat(dir, JOB_EXTERN, 0);
	awaits_a_step(dir);
	close(dir);
	rmdir(top);
}

static void end(void)
{
	int errors = stub_errors;

	stub_job = 8;
	extern_end(NULL);
	ok(!ends && !filters, "a plain job leaves nothing to remove");
	stub_job = 7;
	extern_end(NULL);
	ok(filters == 3 && ends == 2,
	   "a sealed one's device cgroup and directory go, at once or later");
	ok(stub_errors == errors, "and nobody hears of what was mended");
	ends = -100;
	extern_end(NULL);
	ok(ends == -50 && stub_errors == errors + 1, "what stays is told once");
	stub_job = 0;
}

/* Its other children have ended, and nobody has waited for them. */
static void sleepers(void)
{
	struct extern_step e = {.pid = getpid()};
	pid_t dead = fork(), alive;
	siginfo_t info;

	if (!dead)
		_exit(0);
	waitid(P_PID, (id_t) dead, &info, WEXITED | WNOWAIT);
	ok(sleeper(&e) == -1, "a child that has ended is not the sleeper");
	alive = fork();
	while (!alive)
		pause();
	ok(sleeper(&e) == alive, "one that lives is, however late it is");
	kill(alive, SIGKILL);
	waitpid(dead, NULL, 0);
	waitpid(alive, NULL, 0);
	ok(sleeper(&e) == -1, "without children there is none");
}

int main(void)
{
	unsigned long long t = start_time(getpid());
	struct extern_step e = {.pid = 42, .started = 99};
	char text[64];

	ok(t && t == own_start(), "start time of a process");
	prctl(PR_SET_NAME, "a) 1 2 3 (b", 0, 0, 0);
	ok(start_time(getpid()) == t, "whatever its name is");
	ok(start_time(-1) == 0, "none for no process");
	extern_identity(&e, text, sizeof(text));
	ok(!strcmp(text, "42 99"), "pid and start time name the step");
	ok(!in_extern(getpid()), "this test is in no extern step");
	without_slurm();
	cgroups();
	sleepers();
	leftovers();
	end();
	return tap_end();
}
