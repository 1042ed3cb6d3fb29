/*
 * The plugin that does nothing: what Carme is measured against. It has the
 * callbacks that Carme has, because Slurm's cost is in calling them. For tests
 * of a neighbour that fails, USER_INIT and the like say what is returned.
 */
#include <slurm/spank.h>

SPANK_PLUGIN(noop, 1)

#ifndef POST_OPT
#define POST_OPT 0
#endif
#ifndef USER_INIT
#define USER_INIT 0
#endif
#ifndef TASK_INIT
#define TASK_INIT 0
#endif

#define UNUSED __attribute__((unused))
/* Failures only on the nodes: in srun they would end the matter there. */
#define CALLBACK(name, rc)                                                     \
	int name(spank_t sp UNUSED, int ac UNUSED, char *av[] UNUSED)          \
	{                                                                      \
		return spank_remote(sp) == 1 ? (rc) : 0;                       \
	}

CALLBACK(slurm_spank_init, 0)
CALLBACK(slurm_spank_init_post_opt, POST_OPT)
CALLBACK(slurm_spank_user_init, USER_INIT)
CALLBACK(slurm_spank_task_init_privileged, 0)
CALLBACK(slurm_spank_task_init, TASK_INIT)
CALLBACK(slurm_spank_exit, 0)
