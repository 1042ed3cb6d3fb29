/* What a step makes of the job that it finds: nothing, one that another step
 * has set up, or one that the extern step has. The anchor is this program. */
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "../step.c"
#include "../common/rmtree.h"
#include "stub.h"
#include "tap.h"

/* What the step under test was made to do. */
static struct {
	int anchor[2]; /* the step's end, and ours; -1: there is none */
	int dir;
	int begun, finished, later, unlocked, installed, removed;
	int begin_fails, lock_errno;
	char mode[16], later_mode[16];
} seen;

void local_show(const char *what)
{
	(void) what;
	_exit(3);
}

int job_is_sealed(uint32_t job)
{
	return job == 7;
}

int job_has_ended(uint32_t job)
{
	(void) job;
	return 0;
}

int job_open_locked(uint32_t job, int create, int64_t deadline_ms)
{
	(void) job;
	(void) create;
	(void) deadline_ms;
	errno = seen.lock_errno;
	return seen.lock_errno ? -1 : dup(seen.dir);
}

void job_unlock(int dir)
{
	(void) dir;
	seen.unlocked++;
}

int job_connect(int dir)
{
	(void) dir;
	return seen.anchor[0];
}

void job_discard(uint32_t job, int64_t deadline_ms)
{
	(void) job;
	(void) deadline_ms;
	seen.removed++;
}

int extern_open(uint32_t job, struct extern_step *e, const char **why)
{
	(void) job;
	(void) e;
	*why = "there is none";
	return -1;
}

void extern_identity(const struct extern_step *e, char *text, size_t len)
{
	(void) e;
	snprintf(text, len, "1 1");
}

void extern_close(struct extern_step *e)
{
	(void) e;
}

static void note_mode(char *to, size_t len, const struct record *request)
{
	snprintf(to, len, "%s", record_get(request, "mode"));
}

int setup_begin(const struct step *s, struct record *request,
		int64_t deadline_ms, int *asks)
{
	(void) s;
	(void) deadline_ms;
	*asks = 0;
	note_mode(seen.mode, sizeof(seen.mode), request);
	seen.begun++;
	return seen.begin_fails;
}

int setup_finish(struct record *result, int may_ask)
{
	(void) may_ask;
	record_init(result);
	seen.finished++;
	return seen.anchor[0];
}

int setup_later(int lease, const struct record *request, int64_t deadline_ms,
		struct record *result)
{
	(void) lease;
	(void) deadline_ms;
	note_mode(seen.later_mode, sizeof(seen.later_mode), request);
	record_init(result);
	seen.later++;
	return 0;
}

void xauthority_read(struct xauthority *x, const char *path, uid_t uid)
{
	(void) x;
	(void) path;
	(void) uid;
}

int forkhook_install(struct step *s)
{
	(void) s;
	seen.installed++;
	return 0;
}

/* ---- the anchor -------------------------------------------------------- */

/* Its answer to a step that joins lies ready. What is typed is the job's option
 * --carme; early: the extern step has made the job, and nobody has joined. */
static void offer(const char *carme, int early, gid_t gid)
{
	struct msg_fds fds;
	struct record r;

	msg_fds_init(&fds);
	for (int i = 0; i < 3; i++)
		msg_fds_add(&fds, open("/dev/null", O_RDONLY | O_CLOEXEC));
	record_init(&r);
	record_add(&r, "type", "joined");
	record_addf(&r, "uid", "%u", (unsigned int) getuid());
	record_addf(&r, "gid", "%u", (unsigned int) gid);
	record_add(&r, "opt.carme", carme);
	record_add(&r, "env.SLURM_PMIX_TMPDIR", "/run/carme/jobs/7/pmix");
	if (early)
		record_add(&r, "early", "1");
	msg_send(seen.anchor[1], &r, &fds);
	record_free(&r);
	msg_fds_close(&fds);
	/* All that it says; it still listens. */
	shutdown(seen.anchor[1], SHUT_WR);
}

/* What the step said, as "join end". */
static const char *said(void)
{
	static char text[256];
	struct record r;

	text[0] = '\0';
	while (msg_recv(seen.anchor[1], &r, NULL, NULL, 0) == 1) {
		strcat(text, text[0] ? " " : "");
		strcat(text, record_get(&r, "type"));
		record_free(&r);
	}
	return text;
}

/* ---- the tests, each in a process of its own ---------------------------- */

static void type(const char *name, const char *value)
{
	for (int i = 0; i < stub_option_count; i++)
		if (!strcmp(stub_options[i]->name, name))
			stub_options[i]->cb(stub_options[i]->val, value, 1);
}

