package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/carme-hpc/carme/internal/config"
	"github.com/carme-hpc/carme/internal/slurm"
	"github.com/carme-hpc/carme/spank/gpu"
)

// kernelRelease is how a release begins.
var kernelRelease = regexp.MustCompile(`^(\d+)\.(\d+)`)

// text reads a small file, without the end of its line.
func (d Doctor) text(name string) (string, error) {
	data, err := os.ReadFile(d.path(name))
	return strings.TrimSpace(string(data)), err
}

// kernel wants 5.12: openat2, close_range, setns by pidfd and mount_setattr.
func (d Doctor) kernel() Finding {
	const (
		name        = "kernel"
		major       = 5
		minor       = 12
		mendRelease = "boot a kernel of at least 5.12 (Debian 12, RHEL 9)"
	)
	release, err := d.text("proc/sys/kernel/osrelease")
	if err != nil {
		return fail(name, "mount /proc", "%v", err)
	}
	m := kernelRelease.FindStringSubmatch(release)
	if m == nil {
		return fail(name, mendRelease, "%q is no release", release)
	}
	a, _ := strconv.Atoi(m[1]) // digits
	b, _ := strconv.Atoi(m[2])
	if a < major || a == major && b < minor {
		return fail(name, mendRelease, "%s is too old", release)
	}
	return ok(name, "%s", release)
}

