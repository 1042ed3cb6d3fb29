/* Which jobs the extern step sets up. */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "../early.c"
#include "stub.h"
#include "tap.h"

struct step the_step = {.dir = -1};

static int asked, opened, anchors, ends, locked = 1;

int step_items(spank_t sp, struct step *s)
{
	(void) sp;
	(void) s;
	asked++;
	return -1;
}

void step_request(spank_t sp, const struct step *s, const char *mode,
		  struct record *r)
{
	(void) sp;
	(void) s;
	(void) mode;
	record_init(r);
}

int setup_early_begin(const struct step *s, struct record *request)
{
	(void) s;
	(void) request;
	return -1;
}

void setup_early_anchor(const struct step *s)
{
	(void) s;
	anchors++;
}

void setup_early_end(void)
{
	ends++;
}

int job_open(uint32_t job, int create)
{
	(void) job;
	(void) create;
	return -1;
}

int job_open_locked(uint32_t job, int create, int64_t deadline_ms)
{
	(void) job;
	(void) create;
	(void) deadline_ms;
	opened++;
	return locked ? open("/tmp", O_RDONLY | O_DIRECTORY) : -1;
}

/* "NAME VALUE", for what the job was submitted with. */
static int suited(const char *carme, const char *more)
{
	struct record r;
	int rc;

	record_init(&r);
	if (carme)
		record_add(&r, "inherited.carme", carme);
	if (more)
		record_add(&r, more, "");
	rc = suits(&r);
	record_free(&r);
	return rc;
}

int main(void)
{
	ok(suited("none", NULL) && suited("", NULL) && suited("(null)", NULL) &&
	       suited("yes", NULL),
	   "a job without an image suits");
	ok(!suited("base", NULL) && !suited("/opt/x.sif", NULL),
	   "one with an image does not");
	ok(!suited(NULL, NULL), "nor one without --carme");
	ok(!suited("none", "inherited.carme_debug"),
	   "nor one that wants the times of its set-up");
	ok(suited("none", "inherited.carme_net"), "other options do no harm");
	stub_job = 7;
	early_begin(NULL);
	ok(!asked && !opened,
	   "a job of which the Prolog has noted nothing is left alone");
	early_go_on();
	ok(!opened && !anchors && !ends, "and nothing goes on");
	the_step.pid = getpid();
	early_go_on();
	ok(!opened && !anchors && !ends,
	   "nor in a step that has turned out to be plain");
	begun_by = getpid();
	early_go_on();
	ok(opened == 1 && anchors == 1 && !ends && the_step.dir < 0,
	   "what has begun goes on, with the lock");
	locked = 0;
	early_go_on();
	ok(opened == 2 && anchors == 1 && ends == 1,
	   "without it all is taken back");
	locked = 1;
	begun_by = getppid();
	early_go_on();
	ok(opened == 2 && anchors == 1 && ends == 2,
	   "and in another process than slurmstepd");
	return tap_end();
}
