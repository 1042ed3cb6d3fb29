/*
 * jobfiles.h - what lies in /run/carme/jobs/ID. The Go side is
 * spank/core/job.go.
 */
#ifndef CARME_JOBFILES_H
#define CARME_JOBFILES_H

#define JOB_SOCKET "anchor.sock" /* the anchor listens here */
#define JOB_EXTERN "extern"	 /* "PID STARTED" of the extern slurmstepd */
#define JOB_PMIX "pmix"		 /* SLURM_PMIX_TMPDIR */
#define JOB_ASKED "asked"	 /* what the job was submitted with (asked.h) */
#define JOB_PROOF "proof.json"	 /* the set-up's record, for carme proof */

#endif
