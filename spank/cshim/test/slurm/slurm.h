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

#define SHOW_ALL 0x0001
#define SHOW_DETAIL 0x0002

#define JOB_STATE_BASE 0x000000ff
enum job_states { JOB_PENDING, JOB_RUNNING, JOB_SUSPENDED };

typedef struct {
	uint32_t job_id;
	uint32_t job_state;
	char *nodes;
	char *features;
	uint32_t gres_detail_cnt;
	char **gres_detail_str;
	char *tres_alloc_str;
} slurm_job_info_t;

typedef struct {
	uint32_t record_count;
	slurm_job_info_t *job_array;
} job_info_msg_t;

typedef struct {
	char *name;
	char *features_act;
} node_info_t;

typedef struct {
	uint32_t record_count;
	node_info_t *node_array;
} node_info_msg_t;

typedef struct hostlist hostlist_t;

#endif
