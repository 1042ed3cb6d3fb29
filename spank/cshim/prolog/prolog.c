/*
 * carme-prolog: run by slurmd, as root, before the first step of a job on each
 * of its nodes (slurm.conf(5), Prolog; contrib/slurm/prolog). It writes down
 * that the job is to be sealed, and with which options, as slurmctld knows them
 * from the submission. A step's own options say the same, but they are its
 * srun's: one from outside of the job, on a node where the job has not run yet,
 * has none.
 *
 * A Prolog that fails drains the node, so this one does not: what went wrong is
 * in the system's log.
 */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <syslog.h>

#include "../common/asked.h"
#include "../common/jobdir.h"
#include "../common/sys.h"

extern char **environ;

static uint32_t job_id(void)
{
	const char *text = getenv("SLURM_JOB_ID");
	char *end = NULL;
	unsigned long id = text ? strtoul(text, &end, 10) : 0;

	return (end && !*end && id <= UINT32_MAX) ? (uint32_t) id : 0;
}

int main(void)
{
	uint32_t job = job_id();
	struct record r;
	int asked = asked_from_prolog(environ, &r);
	int dir;

	umask(022);
	openlog("carme-prolog", LOG_PID, LOG_DAEMON);
	if (!job || asked < 0) {
		syslog(LOG_ERR, "not called as slurmd's Prolog: there is no "
				"SLURM_JOB_ID or no SLURM_JOB_UID");
		return 0;
	}
	if (!asked)
		return 0;
	dir = jobdir_open(job, 1);
	if (dir < 0 || asked_write(dir, &r))
		syslog(
		    LOG_ERR,
		    "job %u: write down that it is to be sealed: %s; its steps "
		    "are refused on this node, or one from outside may run "
		    "plain",
		    (unsigned int) job, strerror(errno));
	sys_close(&dir);
	record_free(&r);
	return 0;
}
