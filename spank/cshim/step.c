/*
 * init_post_opt and exit in a step's slurmstepd, as root: find or make the
 * job's namespaces. Plain jobs leave step_start() after two system calls that
 * find nothing.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <slurm/slurm.h>

#include "common/asked.h"
#include "common/keyring.h"
#include "common/sys.h"
#include "extern.h"
#include "plugin.h"

/* Milliseconds for the whole set-up; slurmd gives up on a step after
 * MessageTimeout, and nothing here may hang for ever. */
#define SETUP_MS 30000

/* Variables of the job that the core wants to know: Slurm's about GPUs, which
 * count only where Slurm does not constrain devices (gres.conf(5), srun(1)),
 * and binds that a user has set for the container runtime. */
static const char *const variables[] = {
    "SLURM_STEP_GPUS",	    "SLURM_JOB_GPUS",
    "SLURM_SHARDS_ON_NODE", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE",
    "APPTAINER_BIND",	    "APPTAINER_BINDPATH",
    "SINGULARITY_BIND",	    "SINGULARITY_BINDPATH",
    "CARME_SCOPE",	    "SLURM_SUBMIT_DIR"};

struct step the_step = {.dir = -1,
			.lease = -1,
			.pid1 = -1,
			.pidns = -1,
			.mntns = -1,
			.filter = -1,
			.enter = -1,
			.plan = {.bad = 1},
			.result = {.bad = 1},
			.asked = {.bad = 1}};

const struct record *step_record(const struct step *s)
{
	return s->own_options ? &s->result : &s->plan;
}

static void name_step(struct step *s)
{
	if (s->id == SLURM_BATCH_SCRIPT)
		snprintf(s->name, sizeof(s->name), "batch");
	else if (s->id == SLURM_EXTERN_CONT)
		snprintf(s->name, sizeof(s->name), "extern");
	else if (s->id == SLURM_INTERACTIVE_STEP)
		snprintf(s->name, sizeof(s->name), "interactive");
	else
		snprintf(s->name, sizeof(s->name), "%u", (unsigned int) s->id);
}

int step_items(spank_t sp, struct step *s)
{
	if (spank_get_item(sp, S_JOB_ID, &s->job) ||
	    spank_get_item(sp, S_JOB_STEPID, &s->id) ||
	    spank_get_item(sp, S_JOB_UID, &s->uid) ||
	    spank_get_item(sp, S_JOB_GID, &s->gid) ||
	    spank_get_item(sp, S_JOB_LOCAL_TASK_COUNT, &s->tasks))
		return -1;
	name_step(s);
	return 0;
}

/* The directory of Slurm's own library, where its plugins are too. */
static void append_slurm_library(struct record *r)
{
	void *symbol = dlsym(RTLD_DEFAULT, "slurm_stepd_connect");
	char path[PATH_MAX];
	char *slash;
	Dl_info info;

	if (!symbol || !dladdr(symbol, &info) || !info.dli_fname ||
	    !realpath(info.dli_fname, path))
		return;
	slash = strrchr(path, '/');
	if (!slash || slash == path)
		return;
	*slash = '\0';
	record_add(r, "slurmlib", path);
}

/* What the job was submitted with stands behind the step's own options: the
 * core lets the latter win, where they may differ. */
static void append_asked(const struct step *s, struct record *r)
{
	for (const char *e = NULL; (e = record_entry(&s->asked, e));) {
		const char *eq = strchr(e, '=');
		char key[64];

		if (strncmp(e, "inherited.", 10) != 0 ||
		    (size_t) (eq - e) >= sizeof(key))
			continue;
		memcpy(key, e, (size_t) (eq - e));
		key[eq - e] = '\0';
		record_add(r, key, eq + 1);
	}
}

static void append_environment(spank_t sp, const struct step *s,
			       struct record *r)
{
	char value[4096];

	for (size_t i = 0; i < sizeof(variables) / sizeof(*variables); i++) {
		char key[64];

		if (spank_getenv(sp, variables[i], value, sizeof(value)))
			continue;
		/* Of a job that was submitted with --carme, no step is alone
		 * in being sealed. */
		if (record_ok(&s->asked) &&
		    !strcmp(variables[i], "CARME_SCOPE"))
			continue;
		snprintf(key, sizeof(key), "env.%s", variables[i]);
		record_add(r, key, value);
	}
}

void step_request(spank_t sp, const struct step *s, const char *mode,
		  struct record *r)
{
	const char *version = NULL;
	gid_t *gids = NULL;
	int n = 0;

