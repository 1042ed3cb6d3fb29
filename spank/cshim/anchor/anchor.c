/*
 * carme-anchor: started by the plugin for the first Carme step of a job on a
 * node, adopted into the job's extern step, and alive as long as the job.
 *
 * Descriptor 3: a socket to the plugin, in which the cgroups of the extern step
 * lie already (places.c); descriptor 4: a socket to carme-host, whose Go core
 * prepares the namespaces. Later peers come through anchor.sock in the job's
 * directory, which only root can reach.
 *
 * Where the plugin is in the extern step's own slurmstepd ("early", early.c in
 * spank/cshim), it does not wait: all that it has to say lies in its socket,
 * and the lock of the job's directory is held here until the job is complete,
 * so that the first step waits for it.
 *
 * Every peer may send any of these records ("type"):
 *
 *   probe      + O_PATH device fds  -> probed   "ok" 1|0 per device, and
 *                                      "cgroup" lines of the anchor
 *   filter     "name", + fds of      -> filtered: the anchor is in Carme's own
 *              cgroup.procs and        device cgroup NAME in that directory,
 *              the directory           and so is what it starts (cgroup v1)
 *   start      + namespace fds      -> started  "pid", "pid1", "pidns"
 *   complete   (all is in place)    -> completed
 *   container  "key", "argv", "env", -> accepted
 *              "image", + its mount,
 *              the overlay's lock
 *   join       "step", "lease",     -> joined   the plan, + pidfd, pid and
 *              "owner"                 mount namespace, device fds; "early"
 *                                      to the first one of an early set-up,
 *                                      "overlay.lock" if the job has it
 *   enter      "key"                -> entered  "env", + user and mount
 *                                      namespace, once the container is up
 *   bye                             (the lease ends in peace)
 *   end                             (the job has ended)
 *
 * A failed request is answered by "error" with "message". A lease whose peer
 * vanishes without bye means that slurmstepd was killed: the step is ended.
 */
#include "anchor.h"
#include "sleeper.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../common/early.h"
#include "../common/ended.h"
#include "../common/jobfiles.h"
#include "../common/rmtree.h"
#include "../common/sys.h"

#define PLUGIN_FD 3
#define HOST_FD 4
#define SETUP_MS 30000
/* Milliseconds for what a user has left; the rest is the extern step's. */
#define CLEAR_MS 5000
#define PEERS_MAX 1024
#define CONTAINERS_MAX 64
#define STEP_MAX 32
#define FIXED 4 /* entries that watch() adds for the job itself */

struct peer {
	int fd;
	char step[STEP_MAX]; /* non-empty: holds a lease for this step */
	int owner;	     /* the job ends with this step */
	int core;	     /* carme-host of the set-up */
	char *waits_for;     /* key of a container that is starting */
};

struct anchor {
	int jobdir;
	int extern_pidfd;
	int sleeper; /* ends when the job does; -1 afterwards, or unknown */
	int ending;
	int orphaned; /* the extern step's slurmstepd is gone */
	int lost;     /* PID 1 is gone, before the job's end */
	int complete; /* the core has said that the job is sealed off */
	int lock;     /* the job's directory, until then, in an early set-up */
	int64_t early_until; /* sys_now_ms(); 0 where a step has made this */
	int untaken;	     /* no step has joined an early set-up yet */
	char identity[64];   /* of the extern step, for JOB_EXTERN */
	int listener;
	int pid1_pidfd;
	pid_t pid1;
	struct namespaces ns;
	struct record plan;
	struct user user;
	struct msg_fds devices;
	int filter;  /* cgroup.procs of Carme's own device cgroup */
	int filters; /* the directory that it is in */
	char filter_name[32];
	int overlay; /* locked file of the overlay's directory */
	struct container *containers;
	struct peer peer[PEERS_MAX];
	int peers;
	int ended;
};

/* ---- answers ---------------------------------------------------------- */

