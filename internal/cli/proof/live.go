package proof

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/carme-hpc/carme/internal/wire"
	"github.com/carme-hpc/carme/spank/gpu"
)

const (
	// nvmlTime is how long NVML may take before it counts as hanging.
	nvmlTime = 30 * time.Second
	// foreignMinors is up to which minor number foreign GPUs are looked for.
	foreignMinors = 32
	// named is how many findings a detail names.
	named = 5
)

// Inspector makes checks from inside a job. Its fields are what a test
// replaces.
type Inspector struct {
	// Root is the root of the file system: "/".
	Root string
	// UID is who runs this.
	UID uint32
	// Open opens a device for reading and writing and closes it at once.
	Open func(path string) error
	// NVML lists GPUs.
	NVML gpu.Library
}

// OpenDevice is Inspector.Open of a real node. O_NONBLOCK keeps devices that
// wait for a peer from blocking.
func OpenDevice(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0) //nolint:gosec // below /dev, from a list of this program
	if err != nil {
		return err
	}
	return f.Close()
}

// Live makes every check against the record p, and lists the GPUs that NVML
// shows. A check that cannot be made fails, with the reason.
func (in Inspector) Live(ctx context.Context, p *wire.Proof) ([]wire.Check, []SeenGPU) {
	checks := in.namespaces(p)
	checks = append(checks, in.processes(), in.privileges(), in.cgroup(p))
	checks = append(checks, in.cgroupTree(p), in.network(p), in.mounts(p))
	checks = append(checks, in.foreignGPUs(p), in.ownDevices(p), in.controlDevices())
	nvml, gpus := in.nvml(ctx, p)
	return append(checks, nvml), gpus
}

func ok(name, format string, args ...any) wire.Check {
	return wire.Check{Name: name, OK: true, Detail: fmt.Sprintf(format, args...)}
}

func fail(name, format string, args ...any) wire.Check {
	return wire.Check{Name: name, Detail: fmt.Sprintf(format, args...)}
}

func (in Inspector) path(name string) string { return filepath.Join(in.Root, name) }

// inode reads the number of one of this process's own namespaces.
func (in Inspector) inode(kind string) (uint64, error) {
	link, err := os.Readlink(in.path("proc/self/ns/" + kind))
	if err != nil {
		return 0, err
	}
	number, found := strings.CutPrefix(link, kind+":[")
	if !found {
		return 0, fmt.Errorf("%q is no namespace", link)
	}
	return strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 64)
}

// namespaces compares this process's own namespaces with the record. In an
// image the mount and user namespace are the container's, below the job's.
func (in Inspector) namespaces(p *wire.Proof) []wire.Check {
	var checks []wire.Check
	for _, ns := range p.Namespaces {
		name := "namespace " + ns.Kind
		own, err := in.inode(ns.Kind)
		mayDiffer := ns.Kind == wire.NamespaceMount || ns.Kind == wire.NamespaceUser
		shared := ns.JobInode == ns.HostInode
		switch {
		case err != nil:
			checks = append(checks, fail(name, "%v", err))
		case own != ns.JobInode && !mayDiffer:
			checks = append(checks, fail(name, "%d, which is not the job's %d", own, ns.JobInode))
		case own == ns.HostInode && !shared:
			checks = append(checks, fail(name, "%d, which is the node's", own))
		case shared && own == ns.HostInode && !mayShare(ns.Kind, p):
			checks = append(checks, fail(name, "%d, shared with the node", own))
		case shared && own == ns.HostInode:
			checks = append(checks, ok(name, "%d, shared with the node as asked for", own))
		case own != ns.JobInode:
			checks = append(checks, ok(name, "%d, the container's; the node has %d", own, ns.HostInode))
		default:
			checks = append(checks, ok(name, "%d, the job's; the node has %d", own, ns.HostInode))
		}
	}
	for _, kind := range []string{wire.NamespaceMount, wire.NamespacePID, wire.NamespaceIPC, wire.NamespaceUTS} {
		if _, found := p.Namespace(kind); !found {
			checks = append(checks, fail("namespace "+kind, "the record does not have it"))
		}
	}
	return checks
}

// mayShare reports whether a job without that namespace of its own is as it
// should be.
func mayShare(kind string, p *wire.Proof) bool {
	return kind == wire.NamespaceUser || kind == wire.NamespaceNet && p.Net == "host"
}

// processes looks for processes of others. The job's PID 1 belongs to root.
func (in Inspector) processes() wire.Check {
	const name = "processes of others"
	entries, err := os.ReadDir(in.path("proc"))
	if err != nil {
		return fail(name, "%v", err)
	}
	total := 0
	var foreign []string
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has ended
		}
		if err != nil {
			return fail(name, "%v", err)
		}
		total++
		st, isStat := info.Sys().(*syscall.Stat_t)
		if pid != 1 && (!isStat || st.Uid != in.UID) {
			foreign = append(foreign, e.Name())
		}
	}
	if len(foreign) > 0 {
		return fail(name, "pids %s", some(foreign))
	}
	return ok(name, "none among %d visible", total)
}

