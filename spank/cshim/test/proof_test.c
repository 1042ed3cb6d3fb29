/* The judgement over devices, with /dev/null and its like in place of GPUs. */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "../proof.c"
#include "stub.h"
#include "tap.h"

static void part(struct step *s, const char *path, const char *node,
		 const char *own, const char *uuid, const char *parent)
{
	record_add(&s->plan, "dev.path", path);
	record_add(&s->plan, "dev.own", own);
	record_add(&s->plan, "dev.uuid", uuid);
	record_add(&s->plan, "dev.parent", parent);
	record_addf(&s->plan, "dev.index", "%d", s->devices.n);
	msg_fds_add(&s->devices, open(node, O_PATH | O_CLOEXEC));
}

static void device(struct step *s, const char *path, const char *node,
		   const char *own, const char *uuid)
{
	part(s, path, node, own, uuid, "-1");
}

static void begin(struct step *s)
{
	memset(s, 0, sizeof(*s));
	record_init(&s->plan);
	msg_fds_init(&s->devices);
}

static void end(struct step *s)
{
	record_free(&s->plan);
	msg_fds_close(&s->devices);
}

static void own_ones(void)
{
	struct step s;
	char uuids[64];

	begin(&s);
	ok(!proof_devices(&s, NULL, uuids, sizeof(uuids)) &&
	       !strcmp(uuids, "void"),
	   "no GPU is void");
	device(&s, "/dev/null", "/dev/null", "1", "GPU-a");
	device(&s, "/dev/zero", "/dev/zero", "1", "GPU-b");
	ok(!proof_devices(&s, NULL, uuids, sizeof(uuids)) &&
	       !strcmp(uuids, "GPU-a,GPU-b"),
	   "two GPUs of one's own");
	ok(!proof_devices(&s, "1,12", uuids, sizeof(uuids)) &&
	       !strcmp(uuids, "GPU-b"),
	   "Slurm's list tells the share of a task");
	ok(!proof_devices(&s, "", uuids, sizeof(uuids)) &&
	       !strcmp(uuids, "void"),
	   "an empty one is no share");
	ok(!proof_devices(&s, NULL, uuids, 8) && !strcmp(uuids, "GPU-a"),
	   "a list that does not fit is not cut within a name");
	end(&s);
	begin(&s);
	/* Of the job, but of another task of it: EPERM there, here a file that
	 * nobody may write. */
	device(&s, "/dev/null", "/proc/version", "1", "GPU-a");
	if (geteuid() == 0)
		tap_skip("a GPU of another task is not listed", "root may all");
	else
		ok(!proof_devices(&s, NULL, uuids, sizeof(uuids)) &&
		       !strcmp(uuids, "void"),
		   "a GPU of another task is not listed");
	end(&s);
	begin(&s);
	device(&s, "/dev/null", "/dev/null", "1", "");
	part(&s, "/dev/zero", "/dev/zero", "1", "MIG-a", "0");
	part(&s, "/nowhere", "/dev/zero", "0", "MIG-b", "0");
	part(&s, "/dev/zero", "/dev/zero", "1", "MIG-c", "7");
	ok(!proof_devices(&s, NULL, uuids, sizeof(uuids)) &&
	       !strcmp(uuids, "MIG-a"),
	   "a part counts when it and its GPU may be used");
	end(&s);
	ok(!failed(), "none of it is a failure");
}

/* A failure is kept for good, so each of these has a process to itself. */
static int fails(const char *path, const char *node, const char *own)
{
	struct step s;
	char uuids[64];
	int rc;

	begin(&s);
	device(&s, path, node, own, "GPU-a");
	rc = proof_devices(&s, NULL, uuids, sizeof(uuids));
	end(&s);
	return rc;
}

static void foreign_ones(void)
{
	struct step s;
	char uuids[64];

	ok(fails("/nowhere", "/dev/null", "0") == -1,
	   "a foreign device that opens is a failure");
	ok(failed(), "and ends the step");
	ok(fails("/dev/null", "/dev/null", "0") == -1, "seen or not");
	ok(fails("/nowhere", "/dev/null", "1") == -1,
	   "an own device that is missing is a failure");
	ok(fails("/dev/zero", "/dev/null", "1") == -1,
	   "so is another device in its place");
	begin(&s);
	msg_fds_add(&s.devices, open("/dev/null", O_PATH | O_CLOEXEC));
	ok(proof_devices(&s, NULL, uuids, sizeof(uuids)) == -1,
	   "a device that the plan does not name is a failure");
	end(&s);
}

static void namespaces(void)
{
	struct step s = {0};

	ok(sys_own_inode("pid") == sys_path_inode("/proc/self/ns/pid") &&
	       sys_own_inode("mnt") == sys_path_inode("/proc/self/ns/mnt"),
	   "this process's own, whoever tells");
	s.pidns = open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC);
	s.mntns = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
	ok(!proof_namespaces(&s), "the job's namespaces are these");
	close(s.mntns);
	s.mntns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	ok(proof_namespaces(&s) == -1, "another mount namespace is a failure");
	close(s.pidns);
	s.pidns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	ok(proof_namespaces(&s) == -1, "another PID namespace is a failure");
	close(s.pidns);
	s.pidns = -1;
	ok(proof_namespaces(&s) == -1, "none at all is a failure");
	close(s.mntns);
}

int main(void)
{
	ok(failed(), "without shared memory everything has failed");
	ok(!fail_init() && !failed(), "with it, nothing has yet");
	own_ones();
	foreign_ones();
	namespaces();
	return tap_end();
}
