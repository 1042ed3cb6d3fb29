/* What the plugin uses of Slurm's slurm.h; see spank.h beside it. */
#ifndef CARME_TEST_SLURM_H
#define CARME_TEST_SLURM_H

#include <stdint.h>

#define SLURM_VERSION_NUM(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define SLURM_VERSION_NUMBER SLURM_VERSION_NUM(24, 11, 5)

#define NO_VAL 0xfffffffeU
#define NO_VAL64 0xfffffffffffffffeULL
#define SLURM_INTERACTIVE_STEP 0xfffffffaU
#define SLURM_BATCH_SCRIPT 0xfffffffbU
#define SLURM_EXTERN_CONT 0xfffffffcU

typedef struct {
	uint32_t job_id;
	uint32_t step_het_comp;
	uint32_t step_id;
} slurm_step_id_t;

#endif
