/* stub.h - what a test can see and say of the SPANK calls in stub.c. */
#ifndef CARME_TEST_STUB_H
#define CARME_TEST_STUB_H

#include <slurm/spank.h>

/* Answer of spank_context(). */
extern enum spank_context stub_context;
/* S_JOB_ID, 0 for an error in all items, and S_JOB_STEPID; the user is who runs
 * the test. */
extern uint32_t stub_job, stub_step;
/* The options that were registered, in order. */
extern const struct spank_option *stub_options[16];
extern int stub_option_count;
/* Lines that slurmstepd was given for its log. */
extern int stub_errors;
/* The value that was set last for a variable, or NULL. */
const char *stub_env(const char *name);

#endif
