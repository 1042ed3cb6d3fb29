// Package nodeagent is carme-agent: the daemon on every node that knows the
// sealed jobs, carries portals' streams to their apps, and tells the backend
// what happens. Jobs do not need it, and it keeps nothing that they would miss.
package nodeagent