static void answer(int fd, const struct record *r, const struct msg_fds *fds)
{
	/* A peer that is gone is seen by poll; there is nobody to tell. */
	if (msg_send(fd, r, fds) && errno != EPIPE && errno != ECONNRESET)
		shutdown(fd, SHUT_RDWR);
}

static void answer_error(int fd, const char *message)
{
	struct record r;

	record_init(&r);
	record_add(&r, "type", "error");
	record_add(&r, "message", message);
	answer(fd, &r, NULL);
	record_free(&r);
}

static void answer_errno(int fd, const char *what)
{
	char text[256];

	snprintf(text, sizeof(text), "%s: %s", what, strerror(errno));
	answer_error(fd, text);
}

static void answer_type(int fd, const char *type)
{
	struct record r;

	record_init(&r);
	record_add(&r, "type", type);
	answer(fd, &r, NULL);
	record_free(&r);
}

/* ---- requests --------------------------------------------------------- */

/* The lines of proc(5) cgroup, from which the core takes the job's place: the
 * core itself runs in cgroups that Slurm has not moved to the step yet. */
static void add_cgroups(struct record *r)
{
	FILE *f = fopen("/proc/self/cgroup", "re");
	char line[4096];

	while (f && fgets(line, sizeof(line), f)) {
		line[strcspn(line, "\n")] = '\0';
		record_add(r, "cgroup", line);
	}
	if (f)
		fclose(f);
}

static void on_probe(struct anchor *a, struct peer *p, struct msg_fds *fds)
{
	struct record r;

	record_init(&r);
	record_add(&r, "type", "probed");
	add_cgroups(&r);
	for (int i = 0; i < fds->n; i++)
		record_add(&r, "ok",
			   sys_device_allowed(fds->fd[i]) ? "1" : "0");
	/* The core's are in the order of the plan, for the proof of each task.
	 * The plugin asks too (probe.c), and it may be the later one. */
	if (p->core) {
		msg_fds_close(&a->devices);
		for (int i = 0; i < fds->n; i++)
			msg_fds_add(&a->devices, msg_fds_take(fds, i));
	}
	answer(p->fd, &r, NULL);
	record_free(&r);
}

static void on_filter(struct anchor *a, struct peer *p, const struct record *r,
		      struct msg_fds *fds)
{
	const char *name = record_get(r, "name");

	if (a->pid1_pidfd >= 0 || a->filter >= 0 || !name) {
		answer_error(p->fd, "the device filter comes too late");
		return;
	}
	a->filter = msg_fds_take(fds, 0);
	a->filters = msg_fds_take(fds, 1);
	snprintf(a->filter_name, sizeof(a->filter_name), "%s", name);
	if (a->filter < 0 || a->filters < 0 || write(a->filter, "0", 1) != 1) {
		answer_errno(p->fd, "enter the job's device cgroup");
		return;
	}
	answer_type(p->fd, "filtered");
}

/* Only an empty cgroup can be removed, so the anchor leaves it. Whatever else
 * is still in it is on its way out, and the extern step's last callback tries
 * again. */
static void remove_filter(struct anchor *a)
{
	int above = a->filters < 0 ? -1
				   : openat(a->filters, "../cgroup.procs",
					    O_WRONLY | O_CLOEXEC);

	if (above >= 0 && write(above, "0", 1) == 1)
		unlinkat(a->filters, a->filter_name, AT_REMOVEDIR);
	sys_close(&above);
}

static int listen_for_steps(struct anchor *a)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX,
				   .sun_path = JOB_SOCKET};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	/* Relative to the job's directory: no path is walked again. */
	if (fd < 0 || fchdir(a->jobdir))
		return -1;
	if (unlink(addr.sun_path) && errno != ENOENT)
		return -1;
	if (bind(fd, (struct sockaddr *) &addr, sizeof(addr)) ||
	    listen(fd, SOMAXCONN))
		return -1;
	a->listener = fd;
	return 0;
}

static void take_namespaces(struct anchor *a, const struct record *r,
			    struct msg_fds *fds)
{
	static const char *const name[NS_COUNT] = {"mnt", "ipc", "uts", "net"};
	int next = 0;

