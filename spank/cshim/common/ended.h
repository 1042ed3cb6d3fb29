/*
 * ended.h - which jobs that were submitted with --carme have ended on this node
 * lately: a file of fixed size, in which a job's place follows from its id. A
 * step whose slurmstepd comes so late that the job's directory is gone already
 * knows by it that it is not one of a plain job.
 */
#ifndef CARME_ENDED_H
#define CARME_ENDED_H

#include <stdint.h>

/* internal/cli/doctor/ended.go writes it too. */
#define CARME_ENDED "/run/carme/ended"

/* Note that the job ends now. 0, or -1 with errno. */
int ended_note(const char *file, uint32_t job);

/* Has it been noted in the last seven days? A later job with the same place
 * takes the note away; one of four thousand does. */
int ended_lately(const char *file, uint32_t job);

#endif
