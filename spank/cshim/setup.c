/*
 * The first Carme step of a job on a node. Two processes are spawned, and
 * neither is forked from here: slurmstepd has a dozen threads, and only
 * posix_spawn() is legal between them and an exec. The anchor goes to the
 * extern step while the core loads; then they settle the rest between them,
 * while slurmstepd goes on, and the anchor's socket becomes this step's lease.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/sys.h"
#include "extern.h"
#include "plugin.h"

#define FDS_MAX 4
/* Milliseconds for a process to end after SIGKILL. */
#define KILL_MS 2000

/* Clean mask, default handlers, no environment, own session, and only the
 * given descriptors, from 3 upwards; the child closes what else is open. */
static pid_t spawn(const char *path, const char *word, const int *fds, int n)
{
	char *argv[] = {(char *) path, (char *) word, NULL};
	char *envp[] = {NULL};
	posix_spawn_file_actions_t fa;
	posix_spawnattr_t at;
	sigset_t none, all;
	pid_t pid = -1;
	int high[FDS_MAX];
	int rc;

	sigemptyset(&none);
	sigfillset(&all);
	posix_spawn_file_actions_init(&fa);
	posix_spawnattr_init(&at);
	posix_spawnattr_setsigmask(&at, &none);
	posix_spawnattr_setsigdefault(&at, &all);
	posix_spawnattr_setflags(&at, POSIX_SPAWN_SETSIGMASK |
					  POSIX_SPAWN_SETSIGDEF |
					  POSIX_SPAWN_SETSID);
	/* First out of the way: a source may be one of the targets. */
	for (int i = 0; i < n; i++)
		high[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 3 + FDS_MAX);
	posix_spawn_file_actions_addopen(&fa, 0, "/dev/null", O_RDWR, 0);
	posix_spawn_file_actions_addopen(&fa, 1, "/dev/null", O_RDWR, 0);
	posix_spawn_file_actions_addopen(&fa, 2, "/dev/null", O_RDWR, 0);
	for (int i = 0; i < n; i++)
		posix_spawn_file_actions_adddup2(&fa, high[i], 3 + i);
	posix_spawn_file_actions_addclosefrom_np(&fa, 3 + n);
	rc = posix_spawn(&pid, path, &fa, &at, argv, envp);
	for (int i = 0; i < n; i++)
		sys_close(&high[i]);
	posix_spawn_file_actions_destroy(&fa);
	posix_spawnattr_destroy(&at);
	if (rc) {
		errno = rc;
		return -1;
	}
	return pid;
}

static int memfd_of(const struct record *r)
{
	int fd = record_ok(r) ? memfd_create("carme-request", MFD_CLOEXEC) : -1;
	size_t done = 0;

	while (fd >= 0 && done < r->len) {
		ssize_t n = write(fd, r->buf + done, r->len - done);

		if (n <= 0) {
			sys_close(&fd);
			break;
		}
		done += (size_t) n;
	}
	if (fd >= 0)
		lseek(fd, 0, SEEK_SET);
	return fd;
}

/* Milliseconds until a deadline, never less than none: poll(2) takes a negative
 * number for ever. */
static int time_left(int64_t deadline_ms)
{
	int64_t left = deadline_ms - sys_now_ms();

	return left > 0 ? (int) left : 0;
}

/* 1: fd is readable, or a pidfd's process has ended. 0: time is up. */
static int await(int fd, int timeout_ms)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	return poll(&p, 1, timeout_ms) != 0;
}

/* The core asks what Slurm gave to the job, where the kernel does not tell. */
static int answer_given(int sock, uint32_t job, const struct extern_step *e)
{
	struct record r;
	int rc;

	if (e) {
		given_answer(job, e->node, &r);
	} else {
		record_init(&r);
		record_add(&r, "type", "given");
		record_add(&r, "unknown", "it was asked for too late");
	}
	rc = msg_send(sock, &r, NULL);
	record_free(&r);
	return rc;
}

