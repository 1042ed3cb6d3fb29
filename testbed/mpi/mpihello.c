/*
 * Says who it is, then adds up every rank with MPI_Allreduce: a job whose ranks
 * did not find each other prints "of 1" or the wrong sum.
 * Ranks on one node also write and read one shared window, so that broken
 * shared memory shows as a failure and not as a slow fall-back.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	int rank, size, local_rank, local_size, sum = 0, mine, name_len;
	char name[MPI_MAX_PROCESSOR_NAME];
	MPI_Comm node;
	MPI_Win win;
	MPI_Aint bytes;
	int *cell, unit;

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	MPI_Get_processor_name(name, &name_len);
	mine = rank + 1;
	MPI_Allreduce(&mine, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);

	MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0,
			    MPI_INFO_NULL, &node);
	MPI_Comm_rank(node, &local_rank);
	MPI_Comm_size(node, &local_size);
	MPI_Win_allocate_shared(local_rank == 0 ? (MPI_Aint) sizeof(int) : 0,
				sizeof(int), MPI_INFO_NULL, node, &cell, &win);
	MPI_Win_shared_query(win, 0, &bytes, &unit, &cell);
	MPI_Win_fence(0, win);
	if (local_rank == 0)
		*cell = 4711;
	MPI_Win_fence(0, win);

	printf("rank %d of %d on %s, %d here, sum %d, shared %d\n", rank, size,
	       name, local_size, sum, *cell);
	MPI_Win_fence(0, win);
	MPI_Win_free(&win);
	MPI_Finalize();
	return sum == size * (size + 1) / 2 ? EXIT_SUCCESS : EXIT_FAILURE;
}
