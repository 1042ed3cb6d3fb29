// Package control measures what portal, backend and Slurm take when many people
// look at many jobs: rows D and S. It needs the testbed, and puts login sessions
// and users straight into the backend's database: one person cannot log in a
// thousand times.
package control