// status reads one field of this process's own status.
func (in Inspector) status(field string) (string, error) {
	data, err := os.ReadFile(in.path("proc/self/status"))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		if key, value, _ := strings.Cut(line, ":"); key == field {
			return strings.TrimSpace(value), nil
		}
	}
	return "", fmt.Errorf("no %s in /proc/self/status", field)
}

// privileges wants no capability and no way to one (capabilities(7)).
func (in Inspector) privileges() wire.Check {
	const name = "privileges"
	for _, field := range []string{"CapEff", "CapPrm", "CapInh", "CapAmb"} {
		set, err := in.status(field)
		if err != nil {
			return fail(name, "%v", err)
		}
		if strings.Trim(set, "0") != "" {
			return fail(name, "%s is %s, not empty", field, set)
		}
	}
	nnp, err := in.status("NoNewPrivs")
	if err != nil {
		return fail(name, "%v", err)
	}
	if nnp != "1" {
		return fail(name, "no_new_privs is not set")
	}
	return ok(name, "no capabilities, no_new_privs is set")
}

// cgroup wants this process inside the job's cgroup.
func (in Inspector) cgroup(p *wire.Proof) wire.Check {
	const name = "own cgroup"
	data, err := os.ReadFile(in.path("proc/self/cgroup"))
	if err != nil {
		return fail(name, "%v", err)
	}
	if p.Cgroup.JobPath == "" {
		return fail(name, "the record does not say where the job is")
	}
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) == 3 && (parts[2] == p.Cgroup.JobPath || strings.HasPrefix(parts[2], p.Cgroup.JobPath+"/")) {
			return ok(name, "%s", parts[2])
		}
	}
	return fail(name, "not below %s", p.Cgroup.JobPath)
}

// jobDir is how Slurm names the cgroup of a job, except by SLUID.
var jobDir = regexp.MustCompile(`^job_(\d+)$`)

// cgroupTree looks for cgroups of other jobs in what is shown of the tree.
func (in Inspector) cgroupTree(p *wire.Proof) wire.Check {
	const (
		name  = "cgroups of others"
		depth = 8
	)
	root := in.path("sys/fs/cgroup")
	own := strconv.FormatUint(uint64(p.JobID), 10)
	var foreign []string
	err := filepath.WalkDir(root, func(at string, d fs.DirEntry, err error) error {
		if err != nil {
			if d != nil && d.IsDir() {
				return fs.SkipDir // what cannot be read shows nothing
			}
			return nil
		}
		if !d.IsDir() {
			return nil
		}
		if m := jobDir.FindStringSubmatch(d.Name()); m != nil {
			if m[1] != own {
				foreign = append(foreign, d.Name())
			}
			return fs.SkipDir
		}
		if strings.Count(strings.TrimPrefix(at, root), "/") >= depth {
			return fs.SkipDir
		}
		return nil
	})
	switch {
	case err != nil:
		return fail(name, "%v", err)
	case len(foreign) > 0:
		slices.Sort(foreign)
		return fail(name, "%s", some(slices.Compact(foreign)))
	}
	return ok(name, "none in /sys/fs/cgroup")
}

// network wants nothing but loopback in a private network.
func (in Inspector) network(p *wire.Proof) wire.Check {
	const name = "network"
	if p.Net != "private" {
		return ok(name, "%s, as asked for", p.Net)
	}
	data, err := os.ReadFile(in.path("proc/self/net/dev"))
	if err != nil {
		return fail(name, "%v", err)
	}
	var others []string
	for line := range strings.Lines(string(data)) {
		if device, _, found := strings.Cut(line, ":"); found && strings.TrimSpace(device) != "lo" {
			others = append(others, strings.TrimSpace(device))
		}
	}
	if len(others) > 0 {
		return fail(name, "private, but there is %s", some(others))
	}
	return ok(name, "private, loopback only")
}

// mounts wants the directories that are to be the job's own to be mounts.
func (in Inspector) mounts(p *wire.Proof) wire.Check {
	const name = "private directories"
	data, err := os.ReadFile(in.path("proc/self/mountinfo"))
	if err != nil {
		return fail(name, "%v", err)
	}
	points := mountPoints(string(data))
	var seen, missing []string
	for _, target := range []string{"/tmp", "/var/tmp", "/dev/shm", "/proc"} {
		recorded := slices.ContainsFunc(p.Mounts, func(m wire.ProofMount) bool { return m.Target == target && m.Kind == wire.MountPrivate })
		switch {
		case !recorded:
		case points[target]:
			seen = append(seen, target)
		default:
			missing = append(missing, target)
		}
	}
	if len(missing) > 0 {
		return fail(name, "%s: not a mount", some(missing))
	}
	return ok(name, "%s", strings.Join(seen, " "))
}

// mountPoints reads /proc/PID/mountinfo (proc_pid_mountinfo(5)).
func mountPoints(content string) map[string]bool {
	points := map[string]bool{}
	for line := range strings.Lines(content) {
		if fields := strings.Fields(line); len(fields) > 4 {
			points[fields[4]] = true
		}
	}
	return points
}

// gpuName is a GPU's device node.
var gpuName = regexp.MustCompile(`^nvidia(\d+)$`)

