/*
 * plugin.h - what the files of spank_carme.so share. One file per SPANK
 * context: local.c (srun, sbatch, salloc), step.c and task.c (slurmstepd of a
 * step), extern.c (slurmstepd of the extern step); dispatch.c alone knows
 * which is which.
 */
#ifndef CARME_PLUGIN_H
#define CARME_PLUGIN_H

#include <stdint.h>
#include <sys/types.h>

#include <slurm/spank.h>

#include "common/jobfiles.h"
#include "common/msg.h"
#include "common/record.h"

#ifndef CARME_LIBEXEC
#define CARME_LIBEXEC "/usr/libexec/carme"
#endif
#define CARME_HOST CARME_LIBEXEC "/carme-host"
#define CARME_ANCHOR CARME_LIBEXEC "/carme-anchor"
#define CARME_RUN "/run/carme"
#define CARME_JOBS CARME_RUN "/jobs"
#define CARME_JOB_OPTIONS CARME_RUN "/job/options" /* inside a job */
#define CARME_KILL_SWITCH "/etc/carme/disabled"

#define STEP_NAME_MAX 32

#define SETUP_TOO_LONG                                                         \
	"sealing the job off took too long on this node; try again, and "      \
	"tell the admin if it stays so"

/* ---- options.c -------------------------------------------------------- */

/* Register all options; nothing else happens for plain jobs. */
int options_register(spank_t sp);
/* srun, sbatch, salloc: CARME, CARME_NET, ... as defaults. */
void options_from_environment(void);
/* Was --carme asked for (and not taken back by --no-carme)? */
int options_asked(void);
/* Was --no-carme or --carme=no? */
int options_refused(void);
/* Inside a job with --carme-net=private. */
int options_job_is_private(void);
/* Any Carme option at all, --no-carme included? */
int options_any(void);
/* srun and sbatch: was any given on the command line or in the script? */
int options_typed(void);
/* Does --carme come from the environment, or from the job around? */
int options_inherited(void);
/* Append them as "opt.NAME", or "inherited.NAME" when nobody typed it. */
void options_append(struct record *r);
/* The options of a submission, as a step with the same ones has them. */
void options_append_asked(const struct record *asked, struct record *r);
void options_append_defaults(spank_t sp, struct record *r);
/* A word of sbatch's command line, before options_append(). */
void options_count_word(const char *word);
/* srun parses again for each component of a heterogeneous job. */
void options_next_component(void);

/* ---- fail.c: errors that every task of the step must end on ----------- */

int fail_init(void);
void fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
int failed(void);
/* Print the error once per step and node, and end this process. */
void fail_exit(void) __attribute__((noreturn));

/* ---- job.c: /run/carme/jobs/ID ---------------------------------------- */

/* Does this job have a directory? With job_has_ended() two failed system calls:
 * all that a plain job ever pays. */
int job_is_sealed(uint32_t job);
/* Has a job with that id, submitted with --carme, just ended on this node? To
 * be asked when it has no directory. */
int job_has_ended(uint32_t job);
/* Open (create) the job's directory; -1 with errno. */
int job_open(uint32_t job, int create);
/* The same, with a lock that nobody else has until job_unlock(), or until all
 * copies of the descriptor are closed. */
int job_open_locked(uint32_t job, int create, int64_t deadline_ms);
void job_unlock(int dir);
/* Connect to the anchor's socket; -1 with errno. */
int job_connect(int dir);
/* What is in it, as far as there is time until deadline_ms, and itself. 0, or
 * -1 with errno where something is left. */
int job_remove(uint32_t job, int64_t deadline_ms);
/* The same, where an error is Slurm's to log. */
void job_discard(uint32_t job, int64_t deadline_ms);
/* job_remove(), once job_has_ended() knows: without that nothing is removed. */
int job_end(uint32_t job, int64_t deadline_ms);

/* ---- step.c, setup.c, task.c: slurmstepd of a step -------------------- */

/* xauthority.c: the cookie of Slurm's X11 forwarding */
struct xauthority {
	char name[64]; /* below /tmp; empty: none */
	char *bytes;
	size_t len;
};

struct step {
	int sealed;
	int pending; /* the set-up goes on */
	pid_t pid;   /* slurmstepd */
	uint32_t job, id;
	char name[STEP_NAME_MAX]; /* "0", "batch", "interactive" */
	uid_t uid;
	gid_t gid;
	uint32_t tasks;
	int dir;   /* the job's directory */
	int lease; /* connection to the anchor */
	int pid1;  /* pidfd of the job's PID 1 */
	int pidns, mntns;
	int filter; /* cgroup.procs of Carme's device cgroup (v1), or -1 */
	struct msg_fds devices; /* O_PATH, in the order of the plan */
	struct record plan;
	struct record result; /* the core's answer, when it was asked */
	const char *image;    /* key of the container, or NULL */
	int own_options;      /* result, not plan, tells of this step */
	struct record
	    asked;	 /* the job's submission, if carme-prolog noted it */
	int owner;	 /* the job ends with this step */
	int late;	 /* the environment is not set yet */
	int wanted;	 /* by this step's options or the job's */
	int enter;	 /* a task's own connection to the anchor */
	int32_t keyring; /* slurmd's, which is not for tasks */
	struct xauthority xauthority;
};

