/* jobinfo.h - what slurmctld knows of a job. */
#ifndef CARME_JOBINFO_H
#define CARME_JOBINFO_H

#include <stdint.h>

#include <slurm/slurm.h>

/* flags as for slurm_load_job(3). NULL where slurmctld does not answer, or this
 * Slurm has no such call. */
job_info_msg_t *jobinfo_load(uint32_t job, uint16_t flags);
void jobinfo_free(job_info_msg_t *msg);

#endif
