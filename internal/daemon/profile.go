//go:build profile

package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
)

// profile notes where this process spends its time until stop, in a file of the
// directory that CARME_PROFILE names. "make pgo" builds programs with it; those
// that are installed do not have it.
func profile() (stop func(), err error) {
	dir := os.Getenv("CARME_PROFILE")
	if dir == "" {
		return func() {}, nil
	}
	file, err := os.Create(filepath.Join(dir, fmt.Sprintf("%s.%d", filepath.Base(os.Args[0]), os.Getpid())))
	if err != nil {
		return nil, fmt.Errorf("make a file for the profile: %w", err)
	}
	if err := pprof.StartCPUProfile(file); err != nil {
		return nil, fmt.Errorf("start the profile: %w", err)
	}
	return func() {
		pprof.StopCPUProfile()
		if err := file.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "profile:", err)
		}
	}, nil
}
