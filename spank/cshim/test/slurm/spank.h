/*
 * What the plugin uses of Slurm's spank.h, so that the C tests can be built
 * where Slurm is not installed. The plugin itself is always built against the
 * real header.
 */
#ifndef CARME_TEST_SPANK_H
#define CARME_TEST_SPANK_H

#include <stddef.h>
#include <stdint.h>

typedef struct spank_handle *spank_t;

typedef enum { ESPANK_SUCCESS = 0, ESPANK_ERROR = 3000 } spank_err_t;

enum spank_context { S_CTX_ERROR, S_CTX_LOCAL, S_CTX_REMOTE, S_CTX_ALLOCATOR };

typedef enum spank_item {
	S_JOB_UID,
	S_JOB_GID,
	S_JOB_ID,
	S_JOB_STEPID,
	S_JOB_LOCAL_TASK_COUNT,
	S_JOB_SUPPLEMENTARY_GIDS,
	S_TASK_ID,
	S_SLURM_VERSION
} spank_item_t;

typedef int (*spank_opt_cb_f)(int val, const char *optarg, int remote);

struct spank_option {
	const char *name;
	const char *arginfo;
	const char *usage;
	int has_arg;
	int val;
	spank_opt_cb_f cb;
};

typedef int spank_f(spank_t sp, int ac, char *av[]);

extern spank_f slurm_spank_init, slurm_spank_init_post_opt,
    slurm_spank_user_init, slurm_spank_task_post_fork,
    slurm_spank_task_init_privileged, slurm_spank_task_init, slurm_spank_exit;

#define SPANK_PLUGIN(name, version)                                            \
	extern const char plugin_name[];                                       \
	const char plugin_name[] = #name;

enum spank_context spank_context(void);
spank_err_t spank_get_item(spank_t sp, spank_item_t item, ...);
spank_err_t spank_setenv(spank_t sp, const char *name, const char *value,
			 int overwrite);
spank_err_t spank_getenv(spank_t sp, const char *name, char *buf, int len);
spank_err_t spank_option_register(spank_t sp, struct spank_option *opt);
void slurm_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
