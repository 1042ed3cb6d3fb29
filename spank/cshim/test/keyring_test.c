/* Keyrings of real processes; where the kernel lets nobody have one, that this
 * is no error. */
#include <errno.h>
#include <linux/keyctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../common/keyring.h"
#include "tap.h"

static const char secret[] = "it-carme-secret";

static long put(void)
{
	return syscall(SYS_add_key, "user", secret, "x", 1,
		       KEY_SPEC_SESSION_KEYRING);
}

static long find(void)
{
	return syscall(SYS_keyctl, KEYCTL_SEARCH, KEY_SPEC_SESSION_KEYRING,
		       "user", secret, 0);
}

/* In a process of its own, so that the keyring of whoever runs the tests stays
 * as it is. */
static int keyrings(void)
{
	int32_t slurmds, jobs;

	ok(!keyring_leave(keyring_session()), "a keyring can be left");
	slurmds = keyring_session();
	ok(slurmds && put() > 0 && find() > 0, "it takes a secret");
	ok(!keyring_leave(slurmds), "slurmd's is left");
	jobs = keyring_session();
	ok(jobs && jobs != slurmds, "for another one");
	ok(find() < 0 && errno == ENOKEY, "which has nothing of it");
	ok(!keyring_leave(slurmds) && keyring_session() == jobs,
	   "one that was made for the job is kept");
	ok(!syscall(SYS_keyctl, KEYCTL_REVOKE, KEY_SPEC_SESSION_KEYRING) &&
	       !keyring_session(),
	   "any job can revoke slurmd's");
	ok(!keyring_leave(0) && keyring_session() && keyring_session() != jobs,
	   "which keeps nobody from another one");
	tap_end();
	fflush(stdout); /* _exit() does not */
	return tap_failures;
}

int main(void)
{
	int status = 1;
	pid_t pid;

	if (!keyring_session()) {
		ok(!keyring_leave(0), "no keyrings here, and no error");
		return tap_end();
	}
	pid = fork();
	if (pid == 0)
		_exit(keyrings());
	waitpid(pid, &status, 0);
	return !WIFEXITED(status) || WEXITSTATUS(status);
}