	/* "ns" entries name the descriptors in the order they were sent. */
	for (const char *v = NULL; (v = record_next(r, "ns", v));)
		for (int i = 0; i < NS_COUNT; i++)
			if (!strcmp(v, name[i]))
				a->ns.fd[i] = msg_fds_take(fds, next++);
}

static void on_start(struct anchor *a, struct peer *p, struct record *r,
		     struct msg_fds *fds)
{
	struct record out;
	const char *why = NULL;

	if (a->pid1_pidfd >= 0) {
		answer_error(p->fd, "the job's namespaces exist already");
		return;
	}
	take_namespaces(a, r, fds);
	if (a->ns.fd[NS_MNT] < 0) {
		answer_error(p->fd, "no mount namespace was sent");
		return;
	}
	record_free(&a->plan);
	a->plan = *r;
	memset(r, 0, sizeof(*r));
	a->user.uid = (uid_t) record_num(&a->plan, "uid", -1);
	a->user.gid = (gid_t) record_num(&a->plan, "gid", -1);
	a->user.plan = &a->plan;
	a->pid1_pidfd = pid1_start(&a->ns, &a->pid1, &why);
	if (a->pid1_pidfd < 0) {
		answer_errno(p->fd, why);
		return;
	}
	if (listen_for_steps(a)) {
		answer_errno(p->fd, "listen on the job's socket");
		return;
	}
	record_init(&out);
	record_add(&out, "type", "started");
	record_addf(&out, "pid1", "%d", (int) a->pid1);
	record_addf(&out, "pid", "%d", (int) getpid());
	record_addf(&out, "pidns", "%llu",
		    (unsigned long long) sys_inode(a->ns.pid));
	answer(p->fd, &out, NULL);
	record_free(&out);
}

/* Without it a step could not tell later that the job's anchor was lost. */
static int write_identity(const struct anchor *a)
{
	int fd = sys_open_beneath(a->jobdir, JOB_EXTERN,
				  O_WRONLY | O_CREAT | O_TRUNC, 0600);
	size_t n = strlen(a->identity);
	ssize_t written;

	if (fd < 0)
		return -1;
	errno = ENOSPC; /* of a write that is cut short */
	written = write(fd, a->identity, n);
	sys_close(&fd);
	return written == (ssize_t) n ? 0 : -1;
}

/* Until then nobody may join: mounts are still missing. */
static void on_complete(struct anchor *a, struct peer *p)
{
	if (a->pid1_pidfd < 0) {
		answer_error(p->fd, "the job has no namespaces yet");
		return;
	}
	if (write_identity(a)) {
		answer_errno(p->fd, "note the extern step in the job's "
				    "directory");
		return;
	}
	a->complete = 1;
	answer_type(p->fd, "completed");
	sys_close(&a->lock);
	/* Where it cannot be, a signal to the whole job ends it, as it says. */
	if (a->sleeper >= 0)
		sleeper_stays(a->sleeper);
}

static void on_join(struct anchor *a, struct peer *p, const struct record *r)
{
	const char *step = record_get(r, "step");
	struct msg_fds fds;
	struct record out;

	if (!a->complete) {
		answer_error(p->fd, "the job's namespaces are not ready");
		return;
	}
	record_init(&out);
	record_add(&out, "type", "joined");
	for (const char *e = NULL; (e = record_entry(&a->plan, e));) {
		char key[128];
		const char *eq = strchr(e, '=');

		if ((size_t) (eq - e) >= sizeof(key) || !strncmp(e, "type=", 5))
			continue;
		memcpy(key, e, (size_t) (eq - e));
		key[eq - e] = '\0';
		record_add(&out, key, eq + 1);
	}
	msg_fds_init(&fds);
	msg_fds_add(&fds, a->pid1_pidfd);
	msg_fds_add(&fds, a->ns.pid);
	msg_fds_add(&fds, a->ns.fd[NS_MNT]);
	if (a->filter >= 0) {
		record_add(&out, "filter.procs", "1");
		msg_fds_add(&fds, a->filter);
	}
	if (a->overlay >= 0)
		record_add(&out, "overlay.lock", "1");
	for (int i = 0; i < a->devices.n; i++)
		msg_fds_add(&fds, a->devices.fd[i]);
	/* The core asks on a step's lease too, and takes none for itself. */
	if (step && record_num(r, "lease", 0) == 1) {
		if (a->untaken)
			record_add(&out, "early", "1");
		a->untaken = 0;
		snprintf(p->step, sizeof(p->step), "%s", step);
		p->owner = record_num(r, "owner", 0) == 1;
	}
	answer(p->fd, &out, &fds);
	record_free(&out);
}

