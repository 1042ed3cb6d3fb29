#include "extern.h"

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <slurm/slurm.h>

#include "common/sys.h"
#include "plugin.h"

/* src/common/stepd_api.h, unchanged from 22.05 to 26.05 but for the fields of
 * slurm_step_id_t, which slurm.h declares. */
typedef int connect_f(const char *directory, const char *nodename,
		      slurm_step_id_t *step, uint16_t *protocol);
typedef int add_pid_f(int fd, uint16_t protocol, pid_t pid);
#if SLURM_VERSION_NUMBER < SLURM_VERSION_NUM(25, 11, 0)
typedef int namespace_f(int fd, uint16_t protocol);
#endif

/* Milliseconds for what other jobs have left, while a job is set up, and for
 * what a job leaves, while the node waits for its end: Slurm drains a node
 * where that takes too long (UnkillableStepTimeout, a minute). What is left
 * then goes with a later sweep. */
#define SWEEP_MS 500
#define REMOVE_MS 5000

static const char foreign_namespaces[] =
    "Slurm's namespace/linux plugin gives this job namespaces of its own, "
    "which --carme cannot build upon; ask the admin to use namespace/tmpfs "
    "instead";

/* proc(5) stat, behind the command's closing parenthesis: " S 1 …", or NULL. */
static const char *read_stat(pid_t pid, char *text, size_t len)
{
	const char *end;
	char path[64];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int) pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, len - 1);
	sys_close(&fd);
	text[n > 0 ? n : 0] = '\0';
	end = strrchr(text, ')');
	return end ? end + 1 : NULL;
}

static unsigned long long start_time(pid_t pid)
{
	char text[1024];
	const char *p = read_stat(pid, text, sizeof(text));

	/* Field 22; the state is the third. */
	for (int field = 3; p && field < 22; field++)
		p = strchr(p + 1, ' ');
	return p ? strtoull(p, NULL, 10) : 0;
}

static int is_zombie(pid_t pid)
{
	char text[1024];
	const char *state = read_stat(pid, text, sizeof(text));

	return !state || state[1] == 'Z' || state[1] == 'X';
}

/* SlurmdSpoolDir with its %n and %h filled in is nowhere to be asked for; the
 * sockets of all steps lie in it. */
static void name_spool(struct extern_step *e)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	socklen_t len = sizeof(a);
	char *slash;

	if (getpeername(e->sock, (struct sockaddr *) &a, &len))
		return;
	snprintf(e->spool, sizeof(e->spool), "%.*s",
		 (int) sizeof(a.sun_path) - 1, a.sun_path);
	slash = strrchr(e->spool, '/');
	if (!slash)
		return;
	*slash = '\0';
	/* NODE_JOB.STEP (src/common/stepd_api.c) */
	snprintf(e->node, sizeof(e->node), "%s", slash + 1);
	slash = strrchr(e->node, '_');
	if (slash)
		*slash = '\0';
}

int extern_open(uint32_t job, struct extern_step *e, const char **why)
{
	slurm_step_id_t id;
	struct ucred u = {0};
	socklen_t len = sizeof(u);
	connect_f *stepd_connect;

	memset(e, 0, sizeof(*e));
	e->sock = -1;
	*(void **) &stepd_connect = dlsym(RTLD_DEFAULT, "slurm_stepd_connect");
	*why = "this Slurm offers no slurm_stepd_connect(); install the Carme "
	       "package built for it";
	if (!stepd_connect)
		return -1;
	memset(&id, 0, sizeof(id));
#if SLURM_VERSION_NUMBER >= SLURM_VERSION_NUM(26, 5, 0)
	id.sluid = NO_VAL64;
#endif
	id.job_id = job;
	id.step_id = SLURM_EXTERN_CONT;
	id.step_het_comp = NO_VAL;
	*why = "the job has no extern step on this node; ask the admin to set "
	       "PrologFlags=Contain in slurm.conf";
	e->sock = stepd_connect(NULL, NULL, &id, &e->protocol);
	if (e->sock < 0)
		return -1;
	/* The extern step's own sleeper would keep it, and with it a thread of
	 * slurmstepd's that answers. */
	fcntl(e->sock, F_SETFD, FD_CLOEXEC);
	if (getsockopt(e->sock, SOL_SOCKET, SO_PEERCRED, &u, &len) ||
	    u.uid != 0 || u.pid <= 0) {
		/* It has no number here: this slurmstepd is in namespaces that
		 * the extern step's is not in. */
		*why = foreign_namespaces;
		extern_close(e);
		return -1;
	}
	e->pid = u.pid;
	e->started = start_time(u.pid);
	name_spool(e);
	return 0;
}

