// Package enrol gets the node's certificate from the backend and keeps it valid.
//
// The first time, nobody knows this machine: the agent asks, the backend looks
// the node's address up in Slurm, dials it, and hears there a MUNGE credential
// of root over its nonce, the new key and the node's name. A join token does
// instead where there is no MUNGE. Later the old certificate asks for the next
// one. Keys are made here and never leave the node.
package enrol