	record_init(r);
	record_add(r, "mode", mode);
	record_add(r, "context", "remote");
	record_addf(r, "job", "%u", (unsigned int) s->job);
	record_add(r, "step", s->name);
	record_addf(r, "uid", "%u", (unsigned int) s->uid);
	record_addf(r, "gid", "%u", (unsigned int) s->gid);
	if (!spank_get_item(sp, S_JOB_SUPPLEMENTARY_GIDS, &gids, &n))
		for (int i = 0; i < n; i++)
			record_addf(r, "gids", "%u", (unsigned int) gids[i]);
	if (!spank_get_item(sp, S_SLURM_VERSION, &version) && version)
		record_add(r, "slurm", version);
	append_slurm_library(r);
	append_environment(sp, s, r);
	options_append(r);
	options_append_defaults(sp, r);
	if (!strcmp(mode, "early"))
		options_append_asked(&s->asked, r);
	if (strcmp(mode, "later") != 0)
		append_asked(s, r);
}

/* ---- joining ---------------------------------------------------------- */

/* A batch script, an interactive step, or step 0 of an srun that made the
 * allocation itself, which it tells by CARME_SCOPE (local.c). */
static int job_ends_with(spank_t sp, const struct step *s)
{
	char scope[16] = "";

	if (s->id == SLURM_BATCH_SCRIPT || s->id == SLURM_INTERACTIVE_STEP)
		return 1;
	return s->id == 0 &&
	       !spank_getenv(sp, "CARME_SCOPE", scope, sizeof(scope)) &&
	       !strcmp(scope, "srun");
}

static int join(struct step *s)
{
	struct msg_fds fds;
	struct record r;
	int first = 3;
	int rc;

	record_init(&r);
	record_add(&r, "type", "join");
	record_add(&r, "step", s->name);
	record_add(&r, "lease", "1");
	if (s->owner)
		record_add(&r, "owner", "1");
	rc = msg_send(s->lease, &r, NULL);
	record_free(&r);
	if (rc || msg_recv(s->lease, &s->plan, &fds, NULL, SETUP_MS) != 1) {
		fail("the job's anchor does not answer: %s", strerror(errno));
		return -1;
	}
	s->pid1 = msg_fds_take(&fds, 0);
	s->pidns = msg_fds_take(&fds, 1);
	s->mntns = msg_fds_take(&fds, 2);
	if (record_num(&s->plan, "filter.procs", 0) == 1)
		s->filter = msg_fds_take(&fds, first++);
	msg_fds_init(&s->devices);
	for (int i = first; i < fds.n; i++)
		msg_fds_add(&s->devices, msg_fds_take(&fds, i));
	msg_fds_close(&fds);
	if (s->pid1 < 0 || s->pidns < 0 || s->mntns < 0) {
		const char *why = record_get(&s->plan, "message");

		fail("%s", why ? why : "the job's namespaces are incomplete");
		return -1;
	}
	if (record_num(&s->plan, "uid", -1) != (long) s->uid) {
		fail("the namespaces on this node belong to another user's "
		     "job; tell the admin");
		return -1;
	}
	s->image = record_get(&s->plan, "image");
	return 0;
}

/* The options of this step as one text, to compare with the first step's. */
static int same_options(const struct record *plan, const struct record *request)
{
	const char *a = NULL, *b = NULL;

	do {
		do
			a = record_entry(plan, a);
		while (a && strncmp(a, "opt.", 4));
		do
			b = record_entry(request, b);
		while (b && strncmp(b, "opt.", 4));
		if (a && b && strcmp(a, b))
			return 0;
	} while (a && b);
	return a == b;
}

/* "srun --carme" inside a plain allocation seals that step, not the job; other
 * steps of the job stay what they were. */
static int step_is_plain(struct step *s)
{
	const char *scope = record_get(&s->plan, "scope");

	if (!scope || strcmp(scope, "step") != 0)
		return 0;
	step_end();
	s->sealed = 0;
	s->image = NULL;
	return 1;
}

/* The same groups, in their order? */
static int same_groups(const struct record *plan, const struct record *request)
{
	const char *a = NULL, *b = NULL;

	do {
		a = record_next(plan, "gids", a);
		b = record_next(request, "gids", b);
		if (a && b && strcmp(a, b))
			return 0;
	} while (a && b);
	return a == b &&
	       record_num(plan, "gid", -1) == record_num(request, "gid", -2);
}

/* Is what the extern step has set up what this step, the job's first here,
 * would have? Of shares of a GPU only the steps know; the core refuses them. */
static int early_suits(const struct step *s, const struct record *request)
{
	const char *shards = record_get(request, "env.SLURM_SHARDS_ON_NODE");

	return (!shards || !strcmp(shards, "0")) &&
	       same_groups(&s->plan, request) &&
	       (!options_any() || same_options(&s->plan, request));
}

