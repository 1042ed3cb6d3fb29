package proof

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/carme-hpc/carme/internal/wire"
)

// noNVML is a node without the library.
type noNVML struct{ ret nvml.Return }

func (n noNVML) Init() nvml.Return                { return n.ret }
func (noNVML) Shutdown() nvml.Return              { return nvml.SUCCESS }
func (noNVML) DeviceGetCount() (int, nvml.Return) { return 0, nvml.SUCCESS }

func (noNVML) DeviceGetHandleByIndex(int) (dev nvml.Device, _ nvml.Return) { return dev, nvml.SUCCESS }

// oneGPU lists a GPU of that UUID.
type oneGPU struct {
	noNVML
	nvml.Device
	uuid string
}

func (g oneGPU) DeviceGetCount() (int, nvml.Return)                    { return 1, nvml.SUCCESS }
func (g oneGPU) DeviceGetHandleByIndex(int) (nvml.Device, nvml.Return) { return g, nvml.SUCCESS }
func (g oneGPU) GetMinorNumber() (int, nvml.Return)                    { return 1, nvml.SUCCESS }
func (g oneGPU) GetUUID() (string, nvml.Return)                        { return g.uuid, nvml.SUCCESS }

func (g oneGPU) GetName() (string, nvml.Return) { return "A100", nvml.SUCCESS }

func (g oneGPU) GetPciInfo() (info nvml.PciInfo, ret nvml.Return) { return info, nvml.SUCCESS }

func (g oneGPU) GetMigMode() (current, pending int, ret nvml.Return) {
	return 0, 0, nvml.ERROR_NOT_SUPPORTED
}

func record() *wire.Proof {
	return &wire.Proof{
		Version: wire.ProofVersion, JobID: 7, UID: 1001, User: "alice", Node: "node1", Net: "private",
		Instance: "00", Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Slurm: "24.11.5", Carme: "0.1.0",
		Namespaces: []wire.ProofNamespace{
			{Kind: "mnt", JobInode: 11, HostInode: 1},
			{Kind: "pid", JobInode: 12, HostInode: 2},
			{Kind: "ipc", JobInode: 13, HostInode: 3},
			{Kind: "uts", JobInode: 14, HostInode: 4},
			{Kind: "net", JobInode: 15, HostInode: 5},
		},
		Cgroup:  wire.ProofCgroup{Version: 2, JobPath: "/scope/job_7", ConstrainDevices: true},
		Devices: []wire.ProofDevice{{Path: "/dev/nvidia1", Kind: "gpu", Major: 195, Minor: 1, UUID: "GPU-1", PCI: "0000:41:00.0", Model: "A100", MIGUUIDs: []string{"MIG-1"}}},
		Mounts:  []wire.ProofMount{{Target: "/tmp", Source: "tmpfs", Kind: "private", Options: "nosuid"}},
		Image:   &wire.ProofImage{Name: "base", Path: "/images/base.sif", Format: "sif"},
		Options: []wire.ProofOption{{Name: "carme", Value: "base"}, {Name: "carme-debug"}},
		Checks:  []wire.Check{{Name: "devices", OK: true, Detail: "1 of 4"}},
	}
}

// node is a root as a job sees it, and the inspector of it.
func node(t *testing.T) Inspector {
	t.Helper()
	root := t.TempDir()
	for name, inode := range map[string]string{"mnt": "99", "pid": "12", "ipc": "13", "uts": "14", "net": "15"} {
		must(t, os.MkdirAll(filepath.Join(root, "proc/self/ns"), 0o755))
		must(t, os.Symlink(name+":["+inode+"]", filepath.Join(root, "proc/self/ns", name)))
	}
	for name, text := range map[string]string{
		"proc/1/comm":                        "init",
		"proc/7/comm":                        "a.out",
		"proc/self/status":                   "Name:\tx\nCapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\n",
		"proc/self/cgroup":                   "0::/scope/job_7/step_0/user/task_0\n",
		"proc/self/net/dev":                  "Inter-|   Receive\n face |bytes\n    lo: 0 0\n",
		"proc/self/mountinfo":                "1 2 0:1 / / rw - ext4 x rw\n3 1 0:2 / /tmp rw - tmpfs tmpfs rw\n",
		"sys/fs/cgroup/scope/job_7/step_0/x": "",
		"dev/nvidia1":                        "",
		"dev/nvidiactl":                      "",
		"run/carme/jobs/7/proof.json":        encode(t, record()),
		"run/carme/jobs/8/proof.json":        encode(t, record()),
		"run/carme/job/proof.json":           encode(t, record()),
	} {
		write(t, root, name, text)
	}
	return Inspector{
		Root: root, UID: myUID(t), NVML: noNVML{nvml.ERROR_LIBRARY_NOT_FOUND},
		Open: func(path string) error {
			if path == "/dev/nvidia1" {
				return &os.PathError{Op: "open", Path: path, Err: syscall.ENXIO}
			}
			return &os.PathError{Op: "open", Path: path, Err: syscall.ENOENT}
		},
	}
}