/* What the core has to say, after its questions. 0, or -1 with errno. */
static int read_result(int sock, struct record *result, uint32_t job,
		       const struct extern_step *e, int64_t deadline_ms)
{
	for (;;) {
		const char *type;
		int rc =
		    msg_recv(sock, result, NULL, NULL, time_left(deadline_ms));

		if (rc == 0)
			errno = ECONNRESET;
		if (rc != 1)
			return -1;
		type = record_get(result, "type");
		if (!type || strcmp(type, "given?") != 0)
			return 0;
		record_free(result);
		if (answer_given(sock, job, e))
			return -1;
	}
}

struct core {
	pid_t pid;
	int result; /* our end of the socket */
};

/* word is what carme-host is to do; ns is Slurm's mount namespace of the job,
 * or -1. */
static int core_start(struct core *c, const char *word,
		      const struct record *request, int anchor, int ns)
{
	int fds[FDS_MAX] = {-1, -1, anchor, ns};
	int pair[2] = {-1, -1};

	c->pid = -1;
	c->result = -1;
	fds[0] = memfd_of(request);
	if (fds[0] < 0 ||
	    socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) {
		sys_close(&fds[0]);
		return -1;
	}
	fds[1] = pair[1];
	c->pid = spawn(CARME_HOST, word, fds, ns < 0 ? 3 : 4);
	sys_close(&fds[0]);
	close(pair[1]);
	c->result = pair[0];
	return c->pid < 0 ? -1 : 0;
}

/*
 * Let the core end by itself for some time, then kill it. A process that a
 * driver or a user's FUSE server holds does not die even then (it is in state
 * D), and this one must go on: else the step could not even be cancelled.
 */
static void core_end(struct core *c, int timeout_ms)
{
	int pidfd = sys_pidfd_open(c->pid);

	if (pidfd < 0 || !await(pidfd, timeout_ms))
		kill(c->pid, SIGKILL);
	if (pidfd < 0 || await(pidfd, KILL_MS))
		waitpid(c->pid, NULL, 0);
	else
		slurm_error("carme: the core (pid %d) cannot be killed",
			    (int) c->pid);
	sys_close(&pidfd);
	c->pid = -1;
}

/* Wait for the core's answer and its end. e is NULL where slurmctld is not to
 * be asked. 0, or -1 after fail(). */
static int core_finish(struct core *c, uint32_t job,
		       const struct extern_step *e, struct record *result,
		       int64_t deadline_ms)
{
	const char *error;
	int rc = read_result(c->result, result, job, e, deadline_ms);
	int cause = errno;

	sys_close(&c->result);
	core_end(c, rc ? 0 : time_left(deadline_ms));
	if (rc && cause == ETIMEDOUT) {
		fail(SETUP_TOO_LONG);
		return -1;
	}
	if (rc) {
		fail("the core " CARME_HOST " ended without an answer; ask the "
		     "admin to run 'carme doctor' on this node");
		return -1;
	}
	error = record_get(result, "error");
	if (error) {
		fail("%s", error);
		return -1;
	}
	return 0;
}

static void core_kill(struct core *c)
{
	if (c->pid > 0)
		core_end(c, 0);
	sys_close(&c->result);
}

/* What the anchor is to hold of the job. lock is a descriptor of the job's
 * directory that has its lock, for an early set-up, or -1. */
static int send_adopted(const struct step *s, const struct extern_step *e,
			int sock, int lock)
{
	struct msg_fds fds;
	struct record r;
	char text[64];
	int sleeper;
	int rc = -1;

	msg_fds_init(&fds);
	msg_fds_add(&fds, sys_pidfd_open(e->pid));
	/* Opened anew: the lock that we hold belongs to our descriptor and
	 * all its copies, and must not outlive this step. */
	msg_fds_add(&fds, job_open(s->job, 0));
	if (lock >= 0)
		msg_fds_add(&fds, fcntl(lock, F_DUPFD_CLOEXEC, 0));
	sleeper = extern_sleeper(e);
	if (sleeper >= 0)
		msg_fds_add(&fds, sleeper);
	extern_identity(e, text, sizeof(text));
	record_init(&r);
	record_add(&r, "type", "adopted");
	record_add(&r, "extern", text);
	if (fds.fd[0] >= 0 && fds.fd[1] >= 0 && (lock < 0 || fds.fd[2] >= 0))
		rc = msg_send(sock, &r, &fds);
	msg_fds_close(&fds);
	record_free(&r);
	return rc;
}

