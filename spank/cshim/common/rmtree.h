/* rmtree.h - remove what is in a directory, without ever leaving it. */
#ifndef CARME_RMTREE_H
#define CARME_RMTREE_H

/*
 * Remove everything below the directory dirfd. Symbolic links are removed, not
 * followed; the user's own directories may be among what is removed, so every
 * step is by descriptor. 0, or -1 with the errno of the first failure.
 */
int rmtree_contents(int dirfd);
/* The same, but for one entry of that name in dirfd itself. */
int rmtree_contents_but(int dirfd, const char *keep);

#endif
