/* What the anchor keeps of those who ask it. */
int anchor_main(void);
#define main anchor_main
#include "../anchor/anchor.c"
#undef main
#include "tap.h"

int pid1_start(struct namespaces *ns, pid_t *pid, const char **why)
{
	(void) ns;
	(void) pid;
	*why = "not here";
	return -1;
}

pid_t places_fork(const struct record *kinds, struct msg_fds *fds)
{
	(void) kinds;
	(void) fds;
	return -1;
}

struct container *container_start(const struct namespaces *ns,
				  const struct user *user,
				  const struct record *spec, int image)
{
	(void) ns;
	(void) user;
	(void) spec;
	(void) image;
	return NULL;
}

void container_on_socket(struct container *c, const struct namespaces *ns)
{
	(void) c;
	(void) ns;
}

void container_on_exit(struct container *c)
{
	(void) c;
}

void stepkill(const char *step)
{
	(void) step;
}

static struct anchor anchor;

/* How many devices were answered for. */
static int ask(int core, int devices)
{
	struct peer p = {.core = core};
	const char *v = NULL;
	struct msg_fds fds;
	struct record r;
	int pair[2], n = 0;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair))
		return -1;
	p.fd = pair[0];
	msg_fds_init(&fds);
	for (int i = 0; i < devices; i++)
		msg_fds_add(&fds, open("/dev/null", O_PATH | O_CLOEXEC));
	on_probe(&anchor, &p, &fds);
	msg_fds_close(&fds);
	if (msg_recv(pair[1], &r, NULL, NULL, 1000) != 1)
		return -1;
	while ((v = record_next(&r, "ok", v)))
		n++;
	record_free(&r);
	close(pair[0]);
	close(pair[1]);
	return n;
}

int main(void)
{
	ok(ask(0, 3) == 3 && anchor.devices.n == 0,
	   "the plugin's question is answered, and its devices are not kept");
	ok(ask(1, 2) == 2 && anchor.devices.n == 2, "the core's are");
	ok(ask(0, 3) == 3 && anchor.devices.n == 2,
	   "also when the plugin asks afterwards");
	ok(ask(1, 1) == 1 && anchor.devices.n == 1,
	   "until the core asks again");
	msg_fds_close(&anchor.devices);
	return tap_end();
}