/* The lines of proc(5) cgroup. 0 or -1. */
static int read_cgroups(pid_t pid, char *text, size_t len)
{
	char path[64];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/cgroup", (int) pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, len - 1);
	sys_close(&fd);
	text[n > 0 ? n : 0] = '\0';
	return n > 0 ? 0 : -1;
}

/* proc(5): the child of the main thread, which forked it; or -1. What has
 * started an early set-up may lie before it, unburied (contain_spank). */
static pid_t sleeper(const struct extern_step *e)
{
	char path[64], text[256];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", (int) e->pid,
		 (int) e->pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	sys_close(&fd);
	if (n <= 0)
		return -1;
	text[n] = '\0';
	for (char *at = text, *end; *at; at = end) {
		pid_t pid = (pid_t) strtol(at, &end, 10);

		if (end == at)
			break;
		if (!is_zombie(pid))
			return pid;
	}
	return -1;
}

/* "4:memory:/slurm/…/step_extern/task_0", or "0::/…" for version 2: the
 * directory. 0, or -1 where the line is not the extern step's. */
static int cgroup_dir(const char *line, char *path, size_t len)
{
	const char *list = strchr(line, ':');
	const char *rel = list ? strchr(list + 1, ':') : NULL;
	int n;

	if (!rel || !strstr(rel, "/step_extern"))
		return -1;
	list++;
	n = snprintf(path, len, "/sys/fs/cgroup%s%.*s%s",
		     list == rel ? "" : "/", (int) (rel - list), list, rel + 1);
	return (n > 0 && (size_t) n < len) ? 0 : -1;
}

/* Version 1 has a list of threads in each of its directories, version 2 takes
 * the directory itself (anchor/places.c). */
static int open_place(const char *line, struct record *kinds)
{
	int v1 = strncmp(line, "0::", 3) != 0;
	char path[4096], tasks[sizeof(path) + 8];

	if (cgroup_dir(line, path, sizeof(path)))
		return -1;
	snprintf(tasks, sizeof(tasks), "%s/tasks", path);
	record_add(kinds, "place", v1 ? "tasks" : "directory");
	return v1 ? open(tasks, O_WRONLY | O_CLOEXEC)
		  : open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
}

void extern_places(const struct extern_step *e, struct record *kinds,
		   struct msg_fds *fds)
{
	pid_t other = sleeper(e);
	char *save = NULL;
	char text[8192];

	msg_fds_init(fds);
	if (other <= 0 || read_cgroups(other, text, sizeof(text)))
		return;
	for (char *line = strtok_r(text, "\n", &save); line;
	     line = strtok_r(NULL, "\n", &save)) {
		int fd;

		if (!strstr(line, "/step_extern"))
			continue;
		fd = open_place(line, kinds);
		if (fd < 0) {
			/* Some are as bad as none: extern_adopt() mends it. */
			msg_fds_close(fds);
			return;
		}
		msg_fds_add(fds, fd);
	}
}

/* Is the line among those of text? */
static int has_line(const char *text, const char *line)
{
	size_t n = strlen(line);

	for (const char *at = text; (at = strstr(at, line)); at++)
		if ((at == text || at[-1] == '\n') && (at[n] == '\n' || !at[n]))
			return 1;
	return 0;
}

/* Is pid in the extern step wherever other is? */
static int beside(pid_t other, pid_t pid)
{
	char theirs[8192], its[8192];
	char *save = NULL;
	int found = 0;

	if (other <= 0 || read_cgroups(other, theirs, sizeof(theirs)) ||
	    read_cgroups(pid, its, sizeof(its)))
		return 0;
	for (char *line = strtok_r(theirs, "\n", &save); line;
	     line = strtok_r(NULL, "\n", &save)) {
		if (!strstr(line, "/step_extern"))
			continue;
		if (!has_line(its, line))
			return 0;
		found = 1;
	}
	return found;
}

