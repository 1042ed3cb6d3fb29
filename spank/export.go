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
	room()
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
	room()
	return C.int(core.Check(os.NewFile(core.RequestFD, "request"), os.Stdout, os.Stderr))
}

// room makes the goroutine's stack as large as the calls below need it, at once and
// while it is short: Go would copy it four times else, with deeper and deeper calls
// on it.
//
//go:noinline
func room() byte {
	var some [16 << 10]byte
	return some[os.Getpid()%len(some)]
}

func main() {}
