/* Records and descriptors over a socket. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../common/msg.h"
#include "tap.h"

static int pair[2];

static int open_fds(void)
{
	int n = 0;

	for (int fd = 0; fd < 1024; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

static void with_descriptors(void)
{
	struct msg_fds out, in;
	struct record r, got;
	struct stat a, b;
	int before = open_fds();

	msg_fds_init(&out);
	for (int i = 0; i < MSG_FDS_MAX; i++)
		msg_fds_add(&out, 0);
	msg_fds_add(&out, 0);
	ok(out.n == MSG_FDS_MAX, "no more than MSG_FDS_MAX are taken");
	record_init(&r);
	record_add(&r, "type", "probe");
	ok(!msg_send(pair[0], &r, &out), "send the most descriptors");
	ok(msg_recv(pair[1], &got, &in, NULL, 1000) == 1, "receive them");
	ok(in.n == MSG_FDS_MAX, "all of them");
	ok(!fstat(0, &a) && !fstat(in.fd[MSG_FDS_MAX - 1], &b) &&
	       a.st_ino == b.st_ino,
	   "the last is the file that was sent");
	ok(fcntl(in.fd[0], F_GETFD) & FD_CLOEXEC, "closed on exec");
	close(msg_fds_take(&in, 1));
	ok(msg_fds_take(&in, 1) == -1, "one is taken once");
	ok(msg_fds_take(&in, MSG_FDS_MAX) == -1 && msg_fds_take(&in, -1) == -1,
	   "there is none beyond the ends");
	record_free(&got);
	msg_fds_close(&in);
	ok(open_fds() == before, "nothing stays open");

	ok(!msg_send(pair[0], &r, &out), "send again");
	errno = 0;
	ok(msg_recv(pair[1], &got, NULL, NULL, 1000) == -1 && errno == EMSGSIZE,
	   "descriptors that nobody wants are refused");
	ok(open_fds() == before, "and do not come in");
	record_free(&r);
}

static void hostile(void)
{
	struct record r;
	struct msg_fds in;
	int before = open_fds();
	char *big = malloc(MSG_MAX + 1);
	int size = 4 * MSG_MAX;

	errno = 0;
	ok(msg_recv(pair[1], &r, &in, NULL, 0) == -1 && errno == ETIMEDOUT,
	   "nothing came: time out");
	ok(send(pair[0], "rubbish", 7, 0) == 7, "send rubbish");
	errno = 0;
	ok(msg_recv(pair[1], &r, &in, NULL, 1000) == -1 && errno == EBADMSG,
	   "rubbish is refused");
	memset(big, 'x', MSG_MAX + 1);
	setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	if (send(pair[0], big, MSG_MAX + 1, MSG_DONTWAIT) == MSG_MAX + 1) {
		errno = 0;
		ok(msg_recv(pair[1], &r, &in, NULL, 1000) == -1 &&
		       errno == EMSGSIZE,
		   "a packet that does not fit is refused");
	} else {
		tap_skip("a packet that does not fit is refused",
			 "the socket does not take one");
	}
	record_init(&r);
	big[MSG_MAX] = '\0';
	record_add(&r, "a", big);
	errno = 0;
	ok(msg_send(pair[0], &r, NULL) == -1 && errno == EMSGSIZE,
	   "a record above MSG_MAX is not sent");
	record_free(&r);
	free(big);
	ok(open_fds() == before, "nothing stays open");
}

/* The kernel passes more descriptors than a record may have. */
static void too_many_descriptors(void)
{
	const int most = 253; /* SCM_MAX_FD, unix(7) */
	char ctl[CMSG_SPACE(sizeof(int) * 253)] = "";
	char body[] = {4, 0, 0, 0, 'a', '=', 'b', 0};
	struct iovec iov = {.iov_base = body, .iov_len = sizeof(body)};
	struct msghdr h = {.msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_control = ctl,
			   .msg_controllen = sizeof(ctl)};
	struct cmsghdr *c = CMSG_FIRSTHDR(&h);
	int before = open_fds();
	struct msg_fds in;
	struct record r;

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int) * (size_t) most);
	for (int i = 0; i < most; i++)
		memcpy(CMSG_DATA(c) + (size_t) i * sizeof(int), &pair[0],
		       sizeof(int));
	ok(sendmsg(pair[0], &h, 0) > 0, "send as many as the kernel takes");
	ok(msg_recv(pair[1], &r, &in, NULL, 1000) == 1 && in.n == MSG_FDS_MAX,
	   "no more are taken than fit");
	record_free(&r);
	msg_fds_close(&in);
	ok(open_fds() == before, "the others are closed");
}

static void sender_and_end(void)
{
	struct record r, got;
	pid_t from = -1;
	int on = 1;

	setsockopt(pair[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof(on));
	record_init(&r);
	record_add(&r, "type", "ready");
	ok(!msg_send(pair[0], &r, NULL), "send as somebody");
	ok(msg_recv(pair[1], &got, NULL, &from, 1000) == 1 && from == getpid(),
	   "the kernel names the sender");
	record_free(&got);
	close(pair[0]);
	ok(msg_recv(pair[1], &got, NULL, &from, 1000) == 0,
	   "the peer's end is no error");
	ok(msg_send(pair[1], &r, NULL) == -1 && errno == EPIPE,
	   "sending to nobody gives EPIPE and no signal");
	record_free(&r);
	close(pair[1]);
}

int main(void)
{
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return 1;
	with_descriptors();
	hostile();
	too_many_descriptors();
	sender_and_end();
	return tap_end();
}
