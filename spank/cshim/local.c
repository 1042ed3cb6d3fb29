/*
 * srun, sbatch and salloc: say no before anything is queued. The grammar and
 * the policy live in the Go core, which must not be loaded here, so carme-host
 * is asked; it writes to the user's terminal itself.
 */
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/sys.h"
#include "plugin.h"

/* Exit codes of "carme-host check"; spank/check.go has the same. */
#define CHECK_OK 0
#define CHECK_DONE 10 /* a list or the help was printed: nothing to submit */

#define CMDLINE_MAX (64 * 1024)

/* The words that were typed: "--carme IMAGE" with a space shows only there. */
static void append_words(struct record *r)
{
	char *text = malloc(CMDLINE_MAX + 1);
	int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
	ssize_t n = (fd < 0 || !text) ? 0 : read(fd, text, CMDLINE_MAX);

	sys_close(&fd);
	for (ssize_t at = 0; at < n; at += (ssize_t) strlen(text + at) + 1) {
		text[n] = '\0';
		record_add(r, "word", text + at);
	}
	free(text);
}

/* The job that srun is to run a step in, as text; NULL where it makes one. From
 * outside no variable tells, only the option, which may be shortened as far as
 * it stays another than --job-name. */
static const char *allocation(const struct record *words)
{
	const char *word = NULL;

	while ((word = record_next(words, "word", word))) {
		const char *eq = strchr(word, '=');

		if (!strncmp(word, "--jobi", strlen("--jobi")))
			return eq ? eq + 1 : record_next(words, "word", word);
	}
	return getenv("SLURM_JOB_ID");
}

/* What users of Apptainer have set goes through the policy too. */
static void append_binds(struct record *r)
{
	static const char *const names[] = {
	    "APPTAINER_BIND", "APPTAINER_BINDPATH", "SINGULARITY_BIND",
	    "SINGULARITY_BINDPATH"};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		const char *v = getenv(names[i]);
		char key[64];

		if (!v || strlen(v) > 4095)
			continue;
		snprintf(key, sizeof(key), "env.%s", names[i]);
		record_add(r, key, v);
	}
}

/* A write to a socket knows no ulimit -f, which ends who writes to a file. Who
 * does not listen any more has said why. */
static int send_all(int fd, const struct record *r)
{
	for (size_t at = 0; at < r->len;) {
		ssize_t n = send(fd, r->buf + at, r->len - at, MSG_NOSIGNAL);

		if (n < 0 && errno != EINTR)
			return -1;
		at += n > 0 ? (size_t) n : 0;
	}
	return 0;
}

static void begin_request(struct record *r)
{
	record_init(r);
	record_add(r, "mode", "check");
	record_add(r, "context",
		   spank_context() == S_CTX_LOCAL ? "local" : "allocator");
}

/* The exit status of carme-host, or -1 with errno. */
static int run_check(struct record *r)
{
	char *argv[] = {(char *) CARME_HOST, (char *) "check", NULL};
	char *envp[] = {NULL};
	posix_spawn_file_actions_t fa;
	int pair[2] = {-1, -1};
	int status = 0;
	pid_t pid;
	int rc = E2BIG;

	if (record_ok(r))
		rc = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)
			 ? errno
			 : 0;
	if (!rc) {
		posix_spawn_file_actions_init(&fa);
		posix_spawn_file_actions_adddup2(&fa, pair[0], 3);
		rc = posix_spawn(&pid, CARME_HOST, &fa, NULL, argv, envp);
		posix_spawn_file_actions_destroy(&fa);
	}
	sys_close(&pair[0]);
	if (!rc)
		send_all(pair[1], r);
	sys_close(&pair[1]);
	record_free(r);
	if (rc) {
		errno = rc;
		return -1;
	}
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -1;
	if (WIFEXITED(status))
		return WEXITSTATUS(status);
	fprintf(stderr,
		"carme: " CARME_HOST " was ended by a signal (%s) before it "
		"had read the options; try again, and tell the admin if that "
		"does not help\n",
		strsignal(WTERMSIG(status)));
	return 1;
}

/* Nothing is queued yet, and a return code would be ignored. */
static void __attribute__((noreturn)) leave(int rc)
{
	int why = errno;

	if (rc < 0 && !access(CARME_JOB_OPTIONS, F_OK))
		fputs("carme: this is inside an isolated job, in an image that "
		      "cannot show it; ask outside of the job, with srun "
		      "--carme=list or srun --carme=help\n",
		      stderr);
	else if (rc < 0)
		fprintf(stderr, "carme: run %s: %s; %s\n", CARME_HOST,
			strerror(why),
			why == ENOENT || why == EACCES
			    ? "ask the admin to install Carme on this host"
			    : "look at your limits (ulimit -a), and try again");
	exit(rc == CHECK_DONE ? 0 : 1);
}