// myUID is who owns what the test makes.
func myUID(t *testing.T) uint32 {
	t.Helper()
	info, err := os.Stat(t.TempDir())
	must(t, err)
	st, isStat := info.Sys().(*syscall.Stat_t)
	if !isStat {
		t.Fatal("no owner")
	}
	return st.Uid
}

func write(t *testing.T, root, name, text string) {
	t.Helper()
	file := filepath.Join(root, name)
	must(t, os.MkdirAll(filepath.Dir(file), 0o755))
	must(t, os.WriteFile(file, []byte(text), 0o644))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func encode(t *testing.T, p *wire.Proof) string {
	t.Helper()
	var out bytes.Buffer
	must(t, p.Encode(&out))
	return out.String()
}

func failed(checks []wire.Check) []string {
	var names []string
	for _, c := range checks {
		if !c.OK {
			names = append(names, c.Name+": "+c.Detail)
		}
	}
	return names
}

func TestSealedJobPassesEveryCheck(t *testing.T) {
	in := node(t)
	p, err := Inside(in.Root)
	if err != nil {
		t.Fatal(err)
	}
	live, gpus := in.Live(t.Context(), p)
	if bad := failed(live); len(bad) > 0 || gpus != nil {
		t.Errorf("failed: %q, GPUs %v", bad, gpus)
	}
	if len(live) < 14 {
		t.Errorf("only %d checks", len(live))
	}
}

func TestLeakIsFound(t *testing.T) {
	cases := map[string]struct {
		spoil func(t *testing.T, in *Inspector, p *wire.Proof)
		says  string
	}{
		"namespace of the node":     {func(_ *testing.T, _ *Inspector, p *wire.Proof) { p.Namespaces[0].HostInode = 99 }, "namespace mnt: 99, which is the node's"},
		"namespace of another job":  {func(_ *testing.T, _ *Inspector, p *wire.Proof) { p.Namespaces[1].JobInode = 77 }, "namespace pid: 12, which is not the job's 77"},
		"namespace shared":          {func(_ *testing.T, _ *Inspector, p *wire.Proof) { p.Namespaces[2].HostInode = 13 }, "namespace ipc: 13, shared with the node"},
		"network shared":            {func(_ *testing.T, _ *Inspector, p *wire.Proof) { p.Namespaces[4].HostInode = 15 }, "namespace net: 15, shared"},
		"namespace not recorded":    {func(_ *testing.T, _ *Inspector, p *wire.Proof) { p.Namespaces = p.Namespaces[:3] }, "namespace uts: the record does not have it"},
		"namespace unreadable":      {remove("proc/self/ns/uts"), "namespace uts: readlink"},
		"foreign process":           {func(_ *testing.T, in *Inspector, _ *wire.Proof) { in.UID++ }, "processes of others: pids 7"},
		"capability":                {replace("proc/self/status", "CapEff:\t0000000000000000", "CapEff:\t0000000000200000"), "privileges: CapEff is 0000000000200000"},
		"setuid programs work":      {replace("proc/self/status", "NoNewPrivs:\t1", "NoNewPrivs:\t0"), "privileges: no_new_privs is not set"},
		"status without the field":  {replace("proc/self/status", "NoNewPrivs", "X"), "privileges: no NoNewPrivs"},
		"cgroup of another job":     {replace("proc/self/cgroup", "job_7", "job_70"), "own cgroup: not below /scope/job_7"},
		"cgroup not recorded":       {func(_ *testing.T, _ *Inspector, p *wire.Proof) { p.Cgroup.JobPath = "" }, "own cgroup: the record"},
		"cgroups of others":         {create("sys/fs/cgroup/scope/job_8/x"), "cgroups of others: job_8"},
		"interface":                 {replace("proc/self/net/dev", "    lo: 0 0\n", "    lo: 0 0\n  eth0: 1 1\n"), "network: private, but there is eth0"},
		"tmp of the node":           {replace("proc/self/mountinfo", " /tmp ", " /mnt "), "private directories: /tmp: not a mount"},
		"foreign GPU":               {create("dev/nvidia3"), "GPUs of others: /dev/nvidia3 can be seen"},
		"foreign GPU by high minor": {create("dev/nvidia200"), "GPUs of others: /dev/nvidia200"},
		"own GPU is broken": {func(_ *testing.T, in *Inspector, _ *wire.Proof) {
			in.Open = func(path string) error {
				if path == "/dev/nvidia1" {
					return syscall.EMFILE
				}
				return syscall.ENOENT
			}
		}, "own GPUs: too many open files"},
		"MIG configuration": {func(_ *testing.T, in *Inspector, _ *wire.Proof) {
			open := in.Open
			in.Open = func(path string) error {
				if strings.HasSuffix(path, "cap1") {
					return nil
				}
				return open(path)
			}
		}, "MIG configuration: /dev/nvidia-caps/nvidia-cap1 can be opened"},
		"foreign GPU by NVML": {func(_ *testing.T, in *Inspector, _ *wire.Proof) { in.NVML = oneGPU{uuid: "GPU-9"} }, "NVML: lists GPUs of others: GPU-9"},
		"no proc":             {remove("proc"), "processes of others: open"},
		"no dev":              {remove("dev"), "GPUs of others: open"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			in, p := node(t), record()
			c.spoil(t, &in, p)
			live, gpus := in.Live(t.Context(), p)
			bad := failed(live)
			if !slices.ContainsFunc(bad, func(b string) bool { return strings.HasPrefix(b, c.says) }) {
				t.Errorf("got %q, want %q", bad, c.says)
			}
			if New(p, live, gpus).OK {
				t.Error("the report is OK")
			}
		})
	}
}

