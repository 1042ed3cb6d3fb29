/*
 * A container of a job: the runtime (Apptainer) is started as the user inside
 * the job's namespaces, with carme-hold as its program. The hold program says
 * "ready" over its standard input, which is a socket; the kernel vouches for
 * its pid, through which the container's namespaces are opened.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/mount.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../common/keyring.h"
#include "../common/sys.h"
#include "anchor.h"

#define GROUPS_MAX 65536

static int become_user(const struct user *u)
{
	const char *v = NULL;
	gid_t *gids;
	int n = 0;
	int rc;

	/* For setresuid(2) these mean to stay what one is: root. */
	if (u->uid == (uid_t) -1 || u->gid == (gid_t) -1) {
		errno = EINVAL;
		return -1;
	}
	gids = calloc(GROUPS_MAX, sizeof(*gids));
	if (!gids)
		return -1;
	while ((v = record_next(u->plan, "gids", v)) && n < GROUPS_MAX)
		gids[n++] = (gid_t) strtoul(v, NULL, 10);
	rc = setgroups((size_t) n, gids);
	free(gids);
	if (rc || setresgid(u->gid, u->gid, u->gid) ||
	    setresuid(u->uid, u->uid, u->uid))
		return -1;
	/* A step without an image may trace the runtime, which would be its
	 * way to programs with the set-user-id bit. */
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return -1;
	return prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
}

static char **list_of(const struct record *spec, const char *key)
{
	const char *v = NULL;
	size_t n = 0;
	char **list;

	while ((v = record_next(spec, key, v)))
		n++;
	list = calloc(n + 1, sizeof(*list));
	if (!list)
		return NULL;
	n = 0;
	while ((v = record_next(spec, key, v)))
		list[n++] = (char *) v;
	return list;
}

static void reset_oom_score(void)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	/* The anchor is protected from the OOM killer; a user's container
	 * must not be. Failing here would only leave it protected. */
	if (fd >= 0 && write(fd, "0", 1) != 1)
		errno = 0;
	if (fd >= 0)
		close(fd);
}

/*
 * The image, where the runtime looks for it, in a mount namespace of this
 * container's own: no path of the user's is walked again after the core has
 * judged it, and nobody can change what stands at this one.
 */
static int show_image(int image, const char *path)
{
	int target, rc;

	if (image < 0 || !path) {
		errno = EINVAL;
		return -1;
	}
	if (unshare(CLONE_NEWNS))
		return -1;
	target = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	rc = target < 0 ? -1
			: (int) syscall(SYS_move_mount, image, "", target, "",
					MOVE_MOUNT_F_EMPTY_PATH |
					    MOVE_MOUNT_T_EMPTY_PATH);
	sys_close(&target);
	return rc;
}

static void run_runtime(const struct namespaces *ns, const struct user *user,
			const struct record *spec, int image, int sock,
			int output)
{
	char **argv = list_of(spec, "argv");
	char **envp = list_of(spec, "env");
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	for (int s = 1; s < NSIG; s++)
		signal(s, SIG_DFL);
	if (!argv || !argv[0] || !envp)
		_exit(1);
	if (dup2(sock, 0) < 0 || dup2(output, 1) < 0 || dup2(output, 2) < 0)
		_exit(1);
	if (setsid() < 0 || enter_namespaces(ns) || chdir("/")) {
		dprintf(2, "join the job's namespaces: %s\n", strerror(errno));
		_exit(1);
	}
	if (show_image(image, record_get(spec, "image"))) {
		dprintf(2, "show the image: %s\n", strerror(errno));
		_exit(1);
	}
	reset_oom_score();
	/* What the anchor has is slurmd's, since the plugin started it. */
	if (keyring_leave(keyring_session())) {
		dprintf(2, "make a keyring for the container: %s\n",
			strerror(errno));
		_exit(1);
	}
	if (become_user(user)) {
		dprintf(2, "become the user: %s\n", strerror(errno));
		_exit(1);
	}
	sys_close_range(3, ~0U);
	execve(argv[0], argv, envp);
	dprintf(2, "run %s: %s\n", argv[0], strerror(errno));
	_exit(127);
}

static void container_fail(struct container *c, const char *why)
{
	c->state = CONTAINER_FAILED;
	snprintf(c->why, sizeof(c->why), "%s", why);
}

