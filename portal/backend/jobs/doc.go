// Package jobs is a user's view of Slurm: what may be started, the start itself,
// one picture of all jobs that everybody shares, and the news of it.
package jobs
