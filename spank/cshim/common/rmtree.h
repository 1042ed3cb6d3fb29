/* rmtree.h - remove what is in a directory, without ever leaving it. */
#ifndef CARME_RMTREE_H
#define CARME_RMTREE_H

#include <stdint.h>

/*
 * Remove everything below the directory dirfd, but for one entry of dirfd
 * itself if keep names it. Symbolic links are removed, not followed; the user's
 * own directories may be among what is removed, so every step is by descriptor.
 * What is left at the deadline (sys_now_ms()) stays: a user who has kept one of
 * the directories open can make new ones in it as fast as they go. 0 if nothing
 * is left, else -1 with errno.
 */
int rmtree_contents(int dirfd, const char *keep, int64_t deadline_ms);

#endif
