/* jobdir.h - /run/carme/jobs/ID, reached by descriptors alone. */
#ifndef CARME_JOBDIR_H
#define CARME_JOBDIR_H

#include <stdint.h>

/* Open the job's directory, after making it and those above if asked to; -1
 * with errno. */
int jobdir_open(uint32_t job, int create);

#endif
