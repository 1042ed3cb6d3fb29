/*
 * The options. Here they are only collected; what they mean is decided by the
 * Go core (spank/request), in srun through "carme-host check" and on the node
 * in the set-up, so that the grammar exists once.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/asked.h"
#include "plugin.h"

/* Order of the table below. */
enum {
	OPT_CARME,
	OPT_NO_CARME,
	OPT_NET,
	OPT_BIND,
	OPT_WORKDIR,
	OPT_HOME,
	OPT_OVERLAY,
	OPT_CONDA,
	OPT_APP,
	OPT_DEBUG,
	OPT_COUNT
};

/* How often a value is kept, so that a repetition can be refused. */
#define OCCURRENCES 2

struct seen {
	int n;	      /* calls, all of them */
	int from_env; /* the first call comes from the environment */
	int from_var; /* and there from the option's own variable */
	int words;    /* sbatch: occurrences on the command line */
	char *value[OCCURRENCES];
};

static struct seen seen[OPT_COUNT];

static int on_option(int val, const char *arg, int remote);

static struct spank_option table[OPT_COUNT] = {
    {"carme", "IMAGE",
     "run isolated, in the container IMAGE if one is named "
     "(--carme=list shows them, --carme=help explains)",
     2, OPT_CARME, on_option},
    {"no-carme", NULL, "run as a plain job although CARME is set", 0,
     OPT_NO_CARME, on_option},
    {"carme-net", "host|private",
     "network of the job: the host's, or loopback only", 1, OPT_NET, on_option},
    {"carme-bind", "SRC[:DST[:ro]],...",
     "make files or directories visible in the job", 1, OPT_BIND, on_option},
    {"carme-workdir", "DIR", "working directory in the job", 1, OPT_WORKDIR,
     on_option},
    {"carme-home", "yes|no", "show the home directory in the job", 1, OPT_HOME,
     on_option},
    {"carme-overlay", "none|tmpfs|DIR", "make the image writable in a layer", 1,
     OPT_OVERLAY, on_option},
    {"carme-conda", "NAME|PREFIX", "activate a conda environment", 1, OPT_CONDA,
     on_option},
    {"carme-app", "NAME", "start an app in the job, for the browser", 1,
     OPT_APP, on_option},
    {"carme-debug", NULL, "show the steps of the set-up with their times", 0,
     OPT_DEBUG, on_option},
};

/* Names in a request and, in capitals, of the environment defaults. */
static const char *const key[OPT_COUNT] = {
    "carme",	  "no_carme",	   "carme_net",	  "carme_bind", "carme_workdir",
    "carme_home", "carme_overlay", "carme_conda", "carme_app",	"carme_debug"};
static const char *const variable[OPT_COUNT] = {
    "CARME",	     NULL,	   "CARME_NET",	    "CARME_BIND",
    "CARME_WORKDIR", "CARME_HOME", "CARME_OVERLAY", "CARME_CONDA",
    "CARME_APP",     "CARME_DEBUG"};

/* Stands for a value that there was no memory for: forgotten, --carme would run
 * unsealed; as it is, no option takes it, and the core refuses. */
static char no_memory[] = "?";

static void drop_value(char *value)
{
	if (value != no_memory)
		free(value);
}

static int on_option(int val, const char *arg, int remote)
{
	struct seen *s;
	char *copy;

	if (val < 0 || val >= OPT_COUNT)
		return 0;
	s = &seen[val];
	/* Before 24.05 a step's options come twice, in its launch message and
	 * then in its environment (spank.c:spank_stack_post_opt): the message
	 * has what srun was told. */
	if (remote && s->n)
		return 0;
	/* Now, because srun would first ask for a command to run. */
	if (!remote && val == OPT_CARME && s->n >= s->from_env && arg &&
	    (!strcmp(arg, "list") || !strcmp(arg, "help")))
		local_show(arg);
	/* No value arrives as NULL, "" or "(null)", by the way it came. */
	copy = strdup((arg && strcmp(arg, "(null)") != 0) ? arg : "");
	if (!copy)
		copy = no_memory;
	/* Keep the first and the last. */
	if (s->n >= OCCURRENCES) {
		drop_value(s->value[OCCURRENCES - 1]);
		s->value[OCCURRENCES - 1] = copy;
	} else {
		s->value[s->n] = copy;
	}
	s->n++;
	return 0;
}

int options_register(spank_t sp)
{
	for (int i = 0; i < OPT_COUNT; i++)
		if (spank_option_register(sp, &table[i]) != ESPANK_SUCCESS)
			slurm_error("carme: --%s is taken by another plugin",
				    table[i].name);
	return 0;
}

/*
 * srun, sbatch and salloc read SLURM_SPANK__SLURM_SPANK_OPTION_carme_NAME as
 * if the option had been typed before all others, and forward it to the nodes
 * (spank.c:spank_process_env_options); it is also how a nested srun inherits
 * the options of its job. So the CARME variables are turned into these, where
 * a job has not set them already.
 */
static void inherited_name(char *name, size_t len, const char *option)
{
	snprintf(name, len, "SLURM_SPANK__SLURM_SPANK_OPTION_carme_%.40s",
		 option);
}

/* Inside a sealed job its options hold for every srun, whatever became of the
 * environment: a step on another node finds no trace of the job there. The core
 * writes "NAME=VALUE" lines (spank/core/job.go). */
static int private_job;

