// Package metrics measures what sealed jobs use: CPU, memory and I/O by their
// cgroups (v1 and v2), GPUs by NVML, which runs in a child, because a sick driver
// holds its callers for ever.
package metrics
