/*
 * early.h - a set-up that begins while Slurm makes the job ready, before a step
 * waits for it.
 */
#ifndef CARME_EARLY_H
#define CARME_EARLY_H

/* Milliseconds for it: less than a step waits, which can then still make its
 * own, and say what is wrong. */
#define EARLY_MS 10000

#endif