static int in_extern(pid_t pid)
{
	char text[8192];

	return !read_cgroups(pid, text, sizeof(text)) &&
	       strstr(text, "/step_extern") != NULL;
}

/*
 * Into the cgroups of the sleeper, one by one. slurm_stepd_add_extern_pid()
 * would do the same, and then start a thread in the extern step's slurmstepd
 * that looks once a second whether the process is still there. In 24.11 that
 * thread calls into plugins that are unloaded by then, if the process lives as
 * long as the job: slurmstepd dies of it, and leaves its cgroups behind.
 */
static int join_cgroups(pid_t other, pid_t pid)
{
	char text[8192], path[4096], procs[sizeof(path) + 16], number[16];
	char *save = NULL;
	int joined = 0;

	if (other <= 0 || read_cgroups(other, text, sizeof(text)))
		return -1;
	snprintf(number, sizeof(number), "%d", (int) pid);
	for (char *line = strtok_r(text, "\n", &save); line;
	     line = strtok_r(NULL, "\n", &save)) {
		int fd;
		ssize_t n;

		if (cgroup_dir(line, path, sizeof(path)))
			continue;
		snprintf(procs, sizeof(procs), "%s/cgroup.procs", path);
		fd = open(procs, O_WRONLY | O_CLOEXEC);
		n = fd < 0 ? -1 : write(fd, number, strlen(number));
		sys_close(&fd);
		if (n < 0)
			return -1;
		joined++;
	}
	return joined ? 0 : -1;
}

int extern_adopt(struct extern_step *e, pid_t pid)
{
	pid_t other = sleeper(e);
	add_pid_f *add_pid;

	if (beside(other, pid))
		return 0;
	if (!join_cgroups(other, pid) && in_extern(pid))
		return 0;
	*(void **) &add_pid = dlsym(RTLD_DEFAULT, "slurm_stepd_add_extern_pid");
	if (!add_pid || add_pid(e->sock, e->protocol, pid))
		return -1;
	return in_extern(pid) ? 0 : -1;
}

#if SLURM_VERSION_NUMBER >= SLURM_VERSION_NUM(25, 11, 0)
typedef int namespaces_f(int fd, list_t *map, uint16_t protocol);

static int take_mount_namespace(list_t *map, const char **why)
{
	ns_fd_map_t *m;
	int mnt = -1;

	while ((m = slurm_list_pop(map))) {
		if (m->type == CLONE_NEWNS && mnt < 0) {
			mnt = m->fd;
			fcntl(mnt, F_SETFD, FD_CLOEXEC);
			continue;
		}
		if (m->type == CLONE_NEWUSER || m->type == CLONE_NEWPID)
			*why = foreign_namespaces;
		close(m->fd);
	}
	return mnt;
}

/*
 * Since 25.11 the single-descriptor call gets no answer at all where there is
 * no namespace (slurmstepd/req.c:_handle_get_ns_fd); this one sends a count
 * first.
 */
int extern_namespace(struct extern_step *e, const char **why)
{
	namespaces_f *get;
	list_t *map;
	int mnt;

	*(void **) &get = dlsym(RTLD_DEFAULT, "slurm_stepd_get_namespace_fds");
	map = get ? slurm_list_create(NULL) : NULL;
	if (!map)
		return -1;
	if (get(e->sock, map, e->protocol) <= 0) {
		/* It has destroyed the list on error, and left it empty
		 * otherwise; the few bytes of an empty one are not worth
		 * telling the two apart. */
		return -1;
	}
	mnt = take_mount_namespace(map, why);
	slurm_list_destroy(map);
	return mnt;
}
#else
int extern_namespace(struct extern_step *e, const char **why)
{
	namespace_f *get;
	int fd;

	(void) why;
	*(void **) &get = dlsym(RTLD_DEFAULT, "slurm_stepd_get_namespace_fd");
	if (!get)
		return -1;
	fd = get(e->sock, e->protocol);
	if (fd <= 0)
		return -1;
	fcntl(fd, F_SETFD, FD_CLOEXEC);
	return fd;
}
#endif

