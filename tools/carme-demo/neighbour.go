package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

const (
	node     = "carme-node1"
	job      = "neighbour"
	draft    = "bobs-unpublished-draft" // in /tmp and on bob's command line
	notes    = "/tmp/bob-notes"
	bobsWork = "echo " + draft + " >" + notes + "; chmod 644 " + notes + `; exec -a "train.py --token=` + draft + `" sleep 900`
)

// facts are what an attacker on the node may know of bob's job.
type facts struct {
	here bool
	uid  string
	pid  string // on the node
}

// needNeighbour lets bob run a plain job on the node, once.
func (d *demo) needNeighbour(ctx context.Context) error {
	if d.neighbour.here {
		return nil
	}
	fmt.Fprintf(d.out, "\n# bob works on the same node, in a plain job, careless with his secrets\nbob@login$ srun --gres=gpu:1 bash -c '…' &\n")
	if _, err := d.quiet(ctx, "docker", "exec", "-d", "-u", "bob", "-w", "/home/bob", d.prefix+"carme-login",
		"timeout", "900", "srun", "-Q", "-w", node, "-J", job, "--gres=gpu:1", "bash", "-c", bobsWork); err != nil {
		return err
	}
	d.neighbour.here = true // from here on there is something to end
	uid, err := d.quiet(ctx, "docker", "exec", d.prefix+"carme-login", "id", "-u", "bob")
	if err != nil {
		return err
	}
	d.neighbour.uid = uid
	err = until(ctx, 30*time.Second, func() bool {
		pids, status, err := d.run(ctx, io.Discard, "docker", "exec", d.prefix+node, "pgrep", "-u", "bob", "-f", "^train.py")
		d.neighbour.pid, _, _ = strings.Cut(pids, "\n")
		return err == nil && status == 0
	})
	if err != nil {
		return fmt.Errorf("bob's job does not start: %w", err)
	}
	return nil
}

// sendNeighbourHome ends what bob began; a demo that is over leaves no job.
func (d *demo) sendNeighbourHome(ctx context.Context) {
	if !d.neighbour.here {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	_, cancelled := d.quiet(ctx, "docker", "exec", "-u", "bob", d.prefix+"carme-login", "scancel", "-u", "bob", "-n", job)
	_, removed := d.quiet(ctx, "docker", "exec", d.prefix+node, "rm", "-f", notes)
	if err := errors.Join(cancelled, removed); err != nil {
		fmt.Fprintf(d.out, "bob's job may still be there: %v\n", err)
	}
}

// until polls for as long as it may take.
func until(ctx context.Context, limit time.Duration, done func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %s: %w", limit, ctx.Err())
		case <-tick.C:
		}
	}
	return nil
}
