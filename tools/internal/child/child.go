// Package child starts the commands that the tools run, and shows their output.
package child

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// patience is how long a command may take to end after it was told to.
const patience = 20 * time.Second

// Command is a process in a group of its own, without standard input. All of
// the group is ended when ctx is.
func Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = patience
	return cmd
}

// Indenter writes whole lines to W, each after Prefix.
type Indenter struct {
	W      io.Writer
	Prefix string
	rest   string
}

// Write keeps what follows the last newline until more comes, or Flush.
func (i *Indenter) Write(p []byte) (int, error) {
	i.rest += string(p)
	for {
		line, after, ok := strings.Cut(i.rest, "\n")
		if !ok {
			return len(p), nil
		}
		i.rest = after
		if _, err := fmt.Fprintf(i.W, "%s%s\n", i.Prefix, line); err != nil {
			return 0, fmt.Errorf("write output: %w", err)
		}
	}
}

// Flush writes a last line that has no newline.
func (i *Indenter) Flush() {
	if i.rest != "" {
		fmt.Fprintf(i.W, "%s%s\n", i.Prefix, i.rest)
	}
	i.rest = ""
}
