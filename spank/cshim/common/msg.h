/*
 * msg.h - one record and some file descriptors over a SOCK_SEQPACKET socket
 * (unix(7), SCM_RIGHTS). The Go side is spank/anchor.go.
 */
#ifndef CARME_MSG_H
#define CARME_MSG_H

#include <sys/types.h>

#include "record.h"

/* The kernel passes 253 descriptors at most (SCM_MAX_FD). */
#define MSG_FDS_MAX 250
/* Largest record in one packet, bytes; fits the default socket buffer. */
#define MSG_MAX (160 * 1024)

struct msg_fds {
	int fd[MSG_FDS_MAX];
	int n;
};

void msg_fds_init(struct msg_fds *f);
void msg_fds_add(struct msg_fds *f, int fd);
/* Close what is left; taken descriptors have been set to -1. */
void msg_fds_close(struct msg_fds *f);
/* Hand descriptor i to the caller; -1 when there is none. */
int msg_fds_take(struct msg_fds *f, int i);

/* 0, or -1 with errno. fds may be NULL. */
int msg_send(int sock, const struct record *r, const struct msg_fds *fds);

/*
 * Wait at most timeout_ms (-1: for ever) for one packet. 1: a record came,
 * 0: the peer closed, -1: errno (ETIMEDOUT, EBADMSG, ...). r must be freed
 * when 1 comes back. sender may be NULL; else it gets the sender's pid in our
 * PID namespace, as the kernel sees it (needs SO_PASSCRED on sock), or 0.
 * Without fds a packet that brings descriptors is an error, EMSGSIZE.
 */
int msg_recv(int sock, struct record *r, struct msg_fds *fds, pid_t *sender,
	     int timeout_ms);

#endif
