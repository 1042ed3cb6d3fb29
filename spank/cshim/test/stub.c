/* A SPANK stack of one plugin, for the tests. */
#include "stub.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define VARIABLES_MAX 32

enum spank_context stub_context = S_CTX_LOCAL;
uint32_t stub_job, stub_step;
const struct spank_option *stub_options[16];
int stub_option_count;
int stub_errors;

static struct {
	char name[64], value[1024];
} variable[VARIABLES_MAX];

enum spank_context spank_context(void)
{
	return stub_context;
}

spank_err_t spank_get_item(spank_t sp, spank_item_t item, ...)
{
	spank_err_t rc = ESPANK_SUCCESS;
	va_list ap;

	(void) sp;
	if (!stub_job)
		return ESPANK_ERROR;
	va_start(ap, item);
	switch (item) {
	case S_JOB_ID:
		*va_arg(ap, uint32_t *) = stub_job;
		break;
	case S_JOB_STEPID:
		*va_arg(ap, uint32_t *) = stub_step;
		break;
	case S_JOB_UID:
		*va_arg(ap, uid_t *) = getuid();
		break;
	case S_JOB_GID:
		*va_arg(ap, gid_t *) = getgid();
		break;
	case S_JOB_LOCAL_TASK_COUNT:
		*va_arg(ap, uint32_t *) = 1;
		break;
	default:
		rc = ESPANK_ERROR;
	}
	va_end(ap);
	return rc;
}

spank_err_t spank_option_register(spank_t sp, struct spank_option *opt)
{
	(void) sp;
	if (stub_option_count == 16)
		return ESPANK_ERROR;
	stub_options[stub_option_count++] = opt;
	return ESPANK_SUCCESS;
}

spank_err_t spank_setenv(spank_t sp, const char *name, const char *value,
			 int overwrite)
{
	int i = 0;

	(void) sp;
	while (i < VARIABLES_MAX - 1 && variable[i].name[0] &&
	       strcmp(variable[i].name, name))
		i++;
	if (variable[i].name[0] && !overwrite)
		return ESPANK_ERROR;
	snprintf(variable[i].name, sizeof(variable[i].name), "%s", name);
	snprintf(variable[i].value, sizeof(variable[i].value), "%s", value);
	return ESPANK_SUCCESS;
}

const char *stub_env(const char *name)
{
	for (int i = 0; i < VARIABLES_MAX; i++)
		if (!strcmp(variable[i].name, name))
			return variable[i].value;
	return NULL;
}

spank_err_t spank_getenv(spank_t sp, const char *name, char *buf, int len)
{
	const char *v = stub_env(name);

	(void) sp;
	if (!v || (int) strlen(v) >= len)
		return ESPANK_ERROR;
	memcpy(buf, v, strlen(v) + 1);
	return ESPANK_SUCCESS;
}

void slurm_error(const char *fmt, ...)
{
	va_list ap;

	stub_errors++;
	va_start(ap, fmt);
	fputs("# slurm_error: ", stderr);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	va_end(ap);
}