// userNamespaces wants what Apptainer needs to run as the user.
func (d Doctor) userNamespaces() Finding {
	const name = "user namespaces"
	for _, s := range []struct{ file, bad, set string }{
		{"proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=15000"},
		{"proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"},
		{"proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "give Apptainer an AppArmor profile that allows userns, or sysctl kernel.apparmor_restrict_unprivileged_userns=0"},
	} {
		value, err := d.text(s.file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fail(name, "mount /proc", "%v", err)
		}
		if value == s.bad {
			return fail(name, s.set+", and keep it in /etc/sysctl.d", "/%s is %s: users cannot start images", s.file, value)
		}
	}
	return ok(name, "allowed")
}

// cgroup tells the version, and whose device filter holds.
func (d Doctor) cgroup(cfg slurm.Config) Finding {
	const (
		name = "cgroups"
		mend = "set ConstrainDevices=yes in cgroup.conf and restart slurmd: Slurm's own filter is the better one"
	)
	var version string
	switch {
	case d.exists("sys/fs/cgroup/cgroup.controllers"):
		version = "v2"
	case d.exists("sys/fs/cgroup/devices"):
		version = "v1"
	default:
		return fail(name, "mount cgroups at /sys/fs/cgroup", "neither version is mounted")
	}
	if cfg == nil {
		return skip(name, version+"; Slurm's configuration is not known")
	}
	constrain := cfg.Get("ConstrainDevices")
	if _, text, err := d.slurmFile(cfg, "cgroup.conf", ""); err == nil {
		for line := range strings.Lines(text) {
			line, _, _ = strings.Cut(line, "#")
			if key, value, found := strings.Cut(line, "="); found && strings.EqualFold(strings.TrimSpace(key), "ConstrainDevices") {
				constrain = strings.TrimSpace(value)
			}
		}
	}
	if strings.EqualFold(constrain, "yes") {
		return ok(name, "%s, Slurm constrains devices", version)
	}
	return note(name, version+", Slurm does not constrain devices: Carme puts a filter of its own on its jobs", mend)
}

// config reads the configuration as the set-up does, and tries Apptainer.
func (d Doctor) config(ctx context.Context) []Finding {
	const (
		name   = "configuration"
		images = "images"
		runner = "Apptainer"
	)
	cfg, err := config.Load(config.Source{Root: d.Root, TrustOwner: d.TrustOwner})
	var problems config.ProblemsError
	switch {
	case errors.As(err, &problems):
		var findings []Finding
		for _, p := range problems {
			findings = append(findings, fail(name, "correct the file; spank.yaml(5) describes it", "%s", p))
		}
		return append(findings, skip(images, "the configuration is not valid"), skip(runner, "the configuration is not valid"))
	case err != nil:
		return []Finding{fail(name, "mend the file system", "%v", err)}
	}
	findings := []Finding{ok(name, "valid, %d images in the catalogue", len(cfg.Images))}
	_, err = config.LoadApps(config.Source{Root: d.Root, TrustOwner: d.TrustOwner})
	for _, line := range config.Problems(err) { // of that app alone: others start
		findings = append(findings, note("apps", line, "correct the file; spank.yaml(5) describes it"))
	}
	findings = append(findings, d.missing(images, cfg.Images)...)
	out, err := d.run(ctx, cfg.Spank.Apptainer.Path, "--version")
	if err != nil {
		mend := "install Apptainer, or set apptainer: {path: ...} in /" + config.SpankFile
		if len(cfg.Images) == 0 && len(cfg.Spank.Images.AllowPaths) == 0 {
			return append(findings, note(runner, "does not run, and no image is configured", mend))
		}
		return append(findings, fail(runner, mend, "%v", err))
	}
	return append(findings, ok(runner, "%s", strings.TrimSpace(string(out))))
}

// missing tells of images that are not there. One concerns those alone who want it;
// without any, as where their file system is not mounted, the node is of no use.
func (d Doctor) missing(name string, images []config.Image) []Finding {
	var findings []Finding
	for _, img := range images {
		if _, err := os.Stat(d.path(img.Path)); err != nil {
			findings = append(findings, note(name, fmt.Sprintf("%s: %v", img.Name, err), "put the image there, or correct /"+config.ImagesDir))
		}
	}
	if len(findings) == len(images) {
		for i := range findings {
			findings[i].Status = Fail
		}
	}
	return findings
}

// gpuFile is the device node of a GPU.
var gpuFile = regexp.MustCompile(`^/dev/nvidia(\d+)$`)

// gpus compares NVML, the driver's files and gres.conf.
func (d Doctor) gpus(ctx context.Context, cfg slurm.Config) []Finding {
	const (
		library = "NVML"
		driver  = "GPU map"
	)
	fromProc, errProc := gpu.FromProc(d.Root)
	if errProc != nil {
		return []Finding{fail(driver, "mend the NVIDIA driver: nvidia-smi", "%v", errProc)}
	}
	fromNVML, err := d.listGPUs(ctx)
	var findings []Finding
	switch {
	case errors.Is(err, gpu.ErrNoNVML) && len(fromProc) == 0:
		findings = append(findings, ok(library, "not present, and no driver: a node without GPUs"))
	case errors.Is(err, gpu.ErrNoNVML):
		findings = append(findings, fail(library, "install libnvidia-ml.so.1, which belongs to the driver", "not present, but the driver has %d GPUs", len(fromProc)))
	case err != nil:
		findings = append(findings, fail(library, "mend the NVIDIA driver: nvidia-smi", "%v", err))
	default:
		findings = append(findings, ok(library, "lists %d GPUs", len(fromNVML)), compareMaps(driver, fromNVML, fromProc))
	}
	known := fromNVML
	if err != nil {
		known = fromProc
	}
	return append(findings, d.gres(cfg, known))
}

// listGPUs gives up on a driver that hangs.
func (d Doctor) listGPUs(ctx context.Context) ([]gpu.GPU, error) {
	type answer struct {
		gpus []gpu.GPU
		err  error
	}
	answers := make(chan answer, 1)
	go func() {
		gpus, err := gpu.Map(d.NVML, d.Root)
		answers <- answer{gpus, err}
	}()
	timer := time.NewTimer(nvmlTime)
	defer timer.Stop()
	select {
	case a := <-answers:
		return a.gpus, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-timer.C:
		return nil, fmt.Errorf("NVML does not answer within %s", nvmlTime)
	}
}

// compareMaps wants NVML and the driver's files to agree on who is who.
func compareMaps(name string, fromNVML, fromProc []gpu.GPU) Finding {
	if len(fromProc) == 0 {
		return note(name, "the driver tells nothing in /proc/driver/nvidia; NVML is asked for each job", "")
	}
	uuids := map[uint32]string{}
	for _, g := range fromProc {
		uuids[g.Minor] = g.UUID
	}
	for _, g := range fromNVML {
		if uuids[g.Minor] != g.UUID {
			return fail(name, "restart the node, or mend the driver: nvidia-smi -q", "/dev/nvidia%d is %s for NVML and %q for the driver", g.Minor, g.UUID, uuids[g.Minor])
		}
	}
	if len(fromNVML) != len(fromProc) {
		return fail(name, "run carme doctor as root and outside of a job, or mend the driver: nvidia-smi -q", "NVML lists %d GPUs, the driver %d", len(fromNVML), len(fromProc))
	}
	return ok(name, "NVML and driver agree on %d GPUs", len(fromNVML))
}

// gres compares gres.conf with the GPUs there are.
func (d Doctor) gres(cfg slurm.Config, known []gpu.GPU) Finding {
	const name = "gres.conf"
	if cfg == nil {
		return skip(name, "Slurm's configuration is not known")
	}
	file, text, err := d.slurmFile(cfg, "gres.conf", "")
	if err != nil {
		if len(known) == 0 {
			return ok(name, "none, and no GPUs")
		}
		return fail(name, "list the GPUs in gres.conf, or write AutoDetect=nvml", "there is none, but there are %d GPUs", len(known))
	}
	gres := slurm.ParseGres(text, d.Node)
	if gres.AutoDetect && len(gres.Files) == 0 {
		return ok(name, "%s: slurmd finds the GPUs itself", file)
	}
	var listed []uint32
	for _, f := range gres.Files {
		if !d.exists(f) {
			return fail(name, "correct "+file+", or load the driver (nvidia-modprobe)", "%s names %s, which does not exist", file, f)
		}
		if m := gpuFile.FindStringSubmatch(f); m != nil {
			n, _ := strconv.ParseUint(m[1], 10, 32) // digits
			listed = append(listed, uint32(n))
		}
	}
	for _, g := range known {
		if !slices.Contains(listed, g.Minor) {
			return fail(name, "add it to "+file+"; a GPU that Slurm does not know is open to every job", "%s does not name /dev/nvidia%d (%s)", file, g.Minor, g.UUID)
		}
	}
	for _, minor := range listed {
		if len(known) > 0 && !slices.ContainsFunc(known, func(g gpu.GPU) bool { return g.Minor == minor }) {
			return fail(name, "take it out of "+file+", or mend the GPU", "%s names /dev/nvidia%d, which the driver does not have", file, minor)
		}
	}
	return ok(name, "%s names the %d GPUs there are", file, len(listed))
}

// jobsDir is where the state of jobs is, below the root.
const jobsDir = "run/carme/jobs"

// How young a directory is that may still be in the making: by the set-up, or,
// if it says what the job was submitted with, by slurmd's Prolog
// (spank/cshim/extern.c:is_leftover_unmarked).
const (
	settling  = 2 * time.Minute
	prologing = time.Hour
)

// doubtful is the age from which on Slurm is asked about a job that its Prolog has
// told of and that has no extern step: it may have been cancelled meanwhile.
const doubtful = 2 * time.Second

// seldom is how often, at the least, it is asked about a job that waits on.
const seldom = 10 * time.Second

// Asked remembers how old the directories of jobs without an extern step were when it was
// last looked what has become of them, for who cleans again and again: that means to read
// the names of all processes, and to ask slurmctld, as all nodes of a large job do whose
// Prologs are slow. The gaps grow with the age.
type Asked struct{ ages map[string]time.Duration }

// NewAsked returns one that has not asked yet; it is for one goroutine.
func NewAsked() *Asked { return &Asked{ages: map[string]time.Duration{}} }

// due keeps those of some waiting jobs that are to be asked about now.
func (a *Asked) due(waiting map[string]time.Duration) map[string]time.Duration {
	if a == nil {
		return waiting
	}
	maps.DeleteFunc(a.ages, func(id string, before time.Duration) bool { return waiting[id] < before })
	due := map[string]time.Duration{}
	for id, age := range waiting {
		if before, ok := a.ages[id]; !ok || age >= before+min(before/2, seldom) {
			due[id], a.ages[id] = age, age
		}
	}
	return due
}

func (d Doctor) leftovers(ctx context.Context) Finding {
	const name = "leftovers"
	dead, live, err := d.jobs(ctx)
	switch {
	case err != nil:
		return fail(name, "run carme doctor as root", "%v", err)
	case len(dead) > 0:
		// No failure: no other job is in danger, and a job's user can leave more
		// than is removed at once.
		return note(name, fmt.Sprintf("of ended jobs: %s in /%s", strings.Join(dead, " "), jobsDir), "carme doctor --clean")
	}
	return ok(name, "none; %d jobs are running", live)
}

// Clean removes the directories of jobs that have ended, and returns their
// names. A directory in which something is still mounted is left, with an
// error.
func (d Doctor) Clean(ctx context.Context) ([]string, error) {
	dead, _, err := d.jobs(ctx)
	if err != nil {
		return nil, err
	}
	mounts, err := d.text("proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	var removed []string
	var errs []error
	for _, id := range dead {
		dir := path.Join(jobsDir, id)
		if strings.Contains(mounts, " /"+dir+"/") || strings.Contains(mounts, " /"+dir+" ") {
			errs = append(errs, fmt.Errorf("something is mounted in /%s; unmount it (findmnt -R) and clean again", dir))
			continue
		}
		gone, err := d.remove(ctx, id)
		if err != nil {
			errs = append(errs, err)
		}
		if gone {
			removed = append(removed, id)
		}
	}
	return removed, errors.Join(errs...)
}

// jobs lists the directories of jobs whose extern step has ended, or will never
// be, in the order of their numbers, and counts the others.
func (d Doctor) jobs(ctx context.Context) (dead []string, live int, err error) {
	entries, err := os.ReadDir(d.path(jobsDir))
	if errors.Is(err, os.ErrNotExist) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, fmt.Errorf("list jobs: %w", err)
	}
	waiting := map[string]time.Duration{}
	for _, e := range entries {
		if _, err := strconv.ParseUint(e.Name(), 10, 32); err != nil || !e.IsDir() {
			continue
		}
		switch state, age, err := d.judge(e.Name()); {
		case err != nil: // it has just gone
		case state == ended:
			dead = append(dead, e.Name())
		default:
			live++
			if state == waits {
				waiting[e.Name()] = age
			}
		}
	}
	gone := d.givenUp(ctx, d.Asked.due(waiting))
	dead = append(dead, gone...)
	slices.SortFunc(dead, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b)) })
	return dead, live - len(gone), nil
}

