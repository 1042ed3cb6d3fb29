/*
 * extern.h - the job's extern step: Slurm keeps it as long as the job, kills
 * what is in it at the end, and lets root put processes into it. The calls are
 * those of pam_slurm_adopt; they are exported by libslurm but declared in no
 * public header, so they are looked up at run time and missing ones are an
 * error of the step, not of loading the plugin.
 */
#ifndef CARME_EXTERN_H
#define CARME_EXTERN_H

#include <stdint.h>
#include <sys/types.h>

#include "common/msg.h"

struct extern_step {
	int sock;	   /* to its slurmstepd */
	uint16_t protocol; /* of that connection */
	char spool[108];   /* the directory of that socket: SlurmdSpoolDir */
	char node[108];	   /* this node, as Slurm calls it */
	pid_t pid;	   /* its slurmstepd */
	unsigned long long started; /* clock ticks since boot, proc(5) stat */
};

/* 0, or -1 with *why set to what is missing and how to mend it. */
int extern_open(uint32_t job, struct extern_step *e, const char **why);
/*
 * The extern step's cgroups, opened for a process that is to be born there or
 * to go there by itself, with one "place" each; none where that cannot be. To
 * be moved by somebody else costs 5 to 10 ms, in which no process of the node
 * can fork: the kernel waits until nobody looks at the old place any more.
 */
void extern_places(const struct extern_step *e, struct record *kinds,
		   struct msg_fds *fds);
/* Make sure that pid, which has no children yet, is in the extern step: move it
 * where it has not gone by itself. 0 or -1. */
int extern_adopt(struct extern_step *e, pid_t pid);
/* Slurm's own mount namespace of the job (job_container/tmpfs,
 * namespace/tmpfs), to build upon; -1 if it has none. *why is set if it has
 * others that cannot be built upon. */
int extern_namespace(struct extern_step *e, const char **why);
/* A pidfd of the process for whose end the extern step's slurmstepd waits
 * ("sleep"); it is killed when the job ends. -1 where it cannot be found. */
int extern_sleeper(const struct extern_step *e);
void extern_close(struct extern_step *e);
/* Remove what crashes have left of other jobs. */
void extern_sweep(uint32_t own);
/* "PID STARTED": who the extern step is, for a later comparison. */
void extern_identity(const struct extern_step *e, char *text, size_t len);

#endif
