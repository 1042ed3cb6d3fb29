/* sleeper.h - the extern step's own process. By itself: sys/user.h has a struct
 * user too. */
#ifndef CARME_SLEEPER_H
#define CARME_SLEEPER_H

/* Makes it outlive signals that are for the job's tasks. -1 if it could not be
 * made to. */
int sleeper_stays(int pidfd);

#endif