// givenUp are those of some jobs, by the ages of their directories, that have no extern
// step, and wait for their Prolog no more: Slurm no longer has them. Where it does not
// answer it is asked again the next time.
func (d Doctor) givenUp(ctx context.Context, waiting map[string]time.Duration) (gone []string) {
	if len(waiting) == 0 {
		return nil
	}
	running := d.externs()
	var doubted []string
	for id, age := range waiting {
		switch {
		case running[id]:
		case age >= prologing:
			gone = append(gone, id)
		default:
			doubted = append(doubted, id)
		}
	}
	if len(doubted) == 0 || d.Run == nil {
		return gone
	}
	over, err := slurm.Ended(ctx, d.run, doubted...)
	if err != nil {
		return gone
	}
	return append(gone, over...)
}

// What a job's directory tells of the job.
type jobState int

const (
	runs  jobState = iota // or is being set up
	waits                 // for its extern step, or for its first step, or Slurm has given it up
	ended
)

// judge looks at one directory, and tells how old it is.
func (d Doctor) judge(id string) (state jobState, age time.Duration, err error) {
	info, err := os.Lstat(d.path(path.Join(jobsDir, id)))
	if err != nil {
		return runs, 0, err
	}
	age = d.Now().Sub(info.ModTime())
	known, alive := d.extern(id)
	asked := !known && d.exists(path.Join(jobsDir, id, "asked"))
	switch {
	case alive:
		return runs, age, nil
	case known, !asked && age >= settling:
		return ended, age, nil
	case asked && age >= doubtful:
		return waits, age, nil
	}
	return runs, age, nil
}

