// Program bench measures rows P1 to P6 of the performance goals on a running
// testbed, each beside what it is compared with: plain Slurm with a plugin that
// does nothing (noop/noop.c), or Apptainer started by every task. Samples alternate,
// figures are medians, times are taken on the cluster's own login node.
package main
