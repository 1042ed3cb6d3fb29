// Package nodes knows the agents: how one gets its certificate, what each last
// said of its jobs, and how one is asked for something.
package nodes