static struct container *find_container(struct anchor *a, const char *key)
{
	for (struct container *c = a->containers; c; c = c->next)
		if (!strcmp(c->key, key))
			return c;
	return NULL;
}

static void on_container(struct anchor *a, struct peer *p,
			 const struct record *r, struct msg_fds *fds)
{
	const char *key = record_get(r, "key");
	struct container *c = key ? find_container(a, key) : NULL;
	int n = 0;

	for (const struct container *i = a->containers; i; i = i->next)
		n++;
	if (!key || a->pid1_pidfd < 0 || n >= CONTAINERS_MAX) {
		answer_error(p->fd, "no further container can be started");
		return;
	}
	/* A failed one may be tried again by a later step. */
	if (c && c->state == CONTAINER_FAILED && c->pidfd < 0) {
		c->key[0] = '\0';
		c = NULL;
	}
	if (!c) {
		int image = msg_fds_take(fds, 0);

		c = container_start(&a->ns, &a->user, r, image);
		sys_close(&image);
		if (a->overlay < 0)
			a->overlay = msg_fds_take(fds, 1);
		if (!c) {
			answer_error(p->fd, "out of memory");
			return;
		}
		c->next = a->containers;
		a->containers = c;
	}
	answer_type(p->fd, "accepted");
}

static void answer_container(struct peer *p, const struct container *c)
{
	struct msg_fds fds;
	struct record out;
	const char *v = NULL;

	if (c->state == CONTAINER_FAILED) {
		answer_error(p->fd, c->why);
		return;
	}
	record_init(&out);
	record_add(&out, "type", "entered");
	while ((v = record_next(&c->env, "env", v)))
		record_add(&out, "env", v);
	msg_fds_init(&fds);
	msg_fds_add(&fds, c->userns);
	msg_fds_add(&fds, c->mntns);
	answer(p->fd, &out, &fds);
	record_free(&out);
}

static void on_enter(struct anchor *a, struct peer *p, const struct record *r)
{
	const char *key = record_get(r, "key");
	struct container *c = key ? find_container(a, key) : NULL;

	if (!c)
		answer_error(p->fd, "no such container in this job");
	else if (c->state != CONTAINER_STARTING)
		answer_container(p, c);
	else
		p->waits_for = strdup(key);
}

/*
 * Slurm looks whether the extern step is empty right after it has told its
 * processes to end, and if it is not, only again after a second, in which the
 * node takes no other job (proctrack/cgroup, cg_node_bitmap). A container needs
 * some milliseconds to go. So when the step ends that the job lives by, its
 * batch script or the srun that made the allocation, the job is ended here
 * before Slurm gets to it.
 */
static void on_bye(struct anchor *a, struct peer *p)
{
	p->step[0] = '\0';
	if (p->owner)
		a->ending = 1;
}

static void dispatch(struct anchor *a, struct peer *p, struct record *r,
		     struct msg_fds *fds)
{
	const char *type = record_get(r, "type");

