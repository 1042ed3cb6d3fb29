// Package rest asks slurmrestd as a user: with a short token of that user, over
// a unix socket or HTTP, with a time limit, and not at all for a while after it
// has not answered. The types on the wire are those of SlinkyProject/slurm-client.
package rest
