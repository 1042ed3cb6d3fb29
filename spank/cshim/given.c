/*
 * What Slurm gave the job on this node, for nodes on which Slurm does not let
 * the kernel say so (ConstrainDevices=no in cgroup.conf). Three sources, none
 * of which a user can write to: this slurmstepd's own cgroup.conf as slurmd
 * handed it over, the device list that Slurm's own filter is made of, and
 * slurmctld's record of the job.
 *
 * The calls are exported by Slurm's library and declared in no public header,
 * so they are looked up at run time, and a missing one means "not known".
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include <slurm/slurm.h>

#include "extern.h"
#include "jobinfo.h"
#include "plugin.h"

/* list_t, under another name in each release. */
struct list;

/* config_key_pair_t (src/common/read_config.h) */
struct key_pair {
	char *name, *value;
};

/* What gres_device_t (src/interfaces/gres.h) has begun with from 22.05 to
 * 26.05. */
struct gres_device {
	int index; /* as in "gpu:2(IDX:0-1)" */
	int alloc;
	uint32_t major, minor;
};

/* With no list of allocations all devices of the node come back, in a list
 * that owns none of them; the other arguments are not looked at. */
typedef struct list *devices_f(struct list *allocated, int is_job,
			       uint16_t accel_bind, char *tres_bind,
			       int local_task, void *step);
typedef struct list *conf_f(void);

static struct {
	void *(*pop)(struct list *l);
	void (*destroy)(struct list *l);
} list;

static int find_list(void)
{
	*(void **) &list.pop = dlsym(RTLD_DEFAULT, "slurm_list_pop");
	*(void **) &list.destroy = dlsym(RTLD_DEFAULT, "slurm_list_destroy");
	return list.pop && list.destroy ? 0 : -1;
}

/* Does Slurm constrain devices, in the configuration that this slurmstepd
 * works with? The file may have changed since slurmd read it. */
void given_append_constrain(struct record *r)
{
	struct key_pair *pair;
	struct list *conf;
	conf_f *get;

	*(void **) &get = dlsym(RTLD_DEFAULT, "cgroup_get_conf_list");
	conf = get && !find_list() ? get() : NULL;
	if (!conf)
		return;
	/* A popped pair is nobody's; two dozen of them, once per job, in a
	 * process that ends with the step. */
	while ((pair = list.pop(conf)))
		if (pair->name && pair->value &&
		    !strcasecmp(pair->name, "ConstrainDevices"))
			record_add(r, "constrain",
				   strcasecmp(pair->value, "yes") ? "no"
								  : "yes");
	list.destroy(conf);
}

static const char *append_devices(struct record *r)
{
	struct gres_device *d;
	devices_f *get;
	struct list *all;

	*(void **) &get = dlsym(RTLD_DEFAULT, "gres_g_get_devices");
	if (!get || find_list())
		return "this Slurm does not tell which devices it manages";
	all = get(NULL, 0, 0, NULL, 0, NULL);
	if (!all)
		return NULL; /* gres.conf names none */
	while ((d = list.pop(all)))
		record_addf(r, "device", "%d %u:%u", d->index, d->major,
			    d->minor);
	list.destroy(all);
	return NULL;
}

struct api {
	void *(*hosts)(const char *list);
	int (*find)(void *hosts, const char *name);
	int (*count)(void *hosts);
	void (*destroy)(void *hosts);
};

static int find_api(struct api *a)
{
	*(void **) &a->hosts = dlsym(RTLD_DEFAULT, "slurm_hostlist_create");
	*(void **) &a->find = dlsym(RTLD_DEFAULT, "slurm_hostlist_find");
	*(void **) &a->count = dlsym(RTLD_DEFAULT, "slurm_hostlist_count");
	*(void **) &a->destroy = dlsym(RTLD_DEFAULT, "slurm_hostlist_destroy");
	return a->hosts && a->find && a->count && a->destroy;
}

/* The details are in the order of the job's nodes (scontrol/info_job.c). */
static const char *append_gres(const struct api *a, const slurm_job_info_t *j,
			       const char *node, struct record *r)
{
	uint32_t state = j->job_state & JOB_STATE_BASE;
	void *hosts = a->hosts(j->nodes);
	int count = hosts ? a->count(hosts) : 0;
	int at = hosts ? a->find(hosts, node) : -1;

	if (hosts)
		a->destroy(hosts);
	if (state != JOB_RUNNING && state != JOB_SUSPENDED)
		return "slurmctld does not think that the job is running";
	if (at < 0)
		return "slurmctld does not count this node among the job's";
	if (!j->gres_detail_cnt) {
		/* A job without any generic resource has no details. */
		if (j->tres_alloc_str && strstr(j->tres_alloc_str, "gres/"))
			return "slurmctld does not tell which GPUs it gave";
		record_add(r, "gres", "");
		return NULL;
	}
	if (j->gres_detail_cnt != (uint32_t) count)
		return "slurmctld tells of other nodes than the job's";
	record_add(r, "gres",
		   j->gres_detail_str[at] ? j->gres_detail_str[at] : "");
	return NULL;
}

static const char *append_job(uint32_t job, const char *node, struct record *r)
{
	const char *why = "slurmctld does not know the job";
	job_info_msg_t *msg;
	struct api a;

	if (!find_api(&a))
		return "this Slurm does not tell what it gave to a job";
	msg = jobinfo_load(job, SHOW_ALL | SHOW_DETAIL);
	if (!msg)
		return "slurmctld does not answer";
	/* An array's id brings all its tasks along. */
	for (uint32_t i = 0; i < msg->record_count; i++)
		if (msg->job_array[i].job_id == job) {
			why = append_gres(&a, &msg->job_array[i], node, r);
			break;
		}
	jobinfo_free(msg);
	return why;
}

void given_answer(uint32_t job, const char *node, struct record *r)
{
	const char *why;

	record_init(r);
	record_add(r, "type", "given");
	why = append_devices(r);
	if (!why)
		why = append_job(job, node, r);
	if (why)
		record_add(r, "unknown", why);
}
