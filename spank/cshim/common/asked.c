#include "asked.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "jobfiles.h"
#include "sys.h"

/* "SPANK_" is what Slurm puts in front of everything that a submission says
 * about plugins (slurm_protocol_defs.c:valid_spank_job_env). */
#define OPTION "SPANK__SLURM_SPANK_OPTION_carme_"
#define NEW JOB_ASKED ".new"

int asked_is_no(const char *value)
{
	return !strcmp(value, "no") || !strcmp(value, "0");
}

static const char *find(char *const env[], const char *name)
{
	size_t n = strlen(name);

	for (; *env; env++)
		if (!strncmp(*env, name, n) && (*env)[n] == '=')
			return *env + n + 1;
	return NULL;
}

static void add_option(struct record *r, const char *entry)
{
	const char *name = entry + strlen(OPTION);
	const char *eq = strchr(name, '=');
	char key[64];

	if (!eq || (size_t) (eq - name) > sizeof(key) - sizeof("inherited."))
		return; /* none of ours */
	snprintf(key, sizeof(key), "inherited.%.*s", (int) (eq - name), name);
	record_add(r, key, eq + 1);
}

int asked_from_prolog(char *const env[], struct record *r)
{
	const char *uid = find(env, "SLURM_JOB_UID");
	const char *carme = find(env, OPTION "carme");

	record_init(r);
	if (!uid)
		return -1;
	if (!carme || asked_is_no(carme) || find(env, OPTION "no_carme"))
		return 0;
	record_add(r, "uid", uid);
	for (; *env; env++)
		if (!strncmp(*env, OPTION, strlen(OPTION)))
			add_option(r, *env);
	return 1;
}

int asked_write(int dir, const struct record *r)
{
	int fd = sys_open_beneath(dir, NEW, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	int cause = 0;

	if (fd < 0)
		return -1;
	errno = ENOSPC; /* of a write that is cut short */
	if (!record_ok(r))
		cause = E2BIG;
	else if (write(fd, r->buf, r->len) != (ssize_t) r->len)
		cause = errno;
	sys_close(&fd);
	/* The job's first step, which is still to come, makes the mark of its
	 * extern step. One that is there is of an earlier run of a requeued
	 * job; by it this one would be taken for a leftover. */
	unlinkat(dir, JOB_EXTERN, 0);
	/* In any case: asked_read() takes a part for the error that it is, but
	 * no file for a plain job. */
	if (renameat(dir, NEW, dir, JOB_ASKED))
		return -1;
	errno = cause;
	return cause ? -1 : 0;
}

int asked_read(int dir, uid_t uid, struct record *r)
{
	int fd = sys_open_beneath(dir, JOB_ASKED, O_RDONLY, 0);
	char *bytes = NULL;
	struct stat st;
	int rc = -1;

	record_init(r);
	if (fd < 0)
		return errno == ENOENT ? 0 : -1;
	/* The entries, and their length in front. */
	if (!fstat(fd, &st) && st.st_size > 4 && st.st_size <= RECORD_MAX + 4)
		bytes = malloc((size_t) st.st_size);
	if (bytes && read(fd, bytes, (size_t) st.st_size) == st.st_size) {
		record_free(r);
		rc = record_parse(r, bytes, (size_t) st.st_size);
	} else {
		errno = EBADMSG;
	}
	free(bytes);
	sys_close(&fd);
	if (rc)
		return -1;
	return record_num(r, "uid", -1) == (long) uid;
}
