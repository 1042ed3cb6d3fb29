// Package main is libcarme.so, the Go core of the plugin: built with
// -buildmode=c-shared and opened by carme-host (spank/cshim/host), never by a
// program of Slurm's. This is the only file with cgo in it.
package main

import "C"

import (
	"fmt"
	"os"

	"github.com/carme-hpc/carme/spank/core"
)

// carme_setup seals a job off, or checks a later step of it. The plugin reads
// the outcome from the result; the return value is the process's exit status.
//
//export carme_setup
func carme_setup() C.int {
	result := os.NewFile(core.ResultFD, "result")
	if err := core.Setup(os.NewFile(core.RequestFD, "request"), result, core.AnchorFD); err != nil {
		fmt.Fprintln(os.Stderr, "carme:", err)
		return 1
	}
	return 0
}

// carme_check judges the options in srun, sbatch and salloc, as the user. The
// return value is the exit status, one of core's.
//
//export carme_check
func carme_check() C.int {
	return C.int(core.Check(os.NewFile(core.RequestFD, "request"), os.Stdout, os.Stderr))
}

func main() {}