/* End it, so that there is none. 0, or -1 after fail(). */
static int early_take_back(struct step *s)
{
	struct record r;
	int rc;

	record_init(&r);
	record_add(&r, "type", "end");
	rc = msg_send(s->lease, &r, NULL);
	record_free(&r);
	/* It closes this when there is nothing left to do. */
	if (rc || (msg_recv(s->lease, &r, NULL, NULL, SETUP_MS) &&
		   errno != ECONNRESET)) {
		fail("the job's anchor does not end: %s", strerror(errno));
		return -1;
	}
	sys_close(&s->lease);
	sys_close(&s->pid1);
	sys_close(&s->pidns);
	sys_close(&s->mntns);
	sys_close(&s->filter);
	msg_fds_close(&s->devices);
	record_free(&s->plan);
	s->image = NULL;
	return 0;
}

/* 1 where nothing is there any more to join. */
static int join_existing(spank_t sp, struct step *s, int64_t deadline)
{
	struct record request;
	int early, rc = 0;

	if (join(s))
		return -1;
	if (!s->wanted && step_is_plain(s))
		return 0;
	early = record_num(&s->plan, "early", 0) == 1;
	if (!early && !options_any())
		return 0;
	step_request(sp, s, "later", &request);
	if (early && !early_suits(s, &request)) {
		rc = early_take_back(s) ? -1 : 1;
	} else if (options_any() && !same_options(&s->plan, &request)) {
		rc = setup_later(s->lease, &request, deadline, &s->result);
		if (!rc) {
			s->own_options = 1;
			s->image = record_get(&s->result, "image");
		}
	}
	record_free(&request);
	return rc;
}

/* A directory without an anchor: of this very job, whose anchor was killed, or
 * left over by a crash from an earlier one with the same id? */
static int lost_anchor(const struct step *s)
{
	char then[64] = "", now[64];
	struct extern_step e;
	const char *why;
	int fd = sys_open_beneath(s->dir, JOB_EXTERN, O_RDONLY, 0);

	if (fd < 0)
		return errno != ENOENT;
	if (read(fd, then, sizeof(then) - 1) < 0)
		then[0] = '\0';
	sys_close(&fd);
	if (extern_open(s->job, &e, &why))
		return 1; /* cannot be sure */
	extern_identity(&e, now, sizeof(now));
	extern_close(&e);
	return strcmp(then, now) == 0;
}

/* Was the job submitted with --carme? 0, or -1 after fail(). */
static int read_asked(struct step *s)
{
	int rc = asked_read(s->dir, s->uid, &s->asked);

	if (rc < 0) {
		fail("read " CARME_JOBS "/%u/" JOB_ASKED ": %s; tell the admin",
		     (unsigned int) s->job, strerror(errno));
		return -1;
	}
	s->wanted = rc || options_asked();
	if (!rc)
		record_free(&s->asked);
	if (rc && options_refused()) {
		fail("the job was submitted with --carme, and all its steps "
		     "are sealed; leave out --no-carme");
		return -1;
	}
	return 0;
}

/* What was begun. 0, or -1 after fail(). */
static int finish(struct step *s, int may_ask)
{
	s->pending = 0;
	s->lease = setup_finish(&s->result, may_ask);
	return s->lease < 0 ? -1 : join(s);
}

/* Slurm's PMIx looks for its place before there are tasks. Where this does not
 * work, the core says so. */
static void place_pmix(spank_t sp, const struct step *s)
{
	char path[64];

	if ((mkdirat(s->dir, JOB_PMIX, 0711) && errno != EEXIST) ||
	    fchmodat(s->dir, JOB_PMIX, 0711, 0)) /* whatever the umask is */
		return;
	snprintf(path, sizeof(path), CARME_JOBS "/%u/" JOB_PMIX,
		 (unsigned int) s->job);
	spank_setenv(sp, "SLURM_PMIX_TMPDIR", path, 1);
}

