package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

const (
	gib      = 1 << 30
	needRAM  = 4 * gib  // bytes free
	needDisk = 10 * gib // bytes free where Docker keeps its images
)

// machine is what the preflight finds out, without changing anything.
type machine struct {
	system    string
	kernel    string
	cgroup    string
	cpus      int
	freeRAM   uint64 // bytes
	freeDisk  uint64 // bytes
	isRoot    bool
	portTaken bool   // the portal's, by something else than the demo
	lacks     string // what tools/prepare would install
}

// preflight says what is there, what will be done, and how to undo it. It
// fails if the demo cannot work here.
func preflight(ctx context.Context, d *demo) error {
	m, err := examine(ctx, d)
	if err != nil {
		return err
	}
	fmt.Fprintf(d.out, `Carme: a job of its own on a shared node

this machine    %s, kernel %s, %s, %d processors
memory          %.1f GiB free, %d GiB needed
disk            %.1f GiB free for Docker, %d GiB needed
ports           8443 on the loopback interface, for the portal; the cluster talks on a
                network of its own inside Docker
from outside    a Debian mirror, the Go module proxy and the npm registry; an image
                registry is not needed
will install    %s
will run        five containers, carme-*: directory, controller, login, two nodes
GPUs            simulated: device files without a card behind them. What may open
                them is the kernel's real decision; nothing computes on them.
take it away    make demo-down
`, m.system, m.kernel, m.cgroup, m.cpus, float64(m.freeRAM)/gib, needRAM/gib, float64(m.freeDisk)/gib, needDisk/gib,
		strings.ReplaceAll(m.lacks, "\n", "\n                "))
	return m.unfit()
}

func (m machine) unfit() error {
	var why []error
	if m.freeRAM < needRAM {
		why = append(why, errors.New("too little free memory"))
	}
	if m.freeDisk < needDisk {
		why = append(why, errors.New("too little free disk space"))
	}
	if m.portTaken {
		why = append(why, errors.New("port 8443 of the loopback interface is taken by another program: find it with 'ss -ltnp sport = :8443'"))
	}
	if !m.isRoot && m.lacks != nothing {
		why = append(why, errors.New("something is missing, and only root can install it: run tools/prepare testbed to see what"))
	}
	return errors.Join(why...)
}

const nothing = "nothing, all is here"

func examine(ctx context.Context, d *demo) (machine, error) {
	m := machine{cpus: runtime.NumCPU(), isRoot: os.Geteuid() == 0, cgroup: "cgroup v1 or hybrid"}
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return m, fmt.Errorf("ask for the system: %w", err)
	}
	m.system = field(string(release), "PRETTY_NAME=")
	memory, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return m, fmt.Errorf("ask for the memory: %w", err)
	}
	if m.freeRAM, err = kilobytes(field(string(memory), "MemAvailable:")); err != nil {
		return m, fmt.Errorf("ask for the memory: %w", err)
	}
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return m, fmt.Errorf("ask for the kernel: %w", err)
	}
	m.kernel = strings.TrimSpace(string(kernel))
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		m.cgroup = "cgroup v2"
	}
	if m.freeDisk, err = freeBytes("/var/lib/docker", "/var/lib", "/"); err != nil {
		return m, err
	}
	if m.lacks, err = d.quiet(ctx, "tools/prepare", "check", "testbed"); err != nil {
		return m, err
	}
	if m.lacks == "packages: none" {
		m.lacks = nothing
	}
	m.portTaken = d.portTaken(ctx)
	return m, nil
}

// portTaken says whether the portal's port cannot be had. The cluster's own login
// machine may have it, and that is well, also where an earlier demo broke off before
// there was a portal.
func (d *demo) portTaken(ctx context.Context) bool {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", d.listens)
	if err != nil {
		own, _, err := d.run(ctx, io.Discard, "docker", "port", "carme-login")
		return err != nil || !slices.Contains(strings.Fields(own), d.listens)
	}
	_ = listener.Close() // nothing was sent
	return false
}

// field is the rest of the line that begins with key, without quotes.
func field(text, key string) string {
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), key); ok {
			return strings.Trim(strings.TrimSpace(value), `"`)
		}
	}
	return "unknown"
}

// kilobytes reads "123 kB", as in /proc/meminfo (proc_meminfo(5)), into bytes.
func kilobytes(value string) (uint64, error) {
	number, err := strconv.ParseUint(strings.TrimSuffix(value, " kB"), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read %q: %w", value, err)
	}
	return number << 10, nil
}

// freeBytes asks the first of the directories that exists.
func freeBytes(directories ...string) (uint64, error) {
	var fs syscall.Statfs_t
	var err error
	for _, directory := range directories {
		if err = syscall.Statfs(directory, &fs); err == nil {
			return fs.Bavail * uint64(fs.Bsize), nil //nolint:gosec // a block size is never negative
		}
	}
	return 0, fmt.Errorf("ask for the disk space: %w", err)
}
