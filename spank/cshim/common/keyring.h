/*
 * keyring.h - session keyrings (session-keyring(7)). A process hands its own
 * down to its children, and whoever has it may list, read and replace what
 * others have put into it. slurmd has one from systemd (KeyringMode= in
 * systemd.exec(5)): the tasks of all users on the node would share it.
 */
#ifndef CARME_KEYRING_H
#define CARME_KEYRING_H

#include <stdint.h>

/* The id of the calling thread's keyring; 0 if there is none to be told. */
int32_t keyring_session(void);

/*
 * Take a new, empty one instead of slurmd's. One with another id is kept: PAM
 * or another plugin has made it for the job. Called as root, whose quota of
 * keys is large enough for any number of tasks. 0, or -1 with errno.
 */
int keyring_leave(int32_t slurmds);

#endif
