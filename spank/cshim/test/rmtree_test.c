/* Removal never leaves the directory, whatever lies in it. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../common/rmtree.h"
#include "../common/sys.h"
#include "tap.h"

static char top[] = "/tmp/carme-rmtree-XXXXXX";

#define USER 54321
/* Directories; more than are removed in 20 ms. */
#define HEAD_START 4000

static int64_t soon(void)
{
	return sys_now_ms() + 20000;
}

static int dig(int at, int depth)
{
	int fd = dup(at);

	for (int i = 0; i < depth && fd >= 0; i++) {
		int sub = mkdirat(fd, "d", 0700)
			      ? -1
			      : openat(fd, "d", O_RDONLY | O_DIRECTORY);

		close(fd);
		fd = sub;
	}
	return fd;
}

static void touch(int at, const char *name)
{
	close(openat(at, name, O_WRONLY | O_CREAT, 0600));
}

static void ordinary(int root, int dir)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int sock = socket(AF_UNIX, SOCK_STREAM, 0);
	int deep = dig(dir, 40);

	touch(dir, "file");
	touch(dir, "a name\nwith more");
	touch(deep, "file");
	close(deep);
	mkfifoat(dir, "fifo", 0600);
	snprintf(a.sun_path, sizeof(a.sun_path), "%s/inside/sock", top);
	ok(!bind(sock, (struct sockaddr *) &a, sizeof(a)), "make a socket");
	close(sock);
	mkdirat(root, "outside", 0700);
	deep = openat(root, "outside", O_RDONLY | O_DIRECTORY);
	touch(deep, "precious");
	ok(!symlinkat("../outside", dir, "link"), "link to a directory");
	ok(!symlinkat("/nowhere", dir, "dangling"), "link to nothing");
	ok(!rmtree_contents(dir, NULL, soon()), "all of it goes");
	ok(faccessat(dir, "file", F_OK, 0) && faccessat(dir, "d", F_OK, 0) &&
	       faccessat(dir, "link", F_OK, AT_SYMLINK_NOFOLLOW),
	   "nothing is left");
	ok(!faccessat(deep, "precious", F_OK, 0),
	   "what a link pointed to is untouched");
	close(deep);
	ok(!rmtree_contents(dir, NULL, soon()),
	   "an empty directory is no error");
}

static void deeper_than_the_stack(int dir)
{
	int deep = dig(dir, 1000);

	ok(deep >= 0, "dig deep");
	touch(deep, "file");
	close(deep);
	/* The name that the first one gets that is moved up. */
	touch(dir, ".carme-removed-0");
	ok(!rmtree_contents(dir, NULL, soon()),
	   "however deep a tree is, it goes");
	ok(faccessat(dir, "d", F_OK, 0) &&
	       faccessat(dir, ".carme-removed-1", F_OK, 0),
	   "and leaves nothing behind");
}

static void but_one(int dir)
{
	int deep = dig(dir, 3);

	touch(deep, "kept");
	close(deep);
	touch(dir, "kept");
	touch(dir, "other");
	ok(!rmtree_contents(dir, "kept", soon()), "all but one entry goes");
	ok(!faccessat(dir, "kept", F_OK, 0) && faccessat(dir, "other", F_OK, 0),
	   "which stays");
	ok(faccessat(dir, "d", F_OK, 0), "one of that name below does not");
	ok(!rmtree_contents(dir, NULL, soon()) &&
	       faccessat(dir, "kept", F_OK, 0),
	   "then it goes too");
}

/* A process of the user's in another job, which was handed a directory, digs on
 * there, one directory in the other, without end. */
static pid_t dig_on(int dir)
{
	pid_t pid = fork();
	int at = dup(dir);

	if (pid) {
		close(at);
		return pid;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (!getuid() && (setgid(USER) || setuid(USER)))
		_exit(1);
	for (int n = 0;; n++) {
		int below;

		if (n == HEAD_START)
			touch(dir, "far down");
		mkdirat(at, "d", 0700);
		below = openat(at, "d", O_RDONLY | O_DIRECTORY);
		if (below < 0)
			pause(); /* caught */
		close(at);
		at = below;
	}
}

static void against_the_user(int dir)
{
	int64_t began;
	struct stat st;
	int at, rc;
	pid_t pid;

	mkdirat(dir, "users", 0700);
	at = openat(dir, "users", O_RDONLY | O_DIRECTORY);
	ok(at >= 0 && (getuid() || !fchown(at, USER, USER)),
	   "a user's directory");
	pid = dig_on(at);
	while (faccessat(at, "far down", F_OK, 0))
		usleep(1000);
	began = sys_now_ms();
	rc = rmtree_contents(dir, NULL, began + 20);
	ok(sys_now_ms() - began < 2000,
	   "who digs faster than is removed keeps nobody at it");
	ok(rc && errno == ETIMEDOUT && !fstat(at, &st) && st.st_uid == getuid(),
	   "but can fill what was come to no more");
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	close(at);
	ok(!rmtree_contents(dir, NULL, sys_now_ms() + 50000),
	   "when he stops, all of it goes");
}

int main(void)
{
	int root, dir;

	if (!mkdtemp(top))
		return 1;
	root = open(top, O_RDONLY | O_DIRECTORY);
	mkdirat(root, "inside", 0700);
	dir = openat(root, "inside", O_RDONLY | O_DIRECTORY);
	ordinary(root, dir);
	deeper_than_the_stack(dir);
	but_one(dir);
	against_the_user(dir);
	close(dir);
	ok(!rmtree_contents(root, NULL, soon()) && !rmdir(top), "clean up");
	close(root);
	return tap_end();
}