	if (!type)
		answer_error(p->fd, "a request without type");
	else if (!strcmp(type, "probe"))
		on_probe(a, p, fds);
	else if (!strcmp(type, "filter"))
		on_filter(a, p, r, fds);
	else if (!strcmp(type, "start"))
		on_start(a, p, r, fds);
	else if (!strcmp(type, "container"))
		on_container(a, p, r, fds);
	else if (!strcmp(type, "complete"))
		on_complete(a, p);
	else if (!strcmp(type, "join"))
		on_join(a, p, r);
	else if (!strcmp(type, "enter"))
		on_enter(a, p, r);
	else if (!strcmp(type, "bye"))
		on_bye(a, p);
	else if (!strcmp(type, "end"))
		a->ended = 1;
	else
		answer_error(p->fd, "an unknown request");
}

/* ---- peers ------------------------------------------------------------ */

static void add_peer(struct anchor *a, int fd)
{
	if (a->peers == PEERS_MAX) {
		close(fd);
		return;
	}
	memset(&a->peer[a->peers], 0, sizeof(a->peer[0]));
	a->peer[a->peers++].fd = fd;
}

static void drop_peer(struct anchor *a, int i)
{
	struct peer *p = &a->peer[i];

	if (p->step[0])
		stepkill(p->step);
	/* What the core has left half made is of no use to anybody. */
	if (p->core && !a->complete)
		a->ended = 1;
	free(p->waits_for);
	close(p->fd);
	*p = a->peer[--a->peers];
}

static void on_listener(struct anchor *a)
{
	struct ucred u = {.uid = (uid_t) -1};
	socklen_t len = sizeof(u);
	int fd = accept4(a->listener, NULL, NULL, SOCK_CLOEXEC);

	if (fd < 0)
		return;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &u, &len) || u.uid != 0) {
		close(fd);
		return;
	}
	add_peer(a, fd);
}

/* 1: the peer is still there. */
static int on_peer(struct anchor *a, struct peer *p)
{
	struct msg_fds fds;
	struct record r;
	int rc = msg_recv(p->fd, &r, &fds, NULL, 0);

	if (rc < 0 && (errno == ETIMEDOUT || errno == EBADMSG)) {
		answer_errno(p->fd, "read a request");
		return errno == ETIMEDOUT;
	}
	if (rc <= 0)
		return 0;
	dispatch(a, p, &r, &fds);
	msg_fds_close(&fds);
	record_free(&r);
	return 1;
}

static void tell_waiting(struct anchor *a, const struct container *c)
{
	if (c->state == CONTAINER_STARTING)
		return;
	for (int i = 0; i < a->peers; i++) {
		struct peer *p = &a->peer[i];

		if (!p->waits_for || strcmp(p->waits_for, c->key))
			continue;
		answer_container(p, c);
		free(p->waits_for);
		p->waits_for = NULL;
	}
}

/* ---- life ------------------------------------------------------------- */

static int name_jobdir(const struct anchor *a, char *path, size_t len)
{
	char fd[64];
	ssize_t n;

	snprintf(fd, sizeof(fd), "/proc/self/fd/%d", a->jobdir);
	n = readlink(fd, path, len - 1);
	path[n > 0 ? n : 0] = '\0';
	return n > 0 ? 0 : -1;
}

static void remove_jobdir(const struct anchor *a)
{
	char path[256];

	if (!name_jobdir(a, path, sizeof(path)))
		rmdir(path);
}

/* Slurm may let a job live on whose extern step was killed. What told the node
 * of it goes now, and its next step would be plain if this could not be noted.
 */
static int note_end(const struct anchor *a)
{
	unsigned long job;
	char path[256];
	char *name;

	if (faccessat(a->jobdir, JOB_ASKED, F_OK, 0))
		return 0;
	if (name_jobdir(a, path, sizeof(path)))
		return -1;
	name = strrchr(path, '/');
	job = name ? strtoul(name + 1, NULL, 10) : 0;
	if (!job || job > UINT32_MAX)
		return -1;
	return ended_note(CARME_ENDED, (uint32_t) job);
}

/*
 * The directory itself goes with the extern step's last callback, or with the
 * next job that finds it. A set-up that failed leaves nothing in it but what
 * was there before, and may be tried again; of a job that was sealed off its
 * identity stays, so that a step that is just starting does not take the job
 * for a plain one.
 */