int extern_sleeper(const struct extern_step *e)
{
	pid_t pid = sleeper(e);

	return pid > 0 ? sys_pidfd_open(pid) : -1;
}

void extern_close(struct extern_step *e)
{
	sys_close(&e->sock);
}

void extern_identity(const struct extern_step *e, char *text, size_t len)
{
	snprintf(text, len, "%d %llu", (int) e->pid, e->started);
}

static int extern_runs(uint32_t job)
{
	struct extern_step e;
	const char *why;

	if (extern_open(job, &e, &why))
		return 0;
	extern_close(&e);
	return 1;
}

/* One without a mark is being set up, or was left by a set-up that was killed;
 * one with what the job was submitted with waits for the job's first step, and
 * before that for slurmd's Prolog, which may take its time. */
static int is_leftover_unmarked(uint32_t job, int dir)
{
	const time_t setup = 60, prolog = 3600;
	time_t young = setup;
	struct stat st;

	if (!fstatat(dir, JOB_ASKED, &st, AT_SYMLINK_NOFOLLOW)) {
		if (extern_runs(job))
			return 0;
		young = prolog;
	}
	return !fstat(dir, &st) && time(NULL) - st.st_mtime > young;
}

/* Is the extern step gone of which this directory tells? */
static int is_leftover(uint32_t job, int dir)
{
	unsigned long long started = 0;
	char text[64] = "";
	int pid = 0;
	int fd = sys_open_beneath(dir, JOB_EXTERN, O_RDONLY, 0);

	if (fd < 0)
		return is_leftover_unmarked(job, dir);
	if (read(fd, text, sizeof(text) - 1) < 0)
		text[0] = '\0';
	sys_close(&fd);
	return sscanf(text, "%d %llu", &pid, &started) == 2 &&
	       start_time((pid_t) pid) != started;
}

void extern_sweep(uint32_t own)
{
	DIR *d = opendir(CARME_JOBS);
	/* What others have left must not keep this job waiting. */
	int64_t deadline = sys_now_ms() + SWEEP_MS;
	struct dirent *e;

	while (d && sys_now_ms() < deadline && (e = readdir(d))) {
		char *end;
		unsigned long job = strtoul(e->d_name, &end, 10);
		int dir;

		if (*end || !job || job == own)
			continue;
		dir = job_open((uint32_t) job, 0);
		/* A set-up that goes on holds the lock. */
		if (dir >= 0 && !flock(dir, LOCK_EX | LOCK_NB) &&
		    is_leftover((uint32_t) job, dir)) {
			/* Its extern step was killed: the job may live on. */
			if (job_end((uint32_t) job, deadline))
				slurm_error("carme: remove what job %lu has "
					    "left: %m",
					    job);
		}
		sys_close(&dir);
	}
	if (d)
		closedir(d);
}

/*
 * The exit callback in the extern step's own slurmstepd runs when all other
 * steps of the job have ended and its processes, the anchor among them, have
 * been killed, and before the node is free for the next job.
 */
void extern_end(spank_t sp)
{
	const struct timespec pause = {.tv_nsec = 2 * 1000 * 1000};
	int64_t deadline = sys_now_ms() + REMOVE_MS;
	uint32_t job = 0;
	int left;

	if (spank_get_item(sp, S_JOB_ID, &job))
		return;
	/* Slurm's X11 forwarding ends at the same time, in another thread, and
	 * makes the whole process the user's for a moment. access(2) asks as
	 * the real user, root; the system call takes this thread alone back. */
	left = job_is_sealed(job);
	for (int i = 0; left && i < 50; i++) {
		if (i)
			nanosleep(&pause, NULL);
		syscall(SYS_setresuid, -1, 0, -1);
		left = filter_remove(job) || job_end(job, deadline);
	}
	if (left)
		slurm_error("carme: remove what job %u has left: %m",
			    (unsigned int) job);
}
