/* Joins Slurm's PMI-2 server, puts one key per rank and reads its neighbour's.
 */
#include <slurm/pmi2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(void)
{
	int spawned, size, rank, appnum, len = 0;
	char job[128], key[32], want[32], value[32] = "";

	if (PMI2_Init(&spawned, &size, &rank, &appnum) != PMI2_SUCCESS) {
		fprintf(stderr, "pmi2hello: no PMI-2 server\n");
		return EXIT_FAILURE;
	}
	PMI2_Job_GetId(job, sizeof(job));
	snprintf(key, sizeof(key), "rank%d", rank);
	PMI2_KVS_Put(key, key);
	PMI2_KVS_Fence();
	snprintf(want, sizeof(want), "rank%d", (rank + 1) % size);
	PMI2_KVS_Get(job, PMI2_ID_NULL, want, value, sizeof(value), &len);
	printf("rank %d of %d, neighbour %s\n", rank, size, value);
	PMI2_Finalize();
	return strcmp(value, want) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
