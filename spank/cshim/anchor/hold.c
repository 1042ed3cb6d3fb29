/*
 * carme-hold: the first program in a container. It tells the anchor that the
 * container is up and what the image's environment is, and stays, so that the
 * container's namespaces stay. Static: it runs in whatever the image holds.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "../common/msg.h"
#include "../common/sys.h"

extern char **environ;

int main(void)
{
	struct pollfd p = {.fd = 0, .events = POLLIN};
	struct record r;
	sigset_t all;

	prctl(PR_SET_NAME, "carme-hold", 0, 0, 0);
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	record_init(&r);
	record_add(&r, "type", "ready");
	for (char **e = environ; *e; e++)
		record_add(&r, "env", *e);
	if (msg_send(0, &r, NULL)) {
		fprintf(stderr,
			"tell the anchor of the image's environment (at most "
			"%d bytes): %s\n",
			MSG_MAX, strerror(errno));
		return 1;
	}
	record_free(&r);
	sys_close_range(1, ~0U);
	/* The socket closes when the anchor ends, and with it the job. */
	while (poll(&p, 1, -1) <= 0 || !(p.revents & (POLLHUP | POLLERR)))
		p.revents = 0;
	return 0;
}