static void inherit_from_job(void)
{
	char line[4096];
	FILE *f = fopen(CARME_JOB_OPTIONS, "re");

	while (f && fgets(line, sizeof(line), f)) {
		char name[96];
		char *eq = strchr(line, '=');

		if (!eq)
			continue;
		*eq = '\0';
		eq[strcspn(eq + 1, "\n") + 1] = '\0';
		if (!strcmp(line, "carme_net") && !strcmp(eq + 1, "private"))
			private_job = 1;
		inherited_name(name, sizeof(name), line);
		setenv(name, eq + 1, 0);
	}
	if (f)
		fclose(f);
}

/* The value of an option's variable, NULL if it is not set or says no. */
static const char *default_of(int i)
{
	const char *v = variable[i] ? getenv(variable[i]) : NULL;

	if (!v || !*v)
		return NULL;
	if ((i == OPT_CARME || i == OPT_DEBUG) && asked_is_no(v))
		return NULL;
	/* An option without a value; others but yes are refused by the core. */
	if (i == OPT_DEBUG && (!strcmp(v, "yes") || !strcmp(v, "1")))
		return "";
	return v;
}

void options_from_environment(void)
{
	inherit_from_job();
	for (int i = 0; i < OPT_COUNT; i++) {
		const char *v = default_of(i);
		char name[96];

		inherited_name(name, sizeof(name), key[i]);
		seen[i].from_var = v && !getenv(name);
		if (seen[i].from_var)
			setenv(name, v, 1);
		seen[i].from_env = getenv(name) != NULL;
	}
}

int options_job_is_private(void)
{
	return private_job;
}

int options_any(void)
{
	for (int i = 0; i < OPT_COUNT; i++)
		if (seen[i].n)
			return 1;
	return 0;
}

int options_inherited(void)
{
	return seen[OPT_CARME].from_env;
}

int options_typed(void)
{
	for (int i = 0; i < OPT_COUNT; i++)
		if (seen[i].n > seen[i].from_env)
			return 1;
	return 0;
}

/* The last value that was given; what was typed comes after the environment. */
static const char *last_value(const struct seen *s)
{
	return s->value[s->n > OCCURRENCES ? OCCURRENCES - 1 : s->n - 1];
}

/* --carme=no, or CARME=no, is none. */
int options_refused(void)
{
	return seen[OPT_NO_CARME].n ||
	       (seen[OPT_CARME].n && asked_is_no(last_value(&seen[OPT_CARME])));
}

int options_asked(void)
{
	const char *v;

	if (!seen[OPT_CARME].n || seen[OPT_NO_CARME].n)
		return 0;
	v = last_value(&seen[OPT_CARME]);
	return !asked_is_no(v);
}

void options_count_word(const char *word)
{
	if (strncmp(word, "--", 2) != 0)
		return;
	word += 2;
	for (int i = 0; i < OPT_COUNT; i++) {
		size_t n = strlen(table[i].name);

		if (!strncmp(word, table[i].name, n) &&
		    (word[n] == '\0' || word[n] == '='))
			seen[i].words++;
	}
}

/* On sbatch's command line an option replaces the one in the script, as with
 * every option of Slurm's; only the same place twice is a mistake. */
static int replaced(const struct seen *s)
{
	int script = s->n - s->from_env - s->words;

	return s->words == 1 && script == 1;
}

/* In srun and sbatch the first value may stem from the environment; what was
 * typed replaces it. "default." says that it was the option's variable there,
 * by whose name its user knows it. An option typed twice is passed on twice,
 * for the core to refuse. On the node Slurm hands over one value and no origin.
 */
void options_append(struct record *r)
{
	for (int i = 0; i < OPT_COUNT; i++) {
		const struct seen *s = &seen[i];
		int kept = s->n > OCCURRENCES ? OCCURRENCES : s->n;
		char name[64];

		if (s->n && s->from_var) {
			snprintf(name, sizeof(name), "default.%s", key[i]);
			record_add(r, name, "");
		}
		for (int k = 0; k < kept; k++) {
			if (replaced(s) && k < kept - 1)
				continue;
			snprintf(name, sizeof(name), "%s.%s",
				 (k == 0 && s->from_env) ? "inherited" : "opt",
				 key[i]);
			record_add(r, name, s->value[k]);
		}
		if (s->n > OCCURRENCES && s->from_env && !replaced(s)) {
			snprintf(name, sizeof(name), "opt.%s", key[i]);
			record_add(r, name, s->value[1]);
		}
	}
}

void options_append_asked(const struct record *asked, struct record *r)
{
	for (int i = 0; i < OPT_COUNT; i++) {
		char name[64];
		const char *v;

		snprintf(name, sizeof(name), "inherited.%s", key[i]);
		v = record_get(asked, name);
		if (!v)
			continue;
		snprintf(name, sizeof(name), "opt.%s", key[i]);
		record_add(r, name, strcmp(v, "(null)") ? v : "");
	}
}

/* On the node all options arrive alike. One that says the same as its variable
 * is taken for that, in what its user reads. */
void options_append_defaults(spank_t sp, struct record *r)
{
	for (int i = 0; i < OPT_COUNT; i++) {
		char value[4096], name[64];

		if (!seen[i].n || !variable[i] ||
		    spank_getenv(sp, variable[i], value, sizeof(value)) ||
		    strcmp(value, last_value(&seen[i])) != 0)
			continue;
		snprintf(name, sizeof(name), "default.%s", key[i]);
		record_add(r, name, "");
	}
}

void options_next_component(void)
{
	for (int i = 0; i < OPT_COUNT; i++) {
		for (int k = 0; k < OCCURRENCES; k++) {
			drop_value(seen[i].value[k]);
			seen[i].value[k] = NULL;
		}
		seen[i].n = seen[i].words = 0;
	}
}