/* carme-prolog has noted the job, as submitted with --carme=VALUE. */
static void submitted(const char *value)
{
	struct record r;

	record_init(&r);
	record_addf(&r, "uid", "%u", (unsigned int) getuid());
	record_add(&r, "inherited.carme", value);
	if (asked_write(seen.dir, &r))
		_exit(4);
	record_free(&r);
}

static void run(const char *name, int (*f)(void))
{
	char path[] = "/tmp/carme-step-XXXXXX";
	int status = -1;
	pid_t pid;

	seen.dir = mkdtemp(path) ? open(path, O_RDONLY | O_DIRECTORY) : -1;
	pid = fork();
	if (!pid) {
		if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0,
			       seen.anchor))
			_exit(5);
		stub_context = S_CTX_REMOTE;
		stub_job = 7;
		options_register(NULL);
		_exit(f() ? 0 : 1);
	}
	waitpid(pid, &status, 0);
	ok(WIFEXITED(status) && !WEXITSTATUS(status), name);
	rmtree_contents(seen.dir, NULL, sys_now_ms() + 1000);
	close(seen.dir);
	rmdir(path);
}

static int joins_an_early_one(void)
{
	submitted("none");
	type("carme", "none");
	offer("none", 1, getgid());
	step_start(NULL);
	return !failed() && !strcmp(said(), "join") && !seen.begun &&
	       !seen.later && seen.unlocked == 1 && seen.installed == 1 &&
	       !strcmp(stub_env("SLURM_PMIX_TMPDIR"), "/run/carme/jobs/7/pmix");
}

static int joins_an_early_one_without_options(void)
{
	submitted("none");
	offer("none", 1, getgid());
	step_start(NULL);
	return !failed() && !strcmp(said(), "join") && !seen.begun;
}

static int begun_anew(void)
{
	step_start(NULL);
	return !failed() && !strcmp(said(), "join end") && seen.begun == 1 &&
	       !strcmp(seen.mode, "first") && !seen.later && the_step.pending &&
	       the_step.pid1 < 0 && !seen.unlocked;
}

static int other_options_end_it(void)
{
	submitted("none");
	type("carme", "none");
	type("carme-workdir", "/tmp");
	offer("none", 1, getgid());
	return begun_anew();
}

static int other_groups_end_it(void)
{
	submitted("none");
	type("carme", "none");
	offer("none", 1, getgid() + 1);
	return begun_anew();
}

static int shards_end_it(void)
{
	submitted("none");
	spank_setenv(NULL, "SLURM_SHARDS_ON_NODE", "2", 1);
	offer("none", 1, getgid());
	return begun_anew();
}

static int no_shards_do_not(void)
{
	submitted("none");
	spank_setenv(NULL, "SLURM_SHARDS_ON_NODE", "0", 1);
	offer("none", 1, getgid());
	step_start(NULL);
	return !failed() && !strcmp(said(), "join") && !seen.begun;
}

static int a_later_step_ends_nothing(void)
{
	submitted("none");
	type("carme", "none");
	type("carme-workdir", "/tmp");
	offer("none", 0, getgid());
	step_start(NULL);
	return !failed() && !strcmp(said(), "join") && !seen.begun &&
	       seen.later == 1 && !strcmp(seen.later_mode, "later");
}

static int the_first_step_waits_in_user_init(void)
{
	int before, lease = seen.anchor[0];

	type("carme", "none");
	offer("none", 0, getgid());
	seen.anchor[0] = -1; /* nobody listens yet */
	step_start(NULL);
	before = seen.begun == 1 && the_step.pending && !seen.unlocked &&
		 !seen.finished && the_step.pid1 < 0;
	seen.anchor[0] = lease;
	step_ready(NULL);
	step_ready(NULL);
	return before && !failed() && seen.finished == 1 &&
	       seen.unlocked == 1 && !the_step.pending && the_step.pid1 >= 0 &&
	       !strcmp(said(), "join");
}

static int a_lock_that_does_not_come_is_said(void)
{
	submitted("none");
	seen.lock_errno = ETIMEDOUT;
	step_start(NULL);
	return failed() && !seen.begun && seen.installed == 1;
}

int main(void)
{
	run("a step takes what the extern step has set up", joins_an_early_one);
	run("also one that says nothing of its own",
	    joins_an_early_one_without_options);
	run("other options end it, and the step makes its own",
	    other_options_end_it);
	run("so do other groups", other_groups_end_it);
	run("and shares of a GPU, which the core refuses", shards_end_it);
	run("but not none of them", no_shards_do_not);
	run("a later step ends nothing, but has its options judged",
	    a_later_step_ends_nothing);
	run("a set-up that has begun is waited for once, in user_init",
	    the_first_step_waits_in_user_init);
	run("a lock that does not come is an error",
	    a_lock_that_does_not_come_is_said);
	return tap_end();
}