extern struct step the_step;

/* Who the step is, as Slurm says. 0, or -1. */
int step_items(spank_t sp, struct step *s);
/* What the core is to know of it. mode: "first", "later", or "early" for the
 * extern step, which stands for the first one. */
void step_request(spank_t sp, const struct step *s, const char *mode,
		  struct record *r);
/* Where image, workdir, path and environment of this step stand. */
const struct record *step_record(const struct step *s);
/* Set that environment: before the tasks, and in each one that an image's
 * environment has been laid over. */
void step_set_environment(spank_t sp, const struct step *s);
void step_start(spank_t sp);
/* In user_init: what step_start() has begun must be done before there are
 * tasks. */
void step_ready(spank_t sp);
/* The same where user_init runs in a process of its own (contain_spank), which
 * has other descriptors: the environment is each task's business then. */
void step_finish(void);
void step_end(void);

/* Spawn the anchor and the core. 0, or -1 after fail(). *asks: the core will
 * want to know what slurmctld gave to the job. */
int setup_begin(const struct step *s, struct record *request,
		int64_t deadline_ms, int *asks);
/* Wait until they are done. The lease, or -1 after fail(). Without may_ask
 * slurmctld cannot be asked any more, and is not. */
int setup_finish(struct record *result, int may_ask);
/* In the extern step's slurmstepd: spawn the core. 0, or -1 where it would be
 * of no use. */
int setup_early_begin(const struct step *s, struct record *request);
/* Then the anchor, in the extern step's cgroups, if there is a core. It takes
 * over, with the lock of s->dir. */
void setup_early_anchor(const struct step *s);
/* At the job's end, or where it comes to nothing: if it still goes on, it is
 * ended. */
void setup_early_end(void);
/* probe.c: will it? constrain is as given_append_constrain() says it, dir is
 * where the GPUs are. */
int probe_core_asks(int anchor, const char *constrain, const char *dir,
		    int timeout_ms);
/* Is there a GPU in that directory at all? */
int probe_any_gpu(const char *dir);
/* Let the core judge a later step's own options and prepare its container, if
 * it is another one; lease is a connection to the anchor. The result's "image"
 * replaces the plan's. 0, or -1 after fail(). */
int setup_later(int lease, const struct record *request, int64_t deadline_ms,
		struct record *result);

/* early.c: init_post_opt and task_post_fork of the extern step. */
void early_begin(spank_t sp);
void early_go_on(void);

/* given.c: "constrain", if this slurmstepd knows whether Slurm does. */
void given_append_constrain(struct record *r);
/* What slurmctld gave the job on this node: "gres" as in scontrol -d show job,
 * and a "device" ("INDEX MAJOR:MINOR") for each that gres.conf has; "unknown"
 * with the reason if any of it cannot be told for sure. */
void given_answer(uint32_t job, const char *node, struct record *r);

/* Read the cookie outside, as root, if path is one that Slurm made for uid. */
void xauthority_read(struct xauthority *x, const char *path, uid_t uid);
/* Write it inside, where /tmp is the job's own. */
void xauthority_write(const struct xauthority *x, uid_t uid, gid_t gid);

void task_start_privileged(spank_t sp);
void task_start(spank_t sp);

/* ---- filter.c: Carme's own device cgroup, on cgroup v1 ----------------- */

/* Move this process into the job's, if it has one. 0, or -1 with errno. */
int filter_enter(const struct step *s);
/* In the extern step's slurmstepd, when all processes are gone. 0, also where
 * one of them does not go; or -1 with errno. */
int filter_remove(uint32_t job);

/* ---- forkhook.c ------------------------------------------------------- */

int forkhook_install(struct step *s);
void forkhook_arm(void);

/* ---- proof.c ---------------------------------------------------------- */

/* Compare what this task can open with what it was given. 0, or -1 after
 * fail(). uuids gets the comma separated UUIDs of its GPUs, or "void". given is
 * Slurm's list of the indexes of this task's GPUs, NULL if what can be opened
 * tells them. */
int proof_devices(const struct step *s, const char *given, char *uuids,
		  size_t len);
int proof_namespaces(const struct step *s);

/* ---- local.c, extern.c ------------------------------------------------ */

void local_check(spank_t sp);

/* Can every node of a job seal steps off: has it the feature "carme"? */
enum seal {
	SEAL_YES,
	SEAL_NO,
	SEAL_NO_MORE, /* the job was submitted with that constraint */
	SEAL_UNKNOWN, /* slurmctld does not say */
};

/* For SEAL_NO and SEAL_NO_MORE node is one that cannot. */
enum seal allocation_can_seal(uint32_t job, char *node, size_t len);

/* If Slurm then finds no node for the job, say which ones Carme rules out. */
void allocation_explain_at_exit(void);
/* --carme=list and --carme=help: print and end the program. */
void local_show(const char *what) __attribute__((noreturn));
/* The same where it is the first word, before the program asks for more. */
void local_show_first(void);
void extern_end(spank_t sp);

#endif
