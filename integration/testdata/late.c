/*
 * A plugin in front of Carme that holds a step back on its node while there is
 * a /run/late, half a minute at most: as a slow machine does at a bad moment.
 * By /run/late.held one knows that a step is there.
 */
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include <slurm/slurm.h>
#include <slurm/spank.h>

SPANK_PLUGIN(late, 1)

#define UNUSED __attribute__((unused))

int slurm_spank_init_post_opt(spank_t sp, int ac UNUSED, char *av[] UNUSED)
{
	const struct timespec pause = {.tv_nsec = 5 * 1000 * 1000};
	uint32_t step = SLURM_EXTERN_CONT;

	if (spank_remote(sp) != 1 || spank_get_item(sp, S_JOB_STEPID, &step) ||
	    step == SLURM_EXTERN_CONT)
		return 0;
	for (int i = 0; i < 6000 && !access("/run/late", F_OK); i++) {
		close(open("/run/late.held", O_WRONLY | O_CREAT, 0600));
		nanosleep(&pause, NULL);
	}
	return 0;
}