// foreignGPUs looks for GPUs of other jobs: none may exist in /dev, and none
// may open.
func (in Inspector) foreignGPUs(p *wire.Proof) wire.Check {
	const name = "GPUs of others"
	own := map[string]bool{}
	for _, d := range p.DevicesOf(wire.DeviceGPU) {
		own[d.Path] = true
	}
	entries, err := os.ReadDir(in.path("dev"))
	if err != nil {
		return fail(name, "%v", err)
	}
	candidates := map[string]bool{}
	for _, e := range entries {
		if gpuName.MatchString(e.Name()) {
			candidates["/dev/"+e.Name()] = true
		}
	}
	for minor := range foreignMinors {
		candidates[fmt.Sprintf("/dev/nvidia%d", minor)] = true
	}
	var seen []string
	for device := range candidates {
		if own[device] {
			continue
		}
		if _, err := os.Lstat(in.path(device)); err == nil || !absent(in.Open(device)) {
			seen = append(seen, device)
		}
	}
	if len(seen) > 0 {
		slices.Sort(seen)
		return fail(name, "%s can be seen", some(seen))
	}
	return ok(name, "none exists in /dev")
}

// absent reports whether an error means that there is no such device node.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

// ownDevices opens each GPU of the job. One that is closed belongs to another
// step or task of the job, which is as it should be.
func (in Inspector) ownDevices(p *wire.Proof) wire.Check {
	const name = "own GPUs"
	gpus := p.DevicesOf(wire.DeviceGPU)
	var open, closed []string
	for _, d := range gpus {
		err := in.Open(d.Path)
		switch {
		case err == nil, errors.Is(err, syscall.ENXIO), errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.EBUSY), errors.Is(err, syscall.EIO):
			open = append(open, path.Base(d.Path)) // let in; whether a driver answers is another matter
		case errors.Is(err, fs.ErrPermission), absent(err):
			closed = append(closed, path.Base(d.Path))
		default:
			return fail(name, "%v", err)
		}
	}
	switch {
	case len(gpus) == 0:
		return ok(name, "the job has none")
	case len(closed) > 0:
		return ok(name, "%d of %d open here (%s); the others are not this task's", len(open), len(gpus), strings.Join(open, " "))
	}
	return ok(name, "all %d open: %s", len(gpus), strings.Join(open, " "))
}

// controlDevices wants the files closed with which MIG is configured: the
// capabilities 1 and 2 of the driver.
func (in Inspector) controlDevices() wire.Check {
	const name = "MIG configuration"
	for _, device := range []string{"/dev/nvidia-caps/nvidia-cap1", "/dev/nvidia-caps/nvidia-cap2"} {
		if err := in.Open(device); !absent(err) && !errors.Is(err, fs.ErrPermission) {
			return fail(name, "%s can be opened", device)
		}
	}
	return ok(name, "cannot be opened")
}

// nvml compares what NVML lists with the record.
func (in Inspector) nvml(ctx context.Context, p *wire.Proof) (wire.Check, []SeenGPU) {
	const name = "NVML"
	gpus, err := in.listGPUs(ctx)
	switch {
	case errors.Is(err, gpu.ErrNoNVML) && len(p.DevicesOf(wire.DeviceGPU)) > 0:
		return ok(name, "not present, lists nothing: the NVIDIA libraries are not to be found here"), nil
	case errors.Is(err, gpu.ErrNoNVML):
		return ok(name, "not present, lists nothing"), nil
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return fail(name, "does not answer; ask the admin to look after the driver of %s", p.Node), nil
	case err != nil:
		return ok(name, "lists nothing: %v", err), nil
	}
	own := map[string]bool{}
	for _, d := range p.DevicesOf(wire.DeviceGPU) {
		own[d.UUID] = true
	}
	var seen []SeenGPU
	var foreign []string
	for _, g := range gpus {
		s := SeenGPU{Minor: g.Minor, UUID: g.UUID, PCI: g.PCI, Model: g.Model}
		for _, m := range g.MIG {
			s.MIG = append(s.MIG, m.UUID)
		}
		seen = append(seen, s)
		if !own[g.UUID] {
			foreign = append(foreign, g.UUID)
		}
	}
	if len(foreign) > 0 {
		return fail(name, "lists GPUs of others: %s", some(foreign)), seen
	}
	return ok(name, "lists %d GPUs, all the job's", len(seen)), seen
}

// listGPUs asks NVML, which can hang in the driver, and gives up after
// nvmlTime.
func (in Inspector) listGPUs(ctx context.Context) ([]gpu.GPU, error) {
	ctx, cancel := context.WithTimeout(ctx, nvmlTime)
	defer cancel()
	type answer struct {
		gpus []gpu.GPU
		err  error
	}
	answers := make(chan answer, 1)
	go func() {
		gpus, err := gpu.Map(in.NVML, in.Root)
		answers <- answer{gpus, err}
	}()
	select {
	case a := <-answers:
		return a.gpus, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// some names the first few of a list.
func some(list []string) string {
	if len(list) > named {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:named], ", "), len(list)-named)
	}
	return strings.Join(list, ", ")
}
