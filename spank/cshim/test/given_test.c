/* What Slurm gave to a job, asked of a Slurm that this test is itself. */
#include <stdarg.h>
#include <string.h>

#include "../given.c"
#include "stub.h"
#include "tap.h"

/* One list at a time is all that is ever open. */
static struct {
	void *items[8];
	int n, at;
} slurm;

void *slurm_list_pop(struct list *l);
void slurm_list_destroy(struct list *l);
struct list *cgroup_get_conf_list(void);
struct list *gres_g_get_devices(struct list *allocated, int is_job,
				uint16_t accel_bind, char *tres_bind,
				int local_task, void *step);
void *slurm_hostlist_create(const char *text);
int slurm_hostlist_find(void *hosts, const char *name);
int slurm_hostlist_count(void *hosts);
void slurm_hostlist_destroy(void *hosts);

static void fill(int n, ...)
{
	va_list ap;

	slurm.n = n;
	slurm.at = 0;
	va_start(ap, n);
	for (int i = 0; i < n; i++)
		slurm.items[i] = va_arg(ap, void *);
	va_end(ap);
}

void *slurm_list_pop(struct list *l)
{
	(void) l;
	return slurm.at < slurm.n ? slurm.items[slurm.at++] : NULL;
}

void slurm_list_destroy(struct list *l)
{
	(void) l;
	slurm.n = 0;
}

static struct list *whole(void)
{
	return slurm.n ? (struct list *) &slurm : NULL;
}

struct list *cgroup_get_conf_list(void)
{
	return whole();
}

struct list *gres_g_get_devices(struct list *allocated, int is_job,
				uint16_t accel_bind, char *tres_bind,
				int local_task, void *step)
{
	(void) is_job, (void) accel_bind, (void) tres_bind;
	(void) local_task, (void) step;
	return allocated ? NULL : whole();
}

/* Host lists of this test are "a,b". */
void *slurm_hostlist_create(const char *text)
{
	return text && *text ? (void *) (uintptr_t) text : NULL;
}

int slurm_hostlist_find(void *hosts, const char *name)
{
	const char *p = strstr(hosts, name);

	return p ? (p != (const char *) hosts) : -1;
}

int slurm_hostlist_count(void *hosts)
{
	return strchr(hosts, ',') ? 2 : 1;
}

void slurm_hostlist_destroy(void *hosts)
{
	(void) hosts;
}

static job_info_msg_t *job;

job_info_msg_t *jobinfo_load(uint32_t id, uint16_t flags)
{
	(void) id;
	return flags & SHOW_DETAIL ? job : NULL;
}

void jobinfo_free(job_info_msg_t *msg)
{
	(void) msg;
}

static const char *constrain(const char *key, const char *value)
{
	static struct record r;
	struct key_pair other = {"ConstrainCores", "yes"}, none = {NULL, NULL};
	struct key_pair pair = {(char *) key, (char *) value};

	record_free(&r);
	record_init(&r);
	fill(3, &other, &none, &pair);
	given_append_constrain(&r);
	return record_get(&r, "constrain");
}

static void configuration(void)
{
	const char *v = constrain("ConstrainDevices", "yes");

	ok(v && !strcmp(v, "yes"), "Slurm constrains devices");
	v = constrain("ConstrainDevices", "no");
	ok(v && !strcmp(v, "no"), "Slurm does not");
	ok(!constrain("ConstrainRAMSpace", "yes"), "Slurm does not say");
}

/* What is told of the job for the node: its resources, or why it is unknown. */
static const char *told(slurm_job_info_t *j, const char *node)
{
	struct gres_device a = {0, 1, 195, 2}, b = {1, 0, 195, 0};
	job_info_msg_t msg = {.record_count = 1, .job_array = j};
	static struct record r;
	const char *why, *d;

	record_free(&r);
	fill(2, &a, &b);
	job = j ? &msg : NULL;
	given_answer(7, node, &r);
	why = record_get(&r, "unknown");
	if (why)
		return why;
	d = record_get(&r, "device");
	ok(d && !strcmp(d, "0 195:2"), "the index of a device is told");
	return record_get(&r, "gres");
}

static int says(const char *text, const char *word)
{
	return text && strstr(text, word);
}

static void jobs(void)
{
	char *detail[] = {"gpu:1(IDX:0)", "gpu:1(IDX:1)"};
	slurm_job_info_t j = {.job_id = 7,
			      .job_state = JOB_RUNNING,
			      .nodes = "n1,n2",
			      .gres_detail_cnt = 2,
			      .gres_detail_str = detail};

	ok(says(told(&j, "n2"), "IDX:1"), "a job's second node");
	ok(says(told(&j, "n3"), "this node"), "a node that is not the job's");
	j.gres_detail_cnt = 1;
	ok(says(told(&j, "n1"), "other nodes"), "details of other nodes");
	j.gres_detail_cnt = 0;
	ok(told(&j, "n1") && !*told(&j, "n1"), "a job without resources");
	j.tres_alloc_str = "cpu=1,gres/gpu=2";
	ok(says(told(&j, "n1"), "which GPUs"), "resources without details");
	j.job_state = JOB_PENDING;
	ok(says(told(&j, "n1"), "running"), "a job that does not run");
	j.job_id = 8;
	ok(says(told(&j, "n1"), "does not know"), "another job");
	ok(says(told(NULL, "n1"), "not answer"), "no slurmctld");
}

int main(void)
{
	configuration();
	jobs();
	return tap_end();
}
