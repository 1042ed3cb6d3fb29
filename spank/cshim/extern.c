#include "extern.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
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

static unsigned long long start_time(pid_t pid)
{
	unsigned long long t = 0;
	char path[64], text[1024];
	const char *p;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int) pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	sys_close(&fd);
	if (n <= 0)
		return 0;
	text[n] = '\0';
	/* Field 22, counted behind the command's closing parenthesis. */
	p = strrchr(text, ')');
	for (int field = 2; p && field < 22; field++)
		p = strchr(p + 1, ' ');
	if (p)
		t = strtoull(p, NULL, 10);
	return t;
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
	if (getsockopt(e->sock, SOL_SOCKET, SO_PEERCRED, &u, &len) ||
	    u.uid != 0 || u.pid <= 0) {
		extern_close(e);
		return -1;
	}
	e->pid = u.pid;
	e->started = start_time(u.pid);
	name_spool(e);
	return 0;
}

/* proc(5): the first child of the main thread, which forked it. */
static pid_t sleeper_pid(const struct extern_step *e)
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
	return (pid_t) strtol(text, NULL, 10);
}

/* Put pid into the cgroup of a line of /proc/PID/cgroup (cgroups(7)), in a
 * version 1 hierarchy. */
static int enter_cgroup(const char *line, pid_t pid)
{
	const char *list = strchr(line, ':');
	const char *rel = list ? strchr(list + 1, ':') : NULL;
	char path[4200], text[16];
	int fd, n, rc = -1;

	if (!rel || rel == list + 1)
		return -1;
	snprintf(path, sizeof(path), "/sys/fs/cgroup/%.*s%s/cgroup.procs",
		 (int) (rel - list - 1), list + 1, rel + 1);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	n = snprintf(text, sizeof(text), "%d", (int) pid);
	if (fd >= 0 && write(fd, text, (size_t) n) == n)
		rc = 0;
	sys_close(&fd);
	return rc;
}

/*
 * On cgroup v1 the anchor is put where the step's own process is. The call of
 * Slurm's does the same, but leaves a thread in slurmstepd that looks every
 * 10 ms whether the process is still there; the anchor ends with the job, and
 * the thread then calls plugins that are unloaded already: SIGSEGV, before the
 * exit callback or after it (24.11, mgr.c:_wait_extern_pid).
 */
static int enter_cgroups(const struct extern_step *e, pid_t pid)
{
	pid_t sleeper = sleeper_pid(e);
	char path[64], line[4096];
	int entered = 0, rc = 0;
	FILE *f = NULL;

	snprintf(path, sizeof(path), "/proc/%d/cgroup", (int) sleeper);
	if (sleeper > 0)
		f = fopen(path, "re");
	while (f && !rc && fgets(line, sizeof(line), f)) {
		line[strcspn(line, "\n")] = '\0';
		if (!strstr(line, "/step_extern"))
			continue;
		rc = enter_cgroup(line, pid);
		entered++;
	}
	if (f)
		fclose(f);
	return (rc || !entered) ? -1 : 0;
}

static int in_extern(pid_t pid)
{
	char path[64], text[8192];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/cgroup", (int) pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	sys_close(&fd);
	if (n <= 0)
		return 0;
	text[n] = '\0';
	return strstr(text, "/step_extern") != NULL;
}

int extern_adopt(struct extern_step *e, pid_t pid)
{
	add_pid_f *add_pid;

	if (!enter_cgroups(e, pid))
		return in_extern(pid) ? 0 : -1;
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
			*why = "Slurm's namespace/linux plugin gives this job "
			       "namespaces of its own, which --carme cannot "
			       "build upon; ask the admin to use "
			       "namespace/tmpfs instead";
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
	pid_t pid = sleeper_pid(e);

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

/*
 * The exit callback in the extern step's own slurmstepd runs when all other
 * steps of the job have ended and its processes, the anchor among them, have
 * been killed, and before the node is free for the next job.
 */
void extern_end(spank_t sp)
{
	uint32_t job = 0;

	if (!spank_get_item(sp, S_JOB_ID, &job) && job_is_sealed(job))
		job_remove(job);
}
