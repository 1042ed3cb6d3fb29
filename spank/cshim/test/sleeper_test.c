/* The extern step's own process, here an ordinary sleep. */
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>

#include "../anchor/sleeper.c"
#include "../common/sys.h"
#include "tap.h"

static pid_t start(const char *seconds)
{
	pid_t pid = fork();

	if (pid == 0) {
		execl("/bin/sleep", "sleep", seconds, NULL);
		_exit(127);
	}
	return pid;
}

/* Waits until it sleeps: before, it has not become sleep, or still starts. */
static void asleep(pid_t pid)
{
	char path[64], text[128] = "";

	snprintf(path, sizeof(path), "/proc/%d/syscall", (int) pid);
	for (int i = 0; i < 5000; i++) {
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);

		if (fd >= 0)
			close(fd);
		text[n > 0 ? n : 0] = '\0';
		if (atoi(text) == SYS_clock_nanosleep ||
		    atoi(text) == SYS_nanosleep)
			return;
		poll(NULL, 0, 1);
	}
}

static void outlives_signals(void)
{
	pid_t pid = start("600");
	int pidfd = sys_pidfd_open(pid), status = 0;
	struct pollfd p = {pidfd, POLLIN, 0};

	asleep(pid);
	ok(sleeper_stays(pidfd) == 0, "it is made to ignore signals");
	for (int sig = 1; sig < NSIG; sig++)
		if (!for_the_sleeper(sig))
			kill(pid, sig);
	ok(poll(&p, 1, 200) == 0, "it sleeps on after each of them");
	kill(pid, SIGSTOP);
	kill(pid, SIGCONT);
	ok(poll(&p, 1, 50) == 0, "and after it was stopped and went on");
	kill(pid, SIGTERM);
	ok(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) &&
	       WTERMSIG(status) == SIGTERM,
	   "the end of the job ends it");
	close(pidfd);
}

static void sleeps_as_long_as_it_was_to(void)
{
	pid_t pid = start("1");
	int pidfd = sys_pidfd_open(pid), status = -1;
	int64_t before = sys_now_ms(), took;

	asleep(pid);
	sleeper_stays(pidfd);
	waitpid(pid, &status, 0);
	took = sys_now_ms() - before;
	ok(WIFEXITED(status) && WEXITSTATUS(status) == 0, "it ends as a sleep");
	ok(took >= 900, "and not before its time");
	close(pidfd);
}

static void leaves_others_alone(void)
{
	pid_t pid = fork();
	int pidfd, status = 0;

	if (pid == 0)
		for (;;)
			pause();
	pidfd = sys_pidfd_open(pid);
	ok(sleeper_stays(pidfd) < 0, "what is no sleep is left alone");
	kill(pid, SIGUSR1);
	waitpid(pid, &status, 0);
	ok(WIFSIGNALED(status) && WTERMSIG(status) == SIGUSR1, "altogether");
	close(pidfd);
	ok(sleeper_stays(-1) < 0, "no process is none");
}

int main(void)
{
#ifdef __x86_64__
	outlives_signals();
	sleeps_as_long_as_it_was_to();
#else
	tap_skip("outlives signals", "made for x86-64");
	(void) outlives_signals;
	(void) sleeps_as_long_as_it_was_to;
#endif
	leaves_others_alone();
	return tap_end();
}
