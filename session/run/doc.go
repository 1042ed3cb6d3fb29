// Package run starts the app of a job beside the job's own command, as the
// user and inside the job. It tells the node's agent how far the app is by a
// file in the session's directory, and ends when both have ended.
package run
