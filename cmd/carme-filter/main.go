// Command carme-filter closes devices to a job, as root, on nodes where Slurm
// does not. The core starts it (spank/core/filter.go).
package main

import (
	"os"

	"github.com/carme-hpc/carme/spank/filter"
)

func main() { os.Exit(filter.Main()) }
