package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/carme-hpc/carme/tools/internal/child"
)

// demo carries out the steps.
type demo struct {
	out io.Writer
	now func() time.Time
	// run runs a command, copies its output to w as it comes, and returns it
	// with the exit status.
	run func(ctx context.Context, w io.Writer, name string, args ...string) (output string, status int, err error)

	// prefix is what the names of the containers begin with, for a second
	// cluster beside the first (TESTBED_INSTANCE, testbed/bin/lib.sh).
	prefix string
	// farewell is how long the traces of ended jobs may stay.
	farewell time.Duration
	// listens is where the portal is published.
	listens string
	// answers asks the portal for its first page.
	answers func(context.Context) error
	// shareCA puts the CA that browsers must trust where they can read it.
	shareCA func() (string, error)
	// cameBy is how whoever runs this came to this machine, if by ssh.
	cameBy    func() (sshLogin, bool)
	neighbour facts
}

// step is a numbered part of the demo.
type step struct {
	title string
	// seen says that the step shows something on the cluster, and so needs the
	// neighbour to be there.
	seen bool
	do   func(ctx context.Context, d *demo) error
}

func (d *demo) show(ctx context.Context, from int) error {
	all := steps()
	if from < 1 || from > len(all) {
		return fmt.Errorf("there is no step %d: the steps are 1 to %d", from, len(all))
	}
	if err := preflight(ctx, d); err != nil {
		return err
	}
	defer d.sendNeighbourHome(context.WithoutCancel(ctx))
	begin := d.now()
	for i, s := range all {
		if i+1 < from {
			continue
		}
		fmt.Fprintf(d.out, "\n=== %d/%d  %s   (%s so far)\n", i+1, len(all), s.title, d.now().Sub(begin).Round(time.Second))
		var err error
		if s.seen {
			err = d.needNeighbour(ctx)
		}
		if err == nil {
			err = s.do(ctx, d)
		}
		if err != nil {
			return fmt.Errorf("step %d, %s: %w\nonce it is mended: make demo FROM=%d", i+1, s.title, err, i+1)
		}
	}
	fmt.Fprintf(d.out, "\nDone in %s.\n"+goodbye, d.now().Sub(begin).Round(time.Second), d.prefix)
	return nil
}

const goodbye = `
Look around yourself:   docker exec -it -u alice -w /home/alice %scarme-login bash
                        srun --carme=base --gres=gpu:1 --pty bash
Take all of it away:    make demo-down
`

// tool runs one of the repository's own commands, its output indented.
func (d *demo) tool(ctx context.Context, name string, args ...string) error {
	fmt.Fprintf(d.out, "$ %s\n", typed(append([]string{name}, args...)))
	screen := &child.Indenter{W: d.out, Prefix: "  | "}
	_, status, err := d.run(ctx, screen, name, args...)
	screen.Flush()
	if err == nil && status != 0 {
		err = fmt.Errorf("%s ended with status %d", name, status)
	}
	return err
}

// runCommand is demo.run for real.
func runCommand(ctx context.Context, w io.Writer, name string, args ...string) (string, int, error) {
	cmd := child.Command(ctx, name, args...)
	all := &keeper{w: w}
	cmd.Stdout, cmd.Stderr = all, all
	cmd.Env = append(os.Environ(), "MAKEFLAGS=") // a make of its own, not one of ours
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && ctx.Err() == nil {
		return string(all.kept), exit.ExitCode(), nil
	}
	if err != nil {
		return string(all.kept), -1, fmt.Errorf("run %s: %w", name, err)
	}
	return string(all.kept), 0, nil
}

// keeper passes on what it keeps.
type keeper struct {
	w    io.Writer
	kept []byte
}

func (k *keeper) Write(p []byte) (int, error) {
	k.kept = append(k.kept, p...)
	return k.w.Write(p)
}
