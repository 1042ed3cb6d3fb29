// Package proof shows what a job is isolated from: the record that was made
// when the job was set up, and checks made now, from inside the job, that do
// not rely on it alone.
package proof
