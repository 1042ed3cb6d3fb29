/* How options are collected: all the ways in which Slurm says "no value", the
 * environment, repetitions, heterogeneous jobs. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../options.c"
#include "stub.h"
#include "tap.h"

void local_show(const char *what)
{
	(void) what;
	_exit(3);
}

static int typed(const char *name, const char *value, int remote)
{
	for (int i = 0; i < stub_option_count; i++)
		if (!strcmp(stub_options[i]->name, name))
			return stub_options[i]->cb(stub_options[i]->val, value,
						   remote);
	return -1;
}

static void forget(void)
{
	options_next_component();
	for (int i = 0; i < OPT_COUNT; i++)
		seen[i].from_env = 0;
}

/* The request as "key=value key=value". */
static const char *request(void)
{
	static char text[4096];
	struct record r;

	record_init(&r);
	options_append(&r);
	text[0] = '\0';
	for (const char *e = NULL; (e = record_entry(&r, e));) {
		strcat(text, text[0] ? " " : "");
		strcat(text, e);
	}
	record_free(&r);
	return text;
}

#define IS(want, name)                                                         \
	do {                                                                   \
		if (!ok(!strcmp(request(), want), name))                       \
			printf("# got %s\n", request());                       \
	} while (0)

static void values(void)
{
	ok(!options_asked() && !options_any(), "nothing was asked for");
	IS("", "and nothing is sent");
	ok(!typed("carme", NULL, 1) && options_asked(), "no value as NULL");
	IS("opt.carme=", "is an empty one");
	forget();
	typed("carme", "(null)", 1);
	IS("opt.carme=", "so is \"(null)\"");
	forget();
	typed("carme", "", 1);
	IS("opt.carme=", "and \"\"");
	forget();
	typed("carme", "base", 1);
	typed("carme-net", "private", 1);
	IS("opt.carme=base opt.carme_net=private", "values");
	typed("no-carme", NULL, 1);
	ok(!options_asked() && options_any(), "--no-carme takes it back");
	forget();
	ok(!options_any(), "a further component begins anew");
}

static void repeated(void)
{
	typed("carme-net", "host", 0);
	typed("carme-net", "private", 0);
	IS("opt.carme_net=host opt.carme_net=private", "twice is seen twice");
	for (int i = 0; i < 100; i++)
		typed("carme-net", "host", 0);
	IS("opt.carme_net=host opt.carme_net=host", "a hundred times too");
	forget();
}

/* As before 24.05. */
static void both_ways(void)
{
	typed("carme", "base", 1);
	typed("carme", "no", 1);
	IS("opt.carme=base", "on the node the launch message comes first");
	ok(options_asked() && !options_refused(),
	   "and what stands in the environment does not undo it");
	forget();
}

static void environment(void)
{
	const char *inherited =
	    "SLURM_SPANK__SLURM_SPANK_OPTION_carme_carme_net";

	setenv("CARME_NET", "private", 1);
	setenv("CARME_BIND", "", 1);
	options_from_environment();
	ok(getenv(inherited) && !strcmp(getenv(inherited), "private"),
	   "CARME_NET becomes Slurm's own variable");
	ok(!getenv("SLURM_SPANK__SLURM_SPANK_OPTION_carme_carme_bind"),
	   "an empty one does not");
	typed("carme-net", "private", 0); /* as Slurm calls back */
	IS("default.carme_net= inherited.carme_net=private",
	   "it is marked as inherited, and by which variable");
	ok(!options_typed() && options_any(), "and nobody typed it");
	typed("carme-net", "host", 0);
	IS("default.carme_net= inherited.carme_net=private opt.carme_net=host",
	   "what is typed comes behind it");
	ok(options_typed(), "and counts as typed");
	typed("carme-net", "host", 0);
	IS("default.carme_net= inherited.carme_net=private opt.carme_net=host "
	   "opt.carme_net=host",
	   "typed twice is seen beside it");
	options_next_component();
	typed("carme-net", "private", 0);
	IS("default.carme_net= inherited.carme_net=private",
	   "a further component inherits it again");
	setenv(inherited, "host", 1);
	options_from_environment();
	ok(!strcmp(getenv(inherited), "host"),
	   "a job's own options come before CARME_NET");
	options_next_component();
	typed("carme-net", "host", 0);
	IS("inherited.carme_net=host", "and are not the variable's");
	unsetenv(inherited);
	unsetenv("CARME_NET");
	forget();
}

/* On a node nobody says where an option comes from. */
static void node(void)
{
	struct record r;

	spank_setenv(NULL, "CARME_NET", "private", 1);
	spank_setenv(NULL, "CARME_HOME", "no", 1);
	typed("carme-net", "private", 1);
	typed("carme-home", "yes", 1);
	record_init(&r);
	options_append_defaults(NULL, &r);
	ok(record_get(&r, "default.carme_net") &&
	       !record_get(&r, "default.carme_home") &&
	       !record_get(&r, "default.carme_bind"),
	   "what its variable says too is the variable's");
	record_free(&r);
	forget();
}

static void odd(void)
{
	char *huge = malloc(1 << 20);

	ok(!on_option(-1, "x", 1) && !on_option(OPT_COUNT, "x", 1) &&
	       !options_any(),
	   "an unknown option is nothing");
	memset(huge, 'x', (1 << 20) - 1);
	huge[(1 << 20) - 1] = '\0';
	typed("carme-bind", huge, 1);
	{
		struct record r;

		record_init(&r);
		options_append(&r);
		ok(!record_ok(&r), "1 MB of value makes the request bad");
		record_free(&r);
	}
	free(huge);
	forget();
	typed("carme", "two\nlines $(id) ;", 1);
	IS("opt.carme=two\nlines $(id) ;", "text is passed on as it is");
	forget();
}

int main(void)
{
	ok(!options_register(NULL) && stub_option_count == OPT_COUNT,
	   "all options are registered");
	values();
	repeated();
	both_ways();
	environment();
	node();
	odd();
	return tap_end();
}
