#include "msg.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

void msg_fds_init(struct msg_fds *f)
{
	f->n = 0;
}

void msg_fds_add(struct msg_fds *f, int fd)
{
	if (f->n < MSG_FDS_MAX)
		f->fd[f->n++] = fd;
}

void msg_fds_close(struct msg_fds *f)
{
	for (int i = 0; i < f->n; i++)
		if (f->fd[i] >= 0)
			close(f->fd[i]);
	f->n = 0;
}

int msg_fds_take(struct msg_fds *f, int i)
{
	int fd;

	if (i < 0 || i >= f->n)
		return -1;
	fd = f->fd[i];
	f->fd[i] = -1;
	return fd;
}

int msg_send(int sock, const struct record *r, const struct msg_fds *fds)
{
	union {
		char buf[CMSG_SPACE(sizeof(int) * MSG_FDS_MAX)];
		struct cmsghdr align;
	} ctl;
	struct iovec iov = {.iov_base = r->buf, .iov_len = r->len};
	struct msghdr h = {.msg_iov = &iov, .msg_iovlen = 1};
	ssize_t n;

	if (!record_ok(r) || r->len > MSG_MAX) {
		errno = EMSGSIZE;
		return -1;
	}
	if (fds && fds->n) {
		size_t bytes = sizeof(int) * (size_t) fds->n;
		struct cmsghdr *c;

		memset(&ctl, 0, sizeof(ctl));
		h.msg_control = ctl.buf;
		h.msg_controllen = CMSG_SPACE(bytes);
		c = CMSG_FIRSTHDR(&h);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(bytes);
		memcpy(CMSG_DATA(c), fds->fd, bytes);
	}
	do
		n = sendmsg(sock, &h, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -1 : 0;
}

static int wait_readable(int sock, int timeout_ms)
{
	struct pollfd p = {.fd = sock, .events = POLLIN};
	int rc;

	do
		rc = poll(&p, 1, timeout_ms);
	while (rc < 0 && errno == EINTR);
	if (rc == 0) {
		errno = ETIMEDOUT;
		return -1;
	}
	return rc < 0 ? -1 : 0;
}

/* The buffer has room for a sender's name too, which in its absence holds
 * descriptors: there may be more than MSG_FDS_MAX. */
static void take_rights(const struct cmsghdr *c, struct msg_fds *fds)
{
	size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

	for (size_t i = 0; i < n; i++) {
		int fd;

		memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
		if (fds->n < MSG_FDS_MAX)
			msg_fds_add(fds, fd);
		else
			close(fd);
	}
}

static void take_control(struct msghdr *h, struct msg_fds *fds, pid_t *sender)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(h); c; c = CMSG_NXTHDR(h, c)) {
		if (c->cmsg_level != SOL_SOCKET)
			continue;
		if (c->cmsg_type == SCM_RIGHTS) {
			take_rights(c, fds);
		} else if (c->cmsg_type == SCM_CREDENTIALS && sender) {
			struct ucred u;

			memcpy(&u, CMSG_DATA(c), sizeof(u));
			*sender = u.pid;
		}
	}
}

int msg_recv(int sock, struct record *r, struct msg_fds *fds, pid_t *sender,
	     int timeout_ms)
{
	union {
		char buf[CMSG_SPACE(sizeof(int) * MSG_FDS_MAX) +
			 CMSG_SPACE(sizeof(struct ucred))];
		struct cmsghdr align;
	} ctl;
	struct iovec iov = {.iov_len = MSG_MAX};
	struct msghdr h = {.msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_control = ctl.buf,
			   .msg_controllen = sizeof(ctl.buf)};
	struct msg_fds none;
	ssize_t n;
	int rc = -1;

	/* Without room the kernel drops them. It must not be done here: to
	 * close a file of a user's file system is to wait for its server. */
	if (!fds) {
		fds = &none;
		h.msg_controllen = CMSG_SPACE(sizeof(struct ucred));
	}
	msg_fds_init(fds);
	if (sender)
		*sender = 0;
	if (wait_readable(sock, timeout_ms))
		return -1;
	iov.iov_base = malloc(MSG_MAX);
	if (!iov.iov_base)
		return -1;
	do
		n = recvmsg(sock, &h, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n >= 0)
		take_control(&h, fds, sender);
	if (n == 0)
		rc = 0;
	else if (n > 0 && (h.msg_flags & (MSG_TRUNC | MSG_CTRUNC)))
		errno = EMSGSIZE;
	else if (n > 0 && !record_parse(r, iov.iov_base, (size_t) n))
		rc = 1;
	free(iov.iov_base);
	if (rc != 1) {
		int e = errno;

		msg_fds_close(fds);
		errno = e;
	}
	return rc;
}