// extern reports whether the slurmstepd of the job's extern step still runs,
// and whether the plugin has noted which one it is, as "PID STARTED"
// (JOB_EXTERN in spank/cshim/common/jobfiles.h).
func (d Doctor) extern(id string) (known, alive bool) {
	text, err := d.text(path.Join(jobsDir, id, externName))
	if err != nil {
		return false, false
	}
	pid, started, found := strings.Cut(text, " ")
	if _, err := strconv.ParseUint(pid, 10, 31); err != nil || !found {
		return false, false
	}
	stat, err := d.text(path.Join("proc", pid, "stat"))
	if err != nil {
		return true, false
	}
	// The start time is field 22 (proc_pid_stat(5)); the second, the command,
	// ends at the last parenthesis.
	const afterCommand = 22 - 3
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	return true, len(fields) > afterCommand && fields[afterCommand] == started
}

// externTitle is how slurmstepd calls itself for an extern step.
var externTitle = regexp.MustCompile(`^slurmstepd: \[(\d+)\.extern`)

// externs looks for the slurmstepds of extern steps by their titles, for jobs that
// have not run a step here: nothing tells their numbers yet. Users' processes, of
// which there may be many, are not read: their titles are what they like.
func (d Doctor) externs() map[string]bool {
	running := map[string]bool{}
	names, _ := filepath.Glob(d.path("proc/[0-9]*")) // the pattern is constant
	for _, name := range names {
		if info, err := os.Stat(name); err != nil || !d.TrustOwner && !rootOwns(info) {
			continue
		}
		title, err := os.ReadFile(filepath.Join(name, "cmdline")) //nolint:gosec // G304: the kernel's names
		if err != nil {
			continue
		}
		if m := externTitle.FindSubmatch(title); m != nil {
			running[string(m[1])] = true
		}
	}
	return running
}
