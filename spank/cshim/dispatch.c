/*
 * The SPANK entry points. Each returns 0, always: with "required" a nonzero
 * return of init, init_post_opt or user_init drains the node, with "optional"
 * it is ignored (spank.c:_do_call_stack, slurmstepd/mgr.c). Failures are kept
 * by fail() and end the tasks instead.
 */
#include "plugin.h"

#include <slurm/slurm.h>

SPANK_PLUGIN(carme, 1)

#define UNUSED __attribute__((unused))

static uint32_t step_id(spank_t sp)
{
	uint32_t id = NO_VAL;

	return spank_get_item(sp, S_JOB_STEPID, &id) ? NO_VAL : id;
}

int slurm_spank_init(spank_t sp, int ac UNUSED, char *av[] UNUSED)
{
	switch (spank_context()) {
	case S_CTX_LOCAL:
	case S_CTX_ALLOCATOR:
		options_register(sp);
		local_show_first();
		options_from_environment();
		break;
	case S_CTX_REMOTE:
		if (step_id(sp) != SLURM_EXTERN_CONT)
			options_register(sp);
		break;
	default:
		break;
	}
	return 0;
}

int slurm_spank_init_post_opt(spank_t sp, int ac UNUSED, char *av[] UNUSED)
{
	switch (spank_context()) {
	case S_CTX_LOCAL:
	case S_CTX_ALLOCATOR:
		local_check(sp);
		break;
	case S_CTX_REMOTE:
		if (step_id(sp) == SLURM_EXTERN_CONT)
			early_begin(sp);
		else
			step_start(sp);
		break;
	default:
		break;
	}
	return 0;
}

int slurm_spank_user_init(spank_t sp, int ac UNUSED, char *av[] UNUSED)
{
	if (the_step.sealed) {
		step_ready(sp);
		forkhook_arm();
	}
	return 0;
}

/* Of the extern step, when its cgroups are made; of others nothing. */
int slurm_spank_task_post_fork(spank_t sp UNUSED, int ac UNUSED,
			       char *av[] UNUSED)
{
	early_go_on();
	return 0;
}

int slurm_spank_task_init_privileged(spank_t sp, int ac UNUSED,
				     char *av[] UNUSED)
{
	if (the_step.sealed)
		task_start_privileged(sp);
	return 0;
}

int slurm_spank_task_init(spank_t sp, int ac UNUSED, char *av[] UNUSED)
{
	if (the_step.sealed)
		task_start(sp);
	return 0;
}

int slurm_spank_exit(spank_t sp, int ac UNUSED, char *av[] UNUSED)
{
	if (spank_context() != S_CTX_REMOTE)
		return 0;
	if (the_step.sealed)
		step_end();
	else if (step_id(sp) == SLURM_EXTERN_CONT) {
		setup_early_end();
		extern_end(sp);
	}
	return 0;
}