func create(name string) func(*testing.T, *Inspector, *wire.Proof) {
	return func(t *testing.T, in *Inspector, _ *wire.Proof) {
		t.Helper()
		write(t, in.Root, name, "")
	}
}

func remove(name string) func(*testing.T, *Inspector, *wire.Proof) {
	return func(t *testing.T, in *Inspector, _ *wire.Proof) {
		t.Helper()
		must(t, os.RemoveAll(filepath.Join(in.Root, name)))
	}
}

func replace(name, old, text string) func(*testing.T, *Inspector, *wire.Proof) {
	return func(t *testing.T, in *Inspector, _ *wire.Proof) {
		t.Helper()
		data, err := os.ReadFile(filepath.Join(in.Root, name))
		must(t, err)
		if !strings.Contains(string(data), old) {
			t.Fatalf("%s has no %q", name, old)
		}
		write(t, in.Root, name, strings.Replace(string(data), old, text, 1))
	}
}

func TestWhatBelongsToTheJobIsNoLeak(t *testing.T) {
	cases := map[string]struct {
		change func(t *testing.T, in *Inspector, p *wire.Proof)
		says   string
	}{
		"network of the node, asked for": {func(_ *testing.T, _ *Inspector, p *wire.Proof) {
			p.Net, p.Namespaces[4] = "host", wire.ProofNamespace{Kind: "net", JobInode: 15, HostInode: 15}
		}, "shared with the node as asked for"},
		"without an image": {func(_ *testing.T, _ *Inspector, p *wire.Proof) { p.Namespaces[0].JobInode = 99 }, "99, the job's; the node has 1"},
		"in an image":      {func(*testing.T, *Inspector, *wire.Proof) {}, "99, the container's; the node has 1"},
		"GPU of another task": {func(_ *testing.T, in *Inspector, _ *wire.Proof) {
			in.Open = func(path string) error {
				if path == "/dev/nvidia1" {
					return syscall.EPERM
				}
				return syscall.ENOENT
			}
		}, "0 of 1 open here (); the others are not this task's"},
		"own GPU by NVML":    {func(_ *testing.T, in *Inspector, _ *wire.Proof) { in.NVML = oneGPU{uuid: "GPU-1"} }, "lists 1 GPUs, all the job's"},
		"NVML without a GPU": {func(_ *testing.T, in *Inspector, _ *wire.Proof) { in.NVML = noNVML{nvml.ERROR_NO_PERMISSION} }, "lists nothing: "},
		"job without GPUs": {func(t *testing.T, in *Inspector, p *wire.Proof) {
			t.Helper()
			remove("dev/nvidia1")(t, in, p)
			p.Devices = nil
			in.Open = func(string) error { return syscall.ENOENT }
		}, "the job has none"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			in, p := node(t), record()
			c.change(t, &in, p)
			live, _ := in.Live(t.Context(), p)
			if bad := failed(live); len(bad) > 0 {
				t.Errorf("failed: %q", bad)
			}
			if !slices.ContainsFunc(live, func(l wire.Check) bool { return strings.Contains(l.Detail, c.says) }) {
				t.Errorf("%q is missing in %v", c.says, live)
			}
		})
	}
}

