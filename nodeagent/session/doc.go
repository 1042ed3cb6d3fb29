// Package session knows the sealed jobs of a node and the sockets of their apps.
//
// A job is its directory /run/carme/jobs/JOBID, which only root can change; the
// plugin tells of a new one, and whatever nobody told of is found by looking.
// It has ended when the directory, its anchor or its extern step has. Nothing
// here is needed for a job to run: after a restart the table is read anew.
package session
