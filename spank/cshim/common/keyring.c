#include "keyring.h"

#include <errno.h>
#include <linux/keyctl.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

int32_t keyring_session(void)
{
	long id = syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID,
			  KEY_SPEC_SESSION_KEYRING, 0);

	return id > 0 ? (int32_t) id : 0;
}

int keyring_leave(int32_t slurmds)
{
	int32_t own = keyring_session();

	if (own && own != slurmds)
		return 0;
	if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL) > 0)
		return 0;
	/* A kernel without keys, or a filter that slurmd runs under and that
	 * closes them to its children too: nobody has one. */
	return (errno == ENOSYS || errno == EPERM) ? 0 : -1;
}
