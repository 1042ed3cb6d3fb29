/* Whether an allocation's nodes can seal steps off, asked of a Slurm that this
 * test is itself. */
#include <string.h>

#include "../allocation.c"
#include "tap.h"

int slurm_load_node_single(node_info_msg_t **resp, char *node, uint16_t flags);
void slurm_free_node_info_msg(node_info_msg_t *msg);
hostlist_t *slurm_hostlist_create(const char *list);
char *slurm_hostlist_shift(hostlist_t *hosts);
void slurm_hostlist_destroy(hostlist_t *hosts);

/* Host lists of this test are "a,b". */
struct hostlist {
	const char *rest;
};

hostlist_t *slurm_hostlist_create(const char *list)
{
	hostlist_t *hosts = malloc(sizeof(*hosts));

	if (hosts)
		hosts->rest = list ? list : "";
	return hosts;
}

char *slurm_hostlist_shift(hostlist_t *hosts)
{
	size_t n = strcspn(hosts->rest, ",");
	char *name = n ? strndup(hosts->rest, n) : NULL;

	hosts->rest += n + (hosts->rest[n] == ',');
	return name;
}

void slurm_hostlist_destroy(hostlist_t *hosts)
{
	free(hosts);
}

/* The features of node "a", and those of all others; NULL for no answer. */
static const char *features_a, *features_b;

int slurm_load_node_single(node_info_msg_t **resp, char *node, uint16_t flags)
{
	const char *features = strcmp(node, "a") ? features_b : features_a;
	node_info_msg_t *msg;

	(void) flags;
	if (!features)
		return -1;
	msg = calloc(1, sizeof(*msg) + sizeof(node_info_t));
	if (!msg)
		return -1;
	msg->record_count = 1;
	msg->node_array = (node_info_t *) (msg + 1);
	msg->node_array->features_act = (char *) features;
	*resp = msg;
	return 0;
}

void slurm_free_node_info_msg(node_info_msg_t *msg)
{
	free(msg);
}

static job_info_msg_t *job;

job_info_msg_t *jobinfo_load(uint32_t id, uint16_t flags)
{
	(void) id, (void) flags;
	return job;
}

void jobinfo_free(job_info_msg_t *msg)
{
	(void) msg;
}

static char named[64];

static enum seal can(const char *a, const char *b, const char *constraint,
		     const char *nodes)
{
	slurm_job_info_t j = {.job_id = 7,
			      .nodes = (char *) nodes,
			      .features = (char *) constraint};
	job_info_msg_t msg = {.record_count = 1, .job_array = &j};
	enum seal answer;

	features_a = a;
	features_b = b;
	named[0] = '\0';
	job = &msg;
	answer = allocation_can_seal(7, named, sizeof(named));
	job = NULL;
	return answer;
}

int main(void)
{
	ok(can("carme", "x,carme,y", NULL, "a,b") == SEAL_YES, "both can");
	ok(can("carme", "x", NULL, "a,b") == SEAL_NO, "the second cannot");
	ok(!strcmp(named, "b"), "and is named");
	ok(can("", "carme", NULL, "a,b") == SEAL_NO && !strcmp(named, "a"),
	   "the first cannot");
	ok(can("carmel", "carme", NULL, "a") == SEAL_NO,
	   "a feature that begins so is another");
	ok(can("x", "", "carme", "a") == SEAL_NO_MORE,
	   "a node that could when the job was submitted");
	ok(can("x", "", "(x|y)&carme", "a") == SEAL_NO_MORE,
	   "the same with a constraint of the user's");
	ok(can("x", "", "(x|carmel)", "a") == SEAL_NO,
	   "a constraint that begins so is another");
	ok(can("carme", NULL, "carme", "a,b") == SEAL_UNKNOWN,
	   "no answer about a node is no lack of the feature");
	ok(can("carme", "carme", NULL, NULL) == SEAL_YES,
	   "a job that waits has no nodes yet");
	ok(allocation_can_seal(7, named, sizeof(named)) == SEAL_UNKNOWN,
	   "no answer about the job neither");
	return tap_end();
}
