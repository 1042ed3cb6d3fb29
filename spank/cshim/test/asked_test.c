/* What a job was submitted with: from the Prolog's environment into the job's
 * directory and back. */
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../common/asked.h"
#include "../common/jobfiles.h"
#include "../common/sys.h"
#include "tap.h"

#define CARME "SPANK__SLURM_SPANK_OPTION_carme_"
#define UID "SLURM_JOB_UID=1001"

static int asks(char *const env[])
{
	struct record r;
	int rc = asked_from_prolog(env, &r);

	record_free(&r);
	return rc;
}

static void environment(void)
{
	struct record r;

	ok(asks((char *[]){UID, "PATH=/bin", NULL}) == 0, "a plain job");
	ok(asks((char *[]){CARME "carme=base", NULL}) == -1,
	   "an environment without a user is no Prolog's");
	ok(asks((char *[]){UID, CARME "carme=no", NULL}) == 0 &&
	       asks((char *[]){UID, CARME "carme=0", NULL}) == 0,
	   "--carme=no");
	ok(asks((char *[]){UID, CARME "carme=base", CARME "no_carme=(null)",
			   NULL}) == 0,
	   "--no-carme takes it back");
	ok(asks((char *[]){UID, CARME "carme_net=private", NULL}) == 0,
	   "another option alone asks for nothing");
	ok(asks((char *[]){UID, CARME "carmel=x",
			   "XSPANK__SLURM_SPANK_OPTION_"
			   "carme_carme=base",
			   NULL}) == 0,
	   "a name that only begins or ends like ours");
	ok(asked_from_prolog((char *[]){UID, CARME "carme=(null)",
					CARME "carme_bind=/a:/b\n/c", "X=y",
					CARME "novalue", NULL},
			     &r) == 1,
	   "--carme");
	ok(!strcmp(record_get(&r, "uid"), "1001") &&
	       !strcmp(record_get(&r, "inherited.carme"), "(null)") &&
	       !strcmp(record_get(&r, "inherited.carme_bind"), "/a:/b\n/c") &&
	       !record_get(&r, "inherited.novalue"),
	   "its options as they are, and its user");
	record_free(&r);
}

static void hostile(void)
{
	size_t n = 2 * RECORD_MAX;
	char *huge = malloc(n + 1);
	char *name = malloc(4096);
	struct record r;

	memset(huge, 'x', n);
	huge[n] = '\0';
	memcpy(huge, CARME "carme_bind=", strlen(CARME "carme_bind="));
	ok(asked_from_prolog((char *[]){UID, CARME "carme=", huge, NULL}, &r) ==
		   1 &&
	       !record_ok(&r) && asked_write(-1, &r) == -1,
	   "a value of 2 MB makes no record");
	record_free(&r);
	memset(name, 'y', 4095);
	memcpy(name, CARME, strlen(CARME));
	strcpy(name + 4090, "=1");
	ok(asked_from_prolog((char *[]){UID, CARME "carme=", name, NULL}, &r) ==
		   1 &&
	       record_ok(&r) && !record_next(&r, "inherited.yyyy", NULL),
	   "nor does a name that is none of ours");
	record_free(&r);
	free(huge);
	free(name);
}

static void spoil(int dir, const char *bytes, size_t n)
{
	int fd = openat(dir, JOB_ASKED, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	ok(fd >= 0 && write(fd, bytes, n) == (ssize_t) n, "spoilt");
	close(fd);
}

static int asked_on_a_full_disk(int dir, const struct record *r)
{
	struct rlimit old, none;
	int rc;

	getrlimit(RLIMIT_FSIZE, &old);
	none = old;
	none.rlim_cur = 0;
	signal(SIGXFSZ, SIG_IGN);
	setrlimit(RLIMIT_FSIZE, &none);
	rc = asked_write(dir, r);
	setrlimit(RLIMIT_FSIZE, &old);
	return rc;
}

static void directory(void)
{
	char top[] = "/tmp/carme-asked-XXXXXX";
	int dir = mkdtemp(top) ? open(top, O_RDONLY | O_DIRECTORY) : -1;
	struct record r, back;
	struct stat st;

	ok(asked_read(dir, 1001, &back) == 0, "nothing is there");
	record_free(&back);
	asked_from_prolog((char *[]){UID, CARME "carme=base",
				     CARME "carme_net=private", NULL},
			  &r);
	close(openat(dir, JOB_EXTERN, O_WRONLY | O_CREAT, 0600));
	ok(!asked_write(dir, &r) && !asked_write(dir, &r), "written, twice");
	ok(faccessat(dir, JOB_EXTERN, F_OK, 0),
	   "a requeued job is not its own leftover");
	ok(!fstatat(dir, JOB_ASKED, &st, 0) && (st.st_mode & 0777) == 0600,
	   "for root alone");
	ok(asked_read(dir, 1001, &back) == 1 && back.len == r.len &&
	       !memcmp(back.buf, r.buf, r.len),
	   "and read");
	record_free(&back);
	ok(asked_read(dir, 1002, &back) == 0,
	   "a leftover of another user's job counts for nothing");
	record_free(&back);
	ok(asked_on_a_full_disk(dir, &r) == -1, "on a full disk writing fails");
	ok(asked_read(dir, 1001, &back) == -1,
	   "and no step takes the job for a plain one");
	record_free(&back);
	spoil(dir, r.buf, r.len - 1);
	ok(asked_read(dir, 1001, &back) == -1, "half of one is an error");
	record_free(&back);
	spoil(dir, "", 0);
	ok(asked_read(dir, 1001, &back) == -1, "and so is an empty one");
	record_free(&back);
	unlinkat(dir, JOB_ASKED, 0);
	ok(!symlinkat("/etc/passwd", dir, JOB_ASKED) &&
	       asked_read(dir, 1001, &back) == -1,
	   "a link is not followed");
	record_free(&back);
	record_free(&r);
	unlinkat(dir, JOB_ASKED, 0);
	close(dir);
	rmdir(top);
}

int main(void)
{
	environment();
	hostile();
	directory();
	return tap_end();
}