struct container *container_start(const struct namespaces *ns,
				  const struct user *user,
				  const struct record *spec, int image)
{
	struct container *c = calloc(1, sizeof(*c));
	const char *key = record_get(spec, "key");
	int pair[2] = {-1, -1};
	int on = 1;

	if (!c)
		return NULL;
	c->pidfd = c->sock = c->output = c->userns = c->mntns = -1;
	c->key = strdup(key ? key : "");
	c->env.bad = 1;
	if (!c->key)
		container_fail(c, "out of memory");
	c->output = memfd_create("carme-container", MFD_CLOEXEC);
	if (c->output < 0 ||
	    socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) ||
	    setsockopt(pair[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof(on))) {
		container_fail(c, strerror(errno));
		return c;
	}
	c->pid = fork();
	if (c->pid == 0)
		run_runtime(ns, user, spec, image, pair[1], c->output);
	close(pair[1]);
	c->sock = pair[0];
	if (c->pid < 0) {
		container_fail(c, strerror(errno));
		return c;
	}
	c->pidfd = sys_pidfd_open(c->pid);
	return c;
}

/* The directory keeps to the process, whoever gets its number later. */
static int open_process(pid_t pid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/ns", (int) pid);
	return open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

/* The speaker must be in this job's PID namespace and in a user namespace of
 * its own: else a task would join something that is not the container. */
static int namespaces_of(struct container *c, pid_t pid,
			 const struct namespaces *ns)
{
	int dir = open_process(pid);
	int pidns = openat(dir, "pid", O_RDONLY | O_CLOEXEC);
	uint64_t inode = sys_inode(pidns);

	c->userns = openat(dir, "user", O_RDONLY | O_CLOEXEC);
	c->mntns = openat(dir, "mnt", O_RDONLY | O_CLOEXEC);
	sys_close(&pidns);
	sys_close(&dir);
	if (!inode || inode != sys_inode(ns->pid))
		return -1;
	if (c->userns < 0 || c->mntns < 0)
		return -1;
	if (sys_inode(c->userns) == sys_path_inode("/proc/self/ns/user"))
		return -1;
	return 0;
}

void container_on_socket(struct container *c, const struct namespaces *ns)
{
	struct record r;
	pid_t pid = 0;
	int rc = msg_recv(c->sock, &r, NULL, &pid, 0);

	if (rc <= 0) {
		/* The reason, if any, comes with the runtime's exit. */
		sys_close(&c->sock);
		return;
	}
	if (c->state != CONTAINER_STARTING) {
		record_free(&r);
		return;
	}
	c->env = r;
	if (pid <= 0 || namespaces_of(c, pid, ns)) {
		container_fail(c, "the container is not inside the job's "
				  "namespaces");
		sys_pidfd_kill(c->pidfd, SIGKILL);
		return;
	}
	c->state = CONTAINER_READY;
}

/* The end of what the runtime printed, on one line. */
static void last_output(int fd, char *out, size_t len)
{
	struct stat st;
	off_t from = 0;
	ssize_t n = 0;

	if (!fstat(fd, &st) && st.st_size > (off_t) len - 1)
		from = st.st_size - ((off_t) len - 1);
	n = pread(fd, out, len - 1, from);
	if (n < 0)
		n = 0;
	out[n] = '\0';
	while (n > 0 && strchr("\r\n ", out[n - 1]))
		out[--n] = '\0';
	for (ssize_t i = 0; i < n; i++)
		if ((unsigned char) out[i] < ' ')
			out[i] = ' ';
}

void container_on_exit(struct container *c)
{
	char text[400];
	int status = 0;

	waitpid(c->pid, &status, 0);
	sys_close(&c->pidfd);
	sys_close(&c->userns);
	sys_close(&c->mntns);
	if (c->state == CONTAINER_FAILED)
		return; /* the reason is known */
	c->state = CONTAINER_FAILED;
	last_output(c->output, text, sizeof(text));
	if (WIFSIGNALED(status))
		snprintf(c->why, sizeof(c->why),
			 "the container was killed by signal %d%s%s",
			 WTERMSIG(status), text[0] ? ": " : "", text);
	else
		snprintf(c->why, sizeof(c->why),
			 "the container ended with status %d%s%s",
			 WEXITSTATUS(status), text[0] ? ": " : "", text);
}
