/*
 * The failure of a step lives in memory shared with its tasks: set-up fails in
 * slurmstepd before there is a task, checks fail in one task of many, and the
 * user must see one line.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "plugin.h"

struct shared {
	int taken;   /* somebody has written text */
	int failed;  /* text is complete */
	int printed; /* somebody has shown it */
	char text[1024];
};

static struct shared *shared;

int fail_init(void)
{
	if (shared)
		return 0;
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		shared = NULL;
	return shared ? 0 : -1;
}

void fail(const char *fmt, ...)
{
	va_list ap;

	if (!shared || __atomic_exchange_n(&shared->taken, 1, __ATOMIC_SEQ_CST))
		return;
	va_start(ap, fmt);
	vsnprintf(shared->text, sizeof(shared->text), fmt, ap);
	va_end(ap);
	__atomic_store_n(&shared->failed, 1, __ATOMIC_SEQ_CST);
}

int failed(void)
{
	/* No shared memory at all is a failure too. */
	return !shared || __atomic_load_n(&shared->taken, __ATOMIC_SEQ_CST);
}

/* Another task may be about to write it. A second is for the case that this
 * task was killed meanwhile. */
static const char *complete_text(void)
{
	for (int i = 0; i < 1000; i++) {
		if (__atomic_load_n(&shared->failed, __ATOMIC_SEQ_CST))
			return shared->text;
		usleep(1000);
	}
	return "the step could not be sealed off";
}

void fail_exit(void)
{
	if (!shared)
		dprintf(2, "carme: out of memory; try again\n");
	else if (!__atomic_exchange_n(&shared->printed, 1, __ATOMIC_SEQ_CST))
		dprintf(2, "carme: %s\n", complete_text());
	_exit(1);
}
