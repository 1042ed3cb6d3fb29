/* The runtime never starts as root. */
#include "../anchor/container.c"

#include "tap.h"

int enter_namespaces(const struct namespaces *ns)
{
	(void) ns;
	return 0;
}

static int becomes(uid_t uid, gid_t gid)
{
	struct record plan = {.bad = 1};
	struct user u = {.uid = uid, .gid = gid, .plan = &plan};
	int status = 0;
	pid_t pid = fork();

	if (pid == 0)
		_exit(become_user(&u)
			  ? errno
			  : !prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
	waitpid(pid, &status, 0);
	return WEXITSTATUS(status);
}

int main(void)
{
	ok(becomes((uid_t) -1, 1000) == EINVAL, "a plan without a user");
	ok(becomes(1000, (gid_t) -1) == EINVAL, "a plan without a group");
	if (!getuid())
		ok(becomes(54321, 54321) == 0,
		   "a user, who gains no privileges");
	return tap_end();
}