static int begin(spank_t sp, struct step *s)
{
	int64_t deadline = sys_now_ms() + SETUP_MS;
	struct record request;
	int asks = 0, rc;

	s->owner = job_ends_with(sp, s);
	s->dir = job_open_locked(s->job, options_asked(), deadline);
	if (s->dir < 0 && errno == ENOENT) {
		/* It has ended, or was there a moment ago. It may have been a
		 * leftover of another job, but as well this one's, which ends:
		 * then a step without options would run plain. */
		fail("job %u ends on this node; if it does not, start the step "
		     "again",
		     (unsigned int) s->job);
		return -1;
	}
	if (s->dir < 0 && errno == ETIMEDOUT) {
		fail(SETUP_TOO_LONG);
		return -1;
	}
	if (s->dir < 0) {
		fail("open " CARME_JOBS "/%u: %s", (unsigned int) s->job,
		     strerror(errno));
		return -1;
	}
	if (read_asked(s))
		return -1;
	s->lease = job_connect(s->dir);
	if (s->lease >= 0) {
		rc = join_existing(sp, s, deadline);
		if (rc <= 0)
			return rc;
	} else if (lost_anchor(s)) {
		fail("the isolation of job %u has ended on this node; submit "
		     "the job again",
		     (unsigned int) s->job);
		return -1;
	}
	if (!s->wanted) {
		/* A leftover of another job; this one is plain. Nobody makes
		 * anything of it before it is gone: we have the lock. */
		job_discard(s->job, deadline);
		sys_close(&s->dir);
		s->sealed = 0;
		return 0;
	}
	if (access(CARME_KILL_SWITCH, F_OK) == 0) {
		fail("Carme is switched off on this node (" CARME_KILL_SWITCH
		     "); run without --carme, or ask the admin");
		return -1;
	}
	step_request(sp, s, "first", &request);
	s->pending = !setup_begin(s, &request, deadline, &asks);
	record_free(&request);
	if (!s->pending)
		return -1;
	if (asks)
		return finish(s, 1);
	place_pmix(sp, s);
	return 0;
}

/* ---- environment ------------------------------------------------------ */

void step_set_environment(spank_t sp, const struct step *s)
{
	const struct record *r = step_record(s);

	for (const char *e = NULL; (e = record_entry(r, e));) {
		char name[128];
		const char *eq = strchr(e, '=');

		if (strncmp(e, "env.", 4) != 0 ||
		    (size_t) (eq - e) >= sizeof(name))
			continue;
		memcpy(name, e + 4, (size_t) (eq - e - 4));
		name[eq - e - 4] = '\0';
		spank_setenv(sp, name, eq + 1, 1);
	}
}

/* ---- callbacks -------------------------------------------------------- */

/* Slurm's X11 forwarding leaves its cookie in the host's /tmp. */
static void remember_xauthority(spank_t sp, struct step *s)
{
	char path[PATH_MAX];

	if (!spank_getenv(sp, "XAUTHORITY", path, sizeof(path)))
		xauthority_read(&s->xauthority, path, s->uid);
}

/* Without options of its own, a step is one of a sealed job only if the job
 * says so. */
static int is_plain(spank_t sp, struct step *s)
{
	return !options_asked() &&
	       (spank_get_item(sp, S_JOB_ID, &s->job) ||
		(!job_is_sealed(s->job) && !job_has_ended(s->job)));
}

void step_start(spank_t sp)
{
	struct step *s = &the_step;

	if (is_plain(sp, s))
		return;
	s->sealed = 1;
	s->pid = getpid();
	/* Before PAM and other plugins make one for the job. */
	s->keyring = keyring_session();
	/* The hook stands in any case: it holds back the epilogs of a step that
	 * has failed. */
	if (fail_init()) {
		forkhook_install(s);
		return;
	}
	if (step_items(sp, s)) {
		fail("Slurm does not tell whose step this is");
	} else if (!begin(sp, s) && s->sealed) {
		if (!s->pending)
			step_set_environment(sp, s);
		remember_xauthority(sp, s);
	}
	/* The directory stays open for the tasks' own connections. */
	if (s->dir >= 0 && !s->pending)
		job_unlock(s->dir);
	if (s->sealed && forkhook_install(s))
		fail("watch the forks of this step: %s", strerror(errno));
}

/* Slurm has taken the user's effective uid by now. This thread alone goes back
 * for a moment, by the system call: glibc would ask all threads to. */
void step_finish(void)
{
	struct step *s = &the_step;
	uid_t user = geteuid();

	if (!s->pending)
		return;
	s->late = 1;
	if (syscall(SYS_setresuid, -1, 0, -1)) {
		fail("become root again for the set-up: %s", strerror(errno));
		s->pending = 0;
		return;
	}
	finish(s, 0);
	job_unlock(s->dir);
	if (syscall(SYS_setresuid, -1, user, -1))
		fail("become the user again: %s", strerror(errno));
}

void step_ready(spank_t sp)
{
	struct step *s = &the_step;

	if (!s->pending || s->pid != getpid())
		return;
	step_finish();
	if (!failed())
		step_set_environment(sp, s);
	s->late = 0;
}

void step_end(void)
{
	struct step *s = &the_step;
	struct record r;

	/* Where there were never any tasks. */
	step_finish();
	if (s->lease < 0)
		return;
	record_init(&r);
	record_add(&r, "type", "bye");
	/* EPIPE: Slurm has ended the job, and the anchor with it. */
	if (msg_send(s->lease, &r, NULL) && errno != EPIPE)
		slurm_error("carme: say farewell to the anchor: %m");
	record_free(&r);
	sys_close(&s->lease);
}