/* The anchor says hello with its pid; it goes on when it is in the extern step.
 * *anchor becomes a pidfd of it. */
static int adopt(const struct step *s, struct extern_step *e, int sock,
		 int64_t deadline_ms, int *anchor)
{
	struct record r;
	long pid;

	if (msg_recv(sock, &r, NULL, NULL, time_left(deadline_ms)) != 1) {
		fail("the anchor " CARME_ANCHOR " did not start; ask the admin "
		     "to run 'carme doctor' on this node");
		return -1;
	}
	pid = record_num(&r, "pid", -1);
	record_free(&r);
	if (pid <= 1 || extern_adopt(e, (pid_t) pid)) {
		fail("the job's extern step did not take the anchor; ask the "
		     "admin to run 'carme doctor' on this node");
		return -1;
	}
	*anchor = sys_pidfd_open((pid_t) pid);
	if (send_adopted(s, e, sock, -1)) {
		fail("the anchor is gone: %s", strerror(errno));
		return -1;
	}
	return 0;
}

/* Where the anchor is to be born; it finds the record when it starts. */
static int send_places(const struct extern_step *e, int sock, int early)
{
	struct msg_fds fds;
	struct record r;
	int rc;

	record_init(&r);
	record_add(&r, "type", "places");
	extern_places(e, &r, &fds);
	if (early)
		record_add(&r, "early", "1");
	rc = early && !fds.n ? -1 : msg_send(sock, &r, &fds);
	msg_fds_close(&fds);
	record_free(&r);
	return rc;
}

/* A set-up that goes on while slurmstepd makes cgroups and pipes for the tasks,
 * which takes it as long. */
static struct {
	uint32_t job;
	struct extern_step e;
	struct core core;
	int plugin; /* our end of the anchor's socket, the step's lease */
	int anchor; /* a pidfd */
	pid_t launcher;
	int64_t deadline;
} going = {.e = {.sock = -1},
	   .core = {.pid = -1, .result = -1},
	   .plugin = -1,
	   .anchor = -1,
	   .launcher = -1};

/* 0, or -1 where it failed: then everything is taken back. */
static int end_setup(int rc)
{
	extern_close(&going.e);
	core_kill(&going.core);
	if (going.launcher > 0)
		waitpid(going.launcher, NULL, 0);
	going.launcher = -1;
	if (rc) {
		/* The anchor ends with its peers, and clears the directory: it
		 * must be done before another step finds that unlocked. */
		sys_close(&going.plugin);
		if (going.anchor >= 0)
			await(going.anchor, KILL_MS);
	}
	sys_close(&going.anchor);
	return rc;
}

/* Both processes, and the anchor in the extern step. */
static int start_both(const struct step *s, struct record *request, int ns)
{
	int plugin[2] = {-1, -1}, host[2] = {-1, -1};
	int rc = -1;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, plugin) ||
	    socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, host) ||
	    send_places(&going.e, plugin[0], 0)) {
		fail("reach the anchor: %s", strerror(errno));
		goto done;
	}
	going.plugin = plugin[0];
	plugin[0] = -1;
	going.launcher =
	    spawn(CARME_ANCHOR, NULL, (int[]){plugin[1], host[1]}, 2);
	if (going.launcher < 0 ||
	    core_start(&going.core, "setup", request, host[0], ns)) {
		fail("start the set-up in " CARME_LIBEXEC ": %s; ask the admin "
		     "to reinstall Carme on this node",
		     strerror(errno));
		goto done;
	}
	sys_close(&plugin[1]);
	sys_close(&host[0]);
	sys_close(&host[1]);
	rc = adopt(s, &going.e, going.plugin, going.deadline, &going.anchor);
done:
	sys_close(&plugin[0]);
	sys_close(&plugin[1]);
	sys_close(&host[0]);
	sys_close(&host[1]);
	return rc;
}

/* What only the node knows, and the extern step. Slurm's mount namespace of the
 * job, or -1; *why is set where Carme cannot build upon what there is. */
static int add_surroundings(struct extern_step *e, struct record *request,
			    const char **why)
{
	int ns;

	record_add(request, "spool", e->spool);
	given_append_constrain(request);
	*why = NULL;
	ns = extern_namespace(e, why);
	if (ns >= 0)
		record_add(request, "slurmns", "1");
	return ns;
}

