/* What the anchor keeps of those who ask it. */
int anchor_main(void);
#define main anchor_main
#include "../anchor/anchor.c"
#undef main
#include "tap.h"

#include <stdlib.h>
#include <sys/file.h>

int pid1_start(struct namespaces *ns, pid_t *pid, const char **why)
{
	(void) ns;
	(void) pid;
	*why = "not here";
	return -1;
}

pid_t places_fork(const struct record *kinds, struct msg_fds *fds, int *placed)
{
	(void) placed;
	(void) kinds;
	(void) fds;
	return -1;
}

struct container *container_start(const struct namespaces *ns,
				  const struct user *user,
				  const struct record *spec, int image)
{
	(void) ns;
	(void) user;
	(void) spec;
	(void) image;
	return NULL;
}

void container_on_socket(struct container *c, const struct namespaces *ns)
{
	(void) c;
	(void) ns;
}

void container_on_exit(struct container *c)
{
	(void) c;
}

int sleeper_stays(int pidfd)
{
	(void) pidfd;
	return 0;
}

void stepkill(const char *step)
{
	(void) step;
}

static struct anchor anchor;

/* How many devices were answered for. */
static int ask(int core, int devices)
{
	struct peer p = {.core = core};
	const char *v = NULL;
	struct msg_fds fds;
	struct record r;
	int pair[2], n = 0;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair))
		return -1;
	p.fd = pair[0];
	msg_fds_init(&fds);
	for (int i = 0; i < devices; i++)
		msg_fds_add(&fds, open("/dev/null", O_PATH | O_CLOEXEC));
	on_probe(&anchor, &p, &fds);
	msg_fds_close(&fds);
	if (msg_recv(pair[1], &r, NULL, NULL, 1000) != 1)
		return -1;
	while ((v = record_next(&r, "ok", v)))
		n++;
	record_free(&r);
	close(pair[0]);
	close(pair[1]);
	return n;
}

/* 1 where the answer to a step that joins says that it is the first one of an
 * early set-up, 0 where it does not, -1 where there is none. */
static int join(void)
{
	struct peer p = {.core = 0};
	struct msg_fds fds;
	struct record r, got;
	int pair[2], rc = -1;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair))
		return -1;
	p.fd = pair[0];
	record_init(&r);
	record_add(&r, "step", "0");
	record_add(&r, "lease", "1");
	on_join(&anchor, &p, &r);
	record_free(&r);
	if (msg_recv(pair[1], &got, &fds, NULL, 1000) == 1) {
		if (!strcmp(record_get(&got, "type"), "joined"))
			rc = record_num(&got, "early", 0) == 1;
		msg_fds_close(&fds);
		record_free(&got);
	}
	close(pair[0]);
	close(pair[1]);
	return rc;
}

/* The core says that all is in place. 1 if the anchor takes it so. */
static int complete(void)
{
	struct peer p = {.core = 1};
	struct record got;
	int pair[2], rc = 0;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair))
		return -1;
	p.fd = pair[0];
	on_complete(&anchor, &p);
	if (msg_recv(pair[1], &got, NULL, NULL, 1000) == 1) {
		rc = !strcmp(record_get(&got, "type"), "completed");
		record_free(&got);
	}
	close(pair[0]);
	close(pair[1]);
	return rc;
}

static int nobody_has_the_lock(const char *path)
{
	int dir = open(path, O_RDONLY | O_DIRECTORY);
	int rc = flock(dir, LOCK_EX | LOCK_NB);

	close(dir);
	return !rc;
}

/* A set-up that the extern step has begun. */
static void early(void)
{
	char path[] = "/tmp/carme-anchor-XXXXXX", text[64] = "";
	int fd;

	if (!ok(mkdtemp(path) != NULL, "a directory"))
		return;
	anchor.jobdir = open(path, O_RDONLY | O_DIRECTORY);
	anchor.lock = open(path, O_RDONLY | O_DIRECTORY);
	flock(anchor.lock, LOCK_EX);
	snprintf(anchor.identity, sizeof(anchor.identity), "42 99");
	anchor.pid1_pidfd = anchor.ns.pid = -1;
	anchor.filter = -1;
	anchor.plan.bad = 1;
	anchor.untaken = 1;
	anchor.early_until = sys_now_ms() + 60000;
	ok(patience(&anchor) > 50000, "it has its time");
	anchor.early_until = sys_now_ms() - 1;
	ok(patience(&anchor) == 0, "and no more");
	ok(!complete() && !anchor.complete && !nobody_has_the_lock(path),
	   "without namespaces it is not complete, and steps wait");
	anchor.pid1_pidfd = open("/dev/null", O_RDONLY);
	anchor.ns.pid = anchor.ns.fd[NS_MNT] = anchor.pid1_pidfd;
	ok(join() == -1, "nobody joins what is not complete");
	ok(complete() == 1 && nobody_has_the_lock(path),
	   "when it is complete, steps may come");
	ok(patience(&anchor) == -1, "and it has no end of its own");
	fd = openat(anchor.jobdir, JOB_EXTERN, O_RDONLY);
	ok(read(fd, text, sizeof(text) - 1) == 5 && !strcmp(text, "42 99"),
	   "whose it is stands in the directory by then");
	close(fd);
	ok(join() == 1, "the first step learns that it is that");
	ok(join() == 0, "the second does not");
	rmtree_contents(anchor.jobdir, NULL, sys_now_ms() + 1000);
	close(anchor.jobdir);
	close(anchor.pid1_pidfd);
	rmdir(path);
}

/* The extern step was killed, and nobody comes after the anchor. */
static void orphan(void)
{
	static struct anchor a = {.orphaned = 1,
				  .pid1_pidfd = -1,
				  .filter = -1,
				  .filters = -1,
				  .sleeper = -1};
	/* No job has this number, so that its end cannot be noted. */
	char path[] = "/tmp/carme-anchor-XXXXXX";

	if (!ok(mkdtemp(path) != NULL, "a directory"))
		return;
	a.jobdir = open(path, O_RDONLY | O_DIRECTORY);
	close(openat(a.jobdir, JOB_ASKED, O_WRONLY | O_CREAT, 0600));
	a.complete = 1;
	end_job(&a);
	ok(!faccessat(a.jobdir, JOB_ASKED, F_OK, 0),
	   "while a job's end is not known, what tells of the job stays");
	unlinkat(a.jobdir, JOB_ASKED, 0);
	end_job(&a);
	ok(access(path, F_OK), "else its directory goes");
	close(a.jobdir);
	rmdir(path);
}

int main(void)
{
	ok(ask(0, 3) == 3 && anchor.devices.n == 0,
	   "the plugin's question is answered, and its devices are not kept");
	ok(ask(1, 2) == 2 && anchor.devices.n == 2, "the core's are");
	ok(ask(0, 3) == 3 && anchor.devices.n == 2,
	   "also when the plugin asks afterwards");
	ok(ask(1, 1) == 1 && anchor.devices.n == 1,
	   "until the core asks again");
	msg_fds_close(&anchor.devices);
	early();
	orphan();
	return tap_end();
}
