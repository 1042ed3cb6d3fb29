// Package slurm asks Slurm's own commands, and reads their answers. No other
// package runs them.
package slurm
