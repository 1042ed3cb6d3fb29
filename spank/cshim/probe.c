/*
 * Will the core ask what slurmctld gave to the job? It does where the kernel
 * lets the job open every GPU (spank/core/probe.go: decideDevices). Once
 * slurmstepd has taken the user's effective uid it must make no credential (it
 * holds auth's lock, and asking would end it), so the answer is given before.
 */
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "common/sys.h"
#include "plugin.h"

static int is_gpu(const char *name)
{
	size_t n = strlen("nvidia");

	return !strncmp(name, "nvidia", n) && name[n] &&
	       strspn(name + n, "0123456789") == strlen(name + n);
}

static void open_gpus(const char *dir, struct msg_fds *fds)
{
	DIR *d = opendir(dir);
	struct dirent *e;

	msg_fds_init(fds);
	while (d && (e = readdir(d)))
		if (is_gpu(e->d_name))
			msg_fds_add(fds,
				    openat(dirfd(d), e->d_name,
					   O_PATH | O_NOFOLLOW | O_CLOEXEC));
	if (d)
		closedir(d);
}

static int has_closed(const struct record *r)
{
	const char *v = NULL;

	while ((v = record_next(r, "ok", v)))
		if (!strcmp(v, "0"))
			return 1;
	return 0;
}

/* The anchor is in the job's cgroups. When in doubt, the core will ask. */
static int any_closed(int anchor, const struct msg_fds *fds, int timeout_ms)
{
	struct record r;
	int closed, rc;

	record_init(&r);
	record_add(&r, "type", "probe");
	rc = msg_send(anchor, &r, fds);
	record_free(&r);
	if (rc || msg_recv(anchor, &r, NULL, NULL, timeout_ms) != 1)
		return 0;
	closed = has_closed(&r);
	record_free(&r);
	return closed;
}

int probe_any_gpu(const char *dir)
{
	struct msg_fds fds;
	int n;

	open_gpus(dir, &fds);
	n = fds.n;
	msg_fds_close(&fds);
	return n > 0;
}

int probe_core_asks(int anchor, const char *constrain, const char *dir,
		    int timeout_ms)
{
	struct msg_fds fds;
	int asks = 0;

	open_gpus(dir, &fds);
	if (fds.n)
		asks = !constrain || strcmp(constrain, "yes") != 0 ||
		       !any_closed(anchor, &fds, timeout_ms);
	msg_fds_close(&fds);
	return asks;
}