void local_show(const char *what)
{
	struct record r;

	begin_request(&r);
	record_add(&r, "opt.carme", what);
	leave(run_check(&r));
}

static void check_allocation(uint32_t job)
{
	unsigned int id = job;
	char node[256];

	if (spank_context() != S_CTX_LOCAL || !job)
		return;
	switch (allocation_can_seal(job, node, sizeof(node))) {
	case SEAL_YES:
		return;
	case SEAL_NO:
		fprintf(stderr,
			"carme: %s of job %u cannot seal steps off (it lacks "
			"the feature carme); make the allocation with --carme "
			"or --constraint=carme\n",
			node, id);
		break;
	case SEAL_NO_MORE:
		fprintf(stderr,
			"carme: %s of job %u can no longer seal steps off (it "
			"has lost the feature carme, and 'carme doctor' there "
			"says why); submit the job again\n",
			node, id);
		break;
	case SEAL_UNKNOWN:
		fprintf(stderr,
			"carme: slurmctld does not say whether the nodes of "
			"job %u can seal steps off; check the job's number, "
			"and try again\n",
			id);
		break;
	}
	exit(1);
}

/* "sbatch --carme IMAGE" with a space: sbatch would say that it cannot open the
 * script IMAGE. Behind a word that is no option --carme may be the script's
 * own. */
static void catch_image_for_script(void)
{
	const char *word;
	struct record r;
	int rc;

	if (spank_context() != S_CTX_ALLOCATOR)
		return;
	begin_request(&r);
	append_words(&r);
	word = record_next(&r, "word", NULL); /* sbatch */
	do
		word = word ? record_next(&r, "word", word) : NULL;
	while (word && word[0] == '-' && strcmp(word, "--carme") != 0);
	if (word && word[0] == '-')
		word = record_next(&r, "word", word);
	else
		word = NULL;
	if (!word || word[0] == '-' || !access(word, F_OK)) {
		record_free(&r);
		return;
	}
	record_add(&r, "opt.carme", "");
	rc = run_check(&r);
	if (rc != CHECK_OK)
		leave(rc);
}

/* sbatch reads a script before it looks at our options. */
void local_show_first(void)
{
	char text[256];
	int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);
	const char *first;

	sys_close(&fd);
	text[n > 0 ? n : 0] = '\0';
	if (n <= 0 || strlen(text) + 1 >= (size_t) n)
		return;
	first = text + strlen(text) + 1;
	if (!strcmp(first, "--carme=list") || !strcmp(first, "--carme=help"))
		local_show(first + strlen("--carme="));
	catch_image_for_script();
}

/* Typed in a plain allocation, this step alone is meant; without one, the job
 * is srun's own and ends with it. */
static void set_scope(int in_allocation)
{
	if (spank_context() != S_CTX_LOCAL ||
	    (in_allocation && options_inherited()))
		unsetenv("CARME_SCOPE");
	else
		setenv("CARME_SCOPE", in_allocation ? "step" : "srun", 1);
}

void local_check(spank_t sp)
{
	const char *word = NULL;
	const char *job;
	struct record r;
	uint32_t id;
	int rc;

	(void) sp;
	if (options_job_is_private()) {
		fputs("carme: this job has --carme-net=private, from which "
		      "Slurm cannot be reached; use --carme-net=host for jobs "
		      "that start steps or jobs\n",
		      stderr);
		exit(1);
	}
	/* CARME_NET and its like alone ask for nothing. Inside a job the node
	 * decides: an image need not be able to run carme-host. */
	if ((!options_asked() && !options_typed()) ||
	    !access(CARME_JOB_OPTIONS, F_OK))
		return;
	begin_request(&r);
	append_words(&r);
	while (spank_context() == S_CTX_ALLOCATOR &&
	       (word = record_next(&r, "word", word)))
		options_count_word(word);
	job = allocation(&r);
	id = job ? (uint32_t) strtoul(job, NULL, 10) : 0;
	set_scope(id != 0);
	append_binds(&r);
	options_append(&r);
	rc = run_check(&r);
	if (rc != CHECK_OK)
		leave(rc);
	if (options_asked()) {
		check_allocation(id);
		allocation_explain_at_exit();
	}
	options_next_component();
}
