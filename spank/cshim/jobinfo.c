/*
 * slurmctld's record of a job, slurm_load_job(3). Looked up at run time: the
 * programs that load this plugin must not fail to over a symbol that few jobs
 * need.
 */
#include <dlfcn.h>
#include <stdint.h>

#include <slurm/slurm.h>

#include "jobinfo.h"

#if SLURM_VERSION_NUMBER >= SLURM_VERSION_NUM(26, 5, 0)
typedef int load_f(job_info_msg_t **resp, slurm_step_id_t id, uint16_t flags);

static slurm_step_id_t name(uint32_t job)
{
	slurm_step_id_t id = SLURM_STEP_ID_INITIALIZER;

	id.job_id = job;
	return id;
}
#else
typedef int load_f(job_info_msg_t **resp, uint32_t job, uint16_t flags);

static uint32_t name(uint32_t job)
{
	return job;
}
#endif

typedef void free_f(job_info_msg_t *msg);

job_info_msg_t *jobinfo_load(uint32_t job, uint16_t flags)
{
	job_info_msg_t *msg = NULL;
	load_f *load;

	*(void **) &load = dlsym(RTLD_DEFAULT, "slurm_load_job");
	if (!load || load(&msg, name(job), flags))
		return NULL;
	return msg;
}

void jobinfo_free(job_info_msg_t *msg)
{
	free_f *release;

	*(void **) &release = dlsym(RTLD_DEFAULT, "slurm_free_job_info_msg");
	if (release && msg)
		release(msg);
}
