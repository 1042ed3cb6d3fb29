// Package signer holds the two keys that could ruin the cluster: the one that
// signs Slurm's tokens, which is root there, and that of Carme's CA. It runs
// under a user of its own, answers the backend alone, looks users up itself,
// refuses everybody who is no plain member, and logs every signature.
package signer