static void clear_directory(const struct anchor *a)
{
	int64_t deadline = sys_now_ms() + CLEAR_MS;
	int pmix;

	if (!a->complete) {
		rmtree_contents(a->jobdir, JOB_ASKED, deadline);
		return;
	}
	unlinkat(a->jobdir, JOB_SOCKET, 0);
	unlinkat(a->jobdir, JOB_PROOF, 0);
	pmix = sys_open_beneath(a->jobdir, JOB_PMIX, O_RDONLY | O_DIRECTORY, 0);
	if (pmix >= 0)
		rmtree_contents(pmix, NULL, deadline);
	sys_close(&pmix);
}

static void end_job(struct anchor *a)
{
	if (a->pid1_pidfd >= 0)
		sys_pidfd_kill(a->pid1_pidfd, SIGKILL);
	for (struct container *c = a->containers; c; c = c->next)
		if (c->pidfd >= 0)
			sys_pidfd_kill(c->pidfd, SIGKILL);
	/* Reap: the namespace is freed when its outside children are. */
	while (waitpid(-1, NULL, 0) > 0 || errno == EINTR)
		;
	/* The job goes on without its namespaces. What lies here tells later
	 * steps that they must not run at all. */
	if (a->lost)
		return;
	clear_directory(a);
	remove_filter(a);
	/* Without the extern step's last callback nobody removes the
	 * directory, or ends the process for which its slurmstepd waited. */
	if (a->orphaned) {
		if (!note_end(a)) {
			rmtree_contents(a->jobdir, NULL,
					sys_now_ms() + CLEAR_MS);
			remove_jobdir(a);
		}
		if (a->sleeper >= 0)
			sys_pidfd_kill(a->sleeper, SIGKILL);
	}
}

static nfds_t watch(const struct anchor *a, struct pollfd *p)
{
	nfds_t n = 0;

	p[n++] = (struct pollfd){a->extern_pidfd, POLLIN, 0};
	p[n++] = (struct pollfd){a->listener, POLLIN, 0};
	p[n++] = (struct pollfd){a->pid1_pidfd, POLLIN, 0};
	p[n++] = (struct pollfd){a->sleeper, POLLIN, 0};
	for (int i = 0; i < a->peers; i++)
		p[n++] = (struct pollfd){a->peer[i].fd, POLLIN, 0};
	for (const struct container *c = a->containers; c; c = c->next) {
		p[n++] = (struct pollfd){c->sock, POLLIN, 0};
		p[n++] = (struct pollfd){c->pidfd, POLLIN, 0};
	}
	return n;
}

static void serve_containers(struct anchor *a, const struct pollfd *p)
{
	for (struct container *c = a->containers; c; c = c->next, p += 2) {
		if (p[0].revents)
			container_on_socket(c, &a->ns);
		if (p[1].revents)
			container_on_exit(c);
		if (p[0].revents || p[1].revents)
			tell_waiting(a, c);
	}
}

static int leased(const struct anchor *a)
{
	for (int i = 0; i < a->peers; i++)
		if (a->peer[i].step[0])
			return 1;
	return 0;
}

/* For ever, but in an early set-up that is not complete. */
static int patience(const struct anchor *a)
{
	int64_t left = a->early_until - sys_now_ms();

	if (!a->early_until || a->complete)
		return -1;
	return left > 0 ? (int) left : 0;
}

