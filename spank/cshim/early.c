/*
 * init_post_opt and task_post_fork in the extern step's slurmstepd, as root:
 * the job is on the node, and srun will not come before some tens of
 * milliseconds. Of a job that carme-prolog has written down, the set-up begins
 * here, and nobody waits for it; the first step finds it done (step.c), or
 * makes its own where this one failed, is of no use to it, or was never begun.
 * So nothing is an error here: what is wrong with the job, its first step finds
 * too, and has somebody to tell.
 *
 * The core starts before slurmstepd goes into the job's cgroups of memory and
 * devices, which it would keep from being removed if it hung; the anchor when
 * they are there.
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <slurm/slurm.h>

#include "common/asked.h"
#include "common/sys.h"
#include "plugin.h"

/* Milliseconds to wait for somebody who looks for what other jobs have left. */
#define LOCK_MS 100

/* slurmstepd of an extern step whose core is on its way, else 0. */
static pid_t begun_by;

/* Of an image more must be known than the extern step knows: from where it was
 * asked for, and the binds in the environment. A value that stands for the
 * site's own choice may be one too, which only the core can tell. */
static int wants_image(const struct record *asked)
{
	static const char *const words[] = {"", "(null)", "yes", "1", "none"};
	const char *value = record_get(asked, "inherited.carme");

	for (size_t i = 0; value && i < sizeof(words) / sizeof(*words); i++)
		if (!strcmp(value, words[i]))
			return 0;
	return 1;
}

/* carme-debug tells the times of a set-up to the step that makes it. */
static int suits(const struct record *asked)
{
	return !wants_image(asked) &&
	       !record_get(asked, "inherited.carme_debug");
}

static int was_asked(uint32_t job)
{
	char path[64];

	snprintf(path, sizeof(path), CARME_JOBS "/%u/" JOB_ASKED,
		 (unsigned int) job);
	return access(path, F_OK) == 0;
}

/* 1 where the core is on its way. */
static int begin(spank_t sp, struct step *s)
{
	int dir = job_open(s->job, 0);
	struct record request;
	int rc = 0;

	if (dir < 0)
		return 0;
	if (asked_read(dir, s->uid, &s->asked) == 1 && suits(&s->asked)) {
		step_request(sp, s, "early", &request);
		rc = !setup_early_begin(s, &request);
		record_free(&request);
	}
	record_free(&s->asked);
	sys_close(&dir);
	return rc;
}

void early_begin(spank_t sp)
{
	struct step *s = &the_step;

	/* Without a process of its own whose cgroups the anchor could be born
	 * in. To be moved costs what this saves (anchor/places.c). */
	if (SLURM_VERSION_NUMBER >= SLURM_VERSION_NUM(25, 11, 0))
		return;
	if (!spank_get_item(sp, S_JOB_ID, &s->job) && was_asked(s->job) &&
	    access(CARME_KILL_SWITCH, F_OK) && !step_items(sp, s) &&
	    begin(sp, s))
		begun_by = getpid();
}

void early_go_on(void)
{
	struct step *s = &the_step;

	/* Every step calls this for each of its tasks. */
	if (!begun_by)
		return;
	/* With contain_spank it is another process. */
	if (begun_by == getpid())
		s->dir = job_open_locked(s->job, 0, sys_now_ms() + LOCK_MS);
	if (s->dir >= 0)
		setup_early_anchor(s);
	else
		setup_early_end();
	/* Not unlocked: the anchor has it now. */
	sys_close(&s->dir);
}