int setup_begin(const struct step *s, struct record *request,
		int64_t deadline_ms, int *asks)
{
	const char *why = "";
	int ns, rc;

	extern_sweep(s->job);
	if (extern_open(s->job, &going.e, &why)) {
		fail("%s", why);
		/* There will be no extern step's end to do it. What the job
		 * was submitted with stays as long as there may be steps, until
		 * extern_sweep() finds it. */
		if (!record_ok(&s->asked))
			job_discard(s->job, deadline_ms);
		return -1;
	}
	going.job = s->job;
	going.deadline = deadline_ms;
	ns = add_surroundings(&going.e, request, &why);
	if (why) {
		fail("%s", why);
		sys_close(&ns);
		return end_setup(-1);
	}
	rc = start_both(s, request, ns);
	sys_close(&ns);
	if (rc)
		return end_setup(-1);
	*asks = probe_core_asks(going.plugin, record_get(request, "constrain"),
				"/dev", time_left(going.deadline));
	return 0;
}

/* One that the extern step has begun. */
static struct {
	struct extern_step e; /* closed: no more than who it is */
	struct core core;     /* its socket is the watcher's too (host.c) */
	int anchor; /* the end of the core's socket that the anchor gets */
} early = {.e = {.sock = -1}, .core = {.pid = -1, .result = -1}, .anchor = -1};

int setup_early_begin(const struct step *s, struct record *request)
{
	const char *constrain, *why;
	int pair[2] = {-1, -1};
	int ns = -1;

	if (extern_open(s->job, &early.e, &why))
		return -1;
	ns = add_surroundings(&early.e, request, &why);
	constrain = record_get(request, "constrain");
	/* Else the core has questions. */
	if (!why &&
	    ((constrain && !strcmp(constrain, "yes")) ||
	     !probe_any_gpu("/dev")) &&
	    !socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) &&
	    !core_start(&early.core, "early", request, pair[0], ns)) {
		early.anchor = pair[1];
		pair[1] = -1;
	}
	sys_close(&pair[0]);
	sys_close(&pair[1]);
	sys_close(&ns);
	/* slurmstepd waits for its end before it ends itself. */
	extern_close(&early.e);
	return early.anchor < 0 ? -1 : 0;
}

/* All that the anchor is to be told lies in its socket before it starts. */
void setup_early_anchor(const struct step *s)
{
	int pair[2] = {-1, -1};
	pid_t launcher = -1;

	/* It has left the work to its child long ago, and must not be taken for
	 * the sleeper. */
	if (early.core.pid > 0)
		waitpid(early.core.pid, NULL, 0);
	early.core.pid = -1;
	if (!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) &&
	    !send_places(&early.e, pair[0], 1) &&
	    !send_adopted(s, &early.e, pair[0], s->dir))
		launcher = spawn(CARME_ANCHOR, NULL,
				 (int[]){pair[1], early.anchor}, 2);
	sys_close(&pair[0]);
	sys_close(&pair[1]);
	sys_close(&early.anchor);
	extern_sweep(s->job);
	/* So does this one. */
	if (launcher > 0)
		waitpid(launcher, NULL, 0);
}

void setup_early_end(void)
{
	int64_t deadline = sys_now_ms() + KILL_MS;
	struct record unread;

	if (early.core.result < 0)
		return;
	shutdown(early.core.result, SHUT_WR);
	while (msg_recv(early.core.result, &unread, NULL, NULL,
			time_left(deadline)) == 1)
		record_free(&unread);
	sys_close(&early.core.result);
}

int setup_finish(struct record *result, int may_ask)
{
	int rc = core_finish(&going.core, going.job, may_ask ? &going.e : NULL,
			     result, going.deadline);
	int lease;

	if (end_setup(rc))
		return -1;
	lease = going.plugin;
	going.plugin = -1;
	return lease;
}

int setup_later(int lease, const struct record *request, int64_t deadline_ms,
		struct record *result)
{
	struct core core;

	if (core_start(&core, "setup", request, lease, -1)) {
		fail("start " CARME_HOST ": %s", strerror(errno));
		core_kill(&core);
		return -1;
	}
	return core_finish(&core, 0, NULL, result, deadline_ms);
}
