// Package core prepares the isolation of a job on a node: it judges the
// request, finds the job's devices, makes the namespaces and mounts, and hands
// them to the anchor. It runs in a process of its own (carme-host), as root,
// once per job and node, and ends with it; the program that Slurm forks from,
// slurmstepd, never sees Go (docs/adr/0001).
package core
