// Package wire is what the parts of Carme on a node say to each other: the
// Record that C and Go exchange over pipes and sockets, and the Proof that the
// core writes for each job and `carme proof` reads.
//
// It imports the standard library only, so that every part, the one that runs
// as root inside a job's set-up included, can use it.
package wire