// hangingNVML never answers.
type hangingNVML struct {
	noNVML
	done chan struct{}
}

func (h hangingNVML) Init() nvml.Return {
	<-h.done
	return nvml.ERROR_UNKNOWN
}

func TestNVMLThatHangsFailsTheCheckAndNotTheCommand(t *testing.T) {
	in := node(t)
	h := hangingNVML{done: make(chan struct{})}
	defer close(h.done)
	in.NVML = h
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	live, _ := in.Live(ctx, record())
	if bad := failed(live); len(bad) != 1 || !strings.HasPrefix(bad[0], "NVML: does not answer; ask the admin") {
		t.Errorf("got %q", bad)
	}
}

func TestRecordIsReadInsideAndByTheAdmin(t *testing.T) {
	in := node(t)
	if p, err := OfJob(in.Root, "7"); err != nil || p.JobID != 7 {
		t.Errorf("got %v, %v", p, err)
	}
	cases := map[string]string{
		"8":     "the record of job 8 is that of job 7",
		"9":     "job 9 is not isolated on this node, or has ended",
		"123_4": "scontrol show job prints as JobId",
		"../7":  `"../7" is no id of a job`,
	}
	for id, says := range cases {
		if _, err := OfJob(in.Root, id); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: got %v, want %q", id, err, says)
		}
	}
	write(t, in.Root, "run/carme/jobs/10/proof.json", "{")
	if _, err := OfJob(in.Root, "10"); err == nil || !strings.Contains(err.Error(), "decode proof") {
		t.Errorf("got %v", err)
	}
	if _, err := Inside(t.TempDir()); !errors.Is(err, ErrNoJob) {
		t.Errorf("got %v", err)
	}
	if _, err := Inside("/nowhere/at/all"); err != nil && !errors.Is(err, ErrNoJob) {
		t.Errorf("got %v", err)
	}
}

func TestReportHasTheSameContentAsTextAndJSON(t *testing.T) {
	p := record()
	live := []wire.Check{{Name: "processes of others", OK: true, Detail: "none"}, {Name: "network", Detail: "eth0"}}
	r := New(p, live, []SeenGPU{{Minor: 1, UUID: "GPU-1", Model: "A100", MIG: []string{"MIG-1"}}})
	var text, data bytes.Buffer
	must(t, r.WriteText(&text))
	must(t, r.WriteJSON(&data))
	for _, want := range []string{
		"job 7 of alice (uid 1001) on node1, isolated since 2026-01-02T03:04:05Z",
		"image    base (/images/base.sif, sif)", "device filter: Slurm's", "--carme=base", "--carme-debug\n",
		"pid  own  12  node: 2", "/dev/nvidia1  gpu  195:1  A100  GPU-1  0000:41:00.0  MIG-1", "/tmp  private  tmpfs  nosuid",
		"OK    processes of others  none", "FAIL  network              eth0", "A check FAILED",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is missing in\n%s", want, text.String())
		}
	}
	var back Report
	must(t, json.Unmarshal(data.Bytes(), &back))
	if back.OK || back.Record.JobID != 7 || len(back.Live) != 2 || back.GPUs[0].UUID != "GPU-1" {
		t.Errorf("got %+v", back)
	}
	p.Image, p.Cgroup.ConstrainDevices, p.Namespaces[4].JobInode = nil, false, 5
	text.Reset()
	must(t, New(p, nil, nil).WriteText(&text))
	for _, want := range []string{"image    none", "Carme's", "shared with the node", "every check is OK"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is missing in\n%s", want, text.String())
		}
	}
	if err := r.WriteText(broken{}); err == nil {
		t.Error("a text that cannot be written is no error")
	}
	if err := r.WriteJSON(broken{}); err == nil {
		t.Error("JSON that cannot be written is no error")
	}
}

func TestPathOfAUserCannotForgeTheReport(t *testing.T) {
	p := record()
	p.User = "x\x1b[2J"
	p.Mounts = append(p.Mounts, wire.ProofMount{Target: "/mnt", Source: "/a\n  OK  forged\tx\x1b[31m", Kind: "bind"})
	var text bytes.Buffer
	must(t, New(p, nil, nil).WriteText(&text))
	if strings.Contains(text.String(), "\x1b") || !strings.Contains(text.String(), "/a?  OK  forged?x?[31m") {
		t.Errorf("got\n%q", text.String())
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("broken") }

func TestDeviceIsOpenedAndClosed(t *testing.T) {
	if err := OpenDevice("/dev/null"); err != nil {
		t.Error(err)
	}
	if err := OpenDevice("/dev/nowhere"); !absent(err) {
		t.Errorf("got %v", err)
	}
}
