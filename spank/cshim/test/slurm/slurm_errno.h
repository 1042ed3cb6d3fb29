/* What the plugin uses of Slurm's slurm_errno.h; see spank.h beside it. */
#ifndef CARME_TEST_SLURM_ERRNO_H
#define CARME_TEST_SLURM_ERRNO_H

enum { ESLURM_REQUESTED_NODE_CONFIG_UNAVAILABLE = 2014 };

#endif
