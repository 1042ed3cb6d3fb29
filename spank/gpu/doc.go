// Package gpu knows the GPUs of a node: which device node, by its minor number,
// is which GPU by UUID, PCI address and MIG partition.
//
// Map asks NVML, FromProc the driver's files in /proc, which needs no driver
// start and no library but knows no UUID of a MIG partition. A binary with this
// package is linked with -Wl,-z,lazy: go-nvml finds NVML's symbols at run time.
package gpu
