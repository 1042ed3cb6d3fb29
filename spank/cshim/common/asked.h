/*
 * asked.h - the options with which a job was submitted, in its directory on
 * each of its nodes. carme-prolog writes them before the job's first step; by
 * them a step is known to be that of a sealed job whatever its own options say.
 */
#ifndef CARME_ASKED_H
#define CARME_ASKED_H

#include <sys/types.h>

#include "record.h"

/* A value of --carme that means not to; spank/request/parse.go:onOff has the
 * same words. */
int asked_is_no(const char *value);

/*
 * What an environment of slurmd's Prolog says (slurm.conf(5)): "uid", and an
 * "inherited.NAME" for each option, as the core reads it. 1 if the job is to
 * be sealed, 0 if not, -1 if the environment is not that of a Prolog; then *r
 * is empty.
 */
int asked_from_prolog(char *const env[], struct record *r);

/* Keep it in the job's directory. 0, or -1 with errno; what was kept is then
 * one that cannot be read, if there is a file at all. */
int asked_write(int dir, const struct record *r);

/* 1 and the record if there is one of a job of that user, 0 if there is none,
 * -1 with errno if it cannot be read. */
int asked_read(int dir, uid_t uid, struct record *r);

#endif