static int serve_once(struct anchor *a)
{
	static struct pollfd p[FIXED + PEERS_MAX + 2 * CONTAINERS_MAX];
	nfds_t n = watch(a, p);
	int peers = a->peers;
	int ready = poll(p, n, patience(a));

	if (ready < 0)
		return errno == EINTR ? 0 : -1;
	if (ready == 0)
		return patience(a) == 0 ? -1 : 0;
	a->orphaned = p[0].revents != 0;
	a->lost = p[2].revents && !a->orphaned && !a->ending;
	if (a->orphaned || p[2].revents || a->ended)
		return -1;
	if (p[3].revents) {
		a->ending = 1;
		sys_close(&a->sleeper);
	}
	serve_containers(a, p + FIXED + peers);
	/* Backwards: dropping moves the last one into the gap. */
	for (int i = peers - 1; i >= 0; i--)
		if (p[FIXED + i].revents && !on_peer(a, &a->peer[i]))
			drop_peer(a, i);
	if (p[1].revents)
		on_listener(a);
	/* Without namespaces and without a peer nobody can need us. */
	if (a->pid1_pidfd < 0 && a->peers == 0)
		return -1;
	return (a->ended || (a->ending && !leased(a))) ? -1 : 0;
}

static int hello(void)
{
	struct record r;
	int rc;

	record_init(&r);
	record_add(&r, "type", "hello");
	record_addf(&r, "pid", "%d", (int) getpid());
	rc = msg_send(PLUGIN_FD, &r, NULL);
	record_free(&r);
	return rc;
}

static int adopted(struct anchor *a)
{
	const char *identity;
	struct msg_fds fds;
	struct record r;

	if (msg_recv(PLUGIN_FD, &r, &fds, NULL, SETUP_MS) != 1)
		return -1;
	a->extern_pidfd = msg_fds_take(&fds, 0);
	a->jobdir = msg_fds_take(&fds, 1);
	if (a->early_until)
		a->lock = msg_fds_take(&fds, 2);
	a->sleeper = msg_fds_take(&fds, a->early_until ? 3 : 2);
	identity = record_get(&r, "extern");
	snprintf(a->identity, sizeof(a->identity), "%s",
		 identity ? identity : "");
	msg_fds_close(&fds);
	record_free(&r);
	return (a->extern_pidfd < 0 || a->jobdir < 0) ? -1 : 0;
}

static void ignore_signals(void)
{
	/* scancel and SignalChildrenProcesses reach the extern step too; only
	 * SIGKILL, which Slurm sends at the job's end, is for the anchor. */
	for (int s = 1; s < NSIG; s++)
		if (s != SIGCHLD && s != SIGSEGV && s != SIGBUS &&
		    s != SIGABRT && s != SIGILL && s != SIGFPE)
			signal(s, SIG_IGN);
}

int main(void)
{
	static struct anchor a;
	struct msg_fds fds;
	struct record places;
	int placed = 0;
	pid_t pid;

	if (msg_recv(PLUGIN_FD, &places, &fds, NULL, SETUP_MS) != 1)
		return 1;
	pid = places_fork(&places, &fds, &placed);
	if (record_num(&places, "early", 0) == 1) {
		a.early_until = sys_now_ms() + EARLY_MS;
		a.untaken = 1;
	}
	record_free(&places);
	/* Twice, so that slurmstepd, which waits for any child, never sees
	 * this one. */
	if (pid)
		_exit(pid < 0);
	sys_close_range(HOST_FD + 1, ~0U);
	if (setsid() < 0 || chdir("/"))
		return 1;
	prctl(PR_SET_NAME, "carme-anchor", 0, 0, 0);
	ignore_signals();
	a.listener = a.pid1_pidfd = a.extern_pidfd = a.jobdir = a.ns.pid = -1;
	a.sleeper = a.filter = a.filters = a.lock = a.overlay = -1;
	for (int i = 0; i < NS_COUNT; i++)
		a.ns.fd[i] = -1;
	a.plan.bad = 1;
	/* The plugin looks where we are, and moves us where that is not right;
	 * in an early set-up it is gone by now. */
	if ((a.early_until ? !placed : hello()) || adopted(&a))
		return 1;
	fcntl(PLUGIN_FD, F_SETFD, FD_CLOEXEC);
	fcntl(HOST_FD, F_SETFD, FD_CLOEXEC);
	add_peer(&a, PLUGIN_FD);
	add_peer(&a, HOST_FD);
	a.peer[a.peers - 1].core = 1;
	while (!serve_once(&a))
		;
	end_job(&a);
	return 0;
}
