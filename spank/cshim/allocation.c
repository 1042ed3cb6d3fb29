/*
 * Nodes without the feature "carme", as srun, sbatch and salloc meet them.
 *
 * "srun --carme" inside an allocation: the job_submit rule, which sends --carme
 * jobs to nodes with the feature "carme", has not seen the option, and no code
 * of this plugin runs on a node where it is missing. So srun asks slurmctld
 * whether every node of the allocation has the feature (slurm_load_job(3),
 * slurm_load_node(3)) before it creates the step.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <slurm/slurm.h>
#include <slurm/slurm_errno.h>

#include "jobinfo.h"
#include "plugin.h"

#define FEATURE "carme"

/* Looked up at run time: slurmd and slurmstepd load this plugin too, and must
 * not fail to over symbols that only srun needs. */
struct api {
	int (*load_node)(node_info_msg_t **resp, char *node, uint16_t flags);
	void (*free_node)(node_info_msg_t *msg);
	hostlist_t *(*hosts)(const char *list);
	char *(*shift)(hostlist_t *hosts);
	void (*destroy)(hostlist_t *hosts);
	int (*load_nodes)(time_t since, node_info_msg_t **resp, uint16_t flags);
	int (*push)(hostlist_t *hosts, const char *host);
	ssize_t (*text)(hostlist_t *hosts, size_t len, char *buf);
};

static int find_api(struct api *a)
{
	*(void **) &a->load_node =
	    dlsym(RTLD_DEFAULT, "slurm_load_node_single");
	*(void **) &a->free_node =
	    dlsym(RTLD_DEFAULT, "slurm_free_node_info_msg");
	*(void **) &a->hosts = dlsym(RTLD_DEFAULT, "slurm_hostlist_create");
	*(void **) &a->shift = dlsym(RTLD_DEFAULT, "slurm_hostlist_shift");
	*(void **) &a->destroy = dlsym(RTLD_DEFAULT, "slurm_hostlist_destroy");
	*(void **) &a->load_nodes = dlsym(RTLD_DEFAULT, "slurm_load_node");
	*(void **) &a->push = dlsym(RTLD_DEFAULT, "slurm_hostlist_push_host");
	*(void **) &a->text =
	    dlsym(RTLD_DEFAULT, "slurm_hostlist_ranged_string");
	return a->load_node && a->free_node && a->hosts && a->shift &&
	       a->destroy;
}

/* Is FEATURE one of the names? A node's are a list, a job's an expression. */
static int listed(const char *features)
{
	static const char between[] = ",&|()[]*";

	while (features && *features) {
		size_t n = strcspn(features, between);

		if (n == strlen(FEATURE) && !strncmp(features, FEATURE, n))
			return 1;
		features += n + (features[n] != '\0');
	}
	return 0;
}

static enum seal node_can_seal(const struct api *a, char *node)
{
	node_info_msg_t *msg = NULL;
	enum seal can = SEAL_UNKNOWN;

	if (a->load_node(&msg, node, SHOW_ALL) || !msg)
		return SEAL_UNKNOWN;
	if (msg->record_count == 1)
		can = listed(msg->node_array[0].features_act) ? SEAL_YES
							      : SEAL_NO;
	a->free_node(msg);
	return can;
}

enum seal allocation_can_seal(uint32_t job, char *node, size_t len)
{
	enum seal can = SEAL_UNKNOWN;
	job_info_msg_t *msg;
	hostlist_t *hosts;
	struct api a;
	char *name;

	msg = find_api(&a) ? jobinfo_load(job, SHOW_ALL) : NULL;
	if (!msg)
		return SEAL_UNKNOWN;
	hosts = msg->record_count ? a.hosts(msg->job_array[0].nodes) : NULL;
	if (hosts)
		can = SEAL_YES; /* a job that waits has no nodes yet */
	while (can == SEAL_YES && (name = a.shift(hosts))) {
		can = node_can_seal(&a, name);
		snprintf(node, len, "%s", name);
		free(name);
	}
	/* Then the job was sent there for it, and the node withdrew since. */
	if (can == SEAL_NO && listed(msg->job_array[0].features))
		can = SEAL_NO_MORE;
	if (hosts)
		a.destroy(hosts);
	jobinfo_free(msg);
	return can;
}

/* ---- why a job was refused -------------------------------------------- */

static void print_nodes(const struct api *a, hostlist_t *can,
			hostlist_t *others)
{
	char able[512] = "", unable[512] = "";

	/* -1 means that they are cut short. */
	a->text(can, sizeof(able), able);
	a->text(others, sizeof(unable), unable);
	if (!unable[0])
		return; /* the feature is not the reason */
	if (!able[0])
		fputs("carme: no node can seal jobs off at present (none has "
		      "the feature carme); ask the admin, to whom 'carme "
		      "doctor' on a node says why\n",
		      stderr);
	else
		fprintf(stderr,
			"carme: --carme jobs run on %s only; %s cannot seal "
			"jobs off at present (no feature carme), and 'carme "
			"doctor' there says why\n",
			able, unable);
}

/*
 * Slurm says "Requested node configuration is not available", whatever was not:
 * the user has asked for no feature. It is asked once more only then, as the
 * program ends.
 */
static void explain(void)
{
	node_info_msg_t *msg = NULL;
	hostlist_t *can, *others;
	struct api a;

	if (errno != ESLURM_REQUESTED_NODE_CONFIG_UNAVAILABLE ||
	    !find_api(&a) || !a.load_nodes || !a.push || !a.text ||
	    a.load_nodes(0, &msg, SHOW_ALL) || !msg)
		return;
	can = a.hosts(NULL);
	others = a.hosts(NULL);
	for (uint32_t i = 0; can && others && i < msg->record_count; i++) {
		const node_info_t *n = &msg->node_array[i];

		if (n->name)
			a.push(listed(n->features_act) ? can : others, n->name);
	}
	if (can && others)
		print_nodes(&a, can, others);
	if (can)
		a.destroy(can);
	if (others)
		a.destroy(others);
	a.free_node(msg);
}

void allocation_explain_at_exit(void)
{
	static int registered;

	/* The C library forgets it when the plugin is unloaded. */
	if (!registered++)
		atexit(explain);
}
