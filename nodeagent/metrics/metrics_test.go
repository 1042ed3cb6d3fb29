package metrics

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/carme-hpc/carme/internal/wire"
	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/nodeagent/session"
)

// TestMain lets the tests' program be the child.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 {
		switch os.Args[1] {
		case "child":
			if err := Child(context.Background(), &fakeLibrary{gpus: 2}, 10*time.Millisecond, os.Stdout); err != nil {
				os.Exit(1)
			}
			os.Exit(0)
		case "none":
			_ = Child(context.Background(), &fakeLibrary{ret: nvml.ERROR_LIBRARY_NOT_FOUND}, time.Second, os.Stdout)
			os.Exit(0)
		case "hang":
			_, _ = io.Copy(io.Discard, neverEnding{})
		case "noise":
			_, _ = os.Stdout.WriteString("noise\n")
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

type neverEnding struct{}

func (neverEnding) Read([]byte) (int, error) {
	<-time.After(time.Hour)
	return 0, io.EOF
}

type fakeLibrary struct {
	ret   nvml.Return
	gpus  int
	calls int
}

func (f *fakeLibrary) Init() nvml.Return { return f.ret }

func (f *fakeLibrary) DeviceGetCount() (int, nvml.Return) {
	f.calls++
	return f.gpus, nvml.SUCCESS
}

func (f *fakeLibrary) Extensions() nvml.ExtendedInterface {
	return lacking("nvmlDeviceGetTotalEnergyConsumption")
}

func (f *fakeLibrary) DeviceGetHandleByIndex(i int) (nvml.Device, nvml.Return) {
	if i == 7 {
		return nil, nvml.ERROR_GPU_IS_LOST
	}
	return fakeDevice{i: i}, nvml.SUCCESS
}

// lacking is a driver without one function.
type lacking string

func (l lacking) LookupSymbol(name string) error {
	if name == string(l) {
		return errors.New("no such symbol")
	}
	return nil
}

type fakeDevice struct {
	nvml.Device

	i int
}

func (d fakeDevice) GetUUID() (string, nvml.Return) {
	return "GPU-" + string(rune('0'+d.i)), nvml.SUCCESS
}

//nolint:misspell // NVIDIA's names
func (d fakeDevice) GetUtilizationRates() (nvml.Utilization, nvml.Return) {
	return nvml.Utilization{Gpu: 42}, nvml.SUCCESS
}

func (d fakeDevice) GetMemoryInfo() (nvml.Memory, nvml.Return) {
	return nvml.Memory{Used: 3 << 20}, nvml.SUCCESS
}

func (d fakeDevice) GetPowerUsage() (uint32, nvml.Return) { return 0, nvml.ERROR_NOT_SUPPORTED }

func (d fakeDevice) GetTotalEnergyConsumption() (uint64, nvml.Return) {
	panic("the driver lacks it")
}

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func v2(t *testing.T, dir string) {
	t.Helper()
	write(t, dir, map[string]string{
		"cgroup.controllers": "cpu io memory\n",
		"cpu.stat":           "usage_usec 2000000\nuser_usec 1\n",
		"memory.current":     "10485760\n",
		"memory.stat":        "anon 1\ninactive_file 2097152\n",
		"memory.events":      "low 0\noom 1\noom_kill 2\n",
		"io.stat":            "8:0 rbytes=1048576 wbytes=5 rios=1\n8:16 rbytes=1 wbytes=2\n",
	})
}

func TestReadUsage_of_version_2(t *testing.T) {
	dir := t.TempDir()
	v2(t, dir)
	u, ok := ReadUsage([]string{dir})
	if want := (Usage{CPU: 2 * time.Second, Memory: 8 << 20, Read: 1048577, Write: 7, OOM: 2}); !ok || u != want {
		t.Errorf("got %+v, %v", u, ok)
	}
}

func TestReadUsage_of_version_1(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/cpu", map[string]string{"cpuacct.usage": "3000000000\n"})
	write(t, dir+"/blkio", map[string]string{"blkio.throttle.io_service_bytes_recursive": "8:0 Read 10\n8:0 Write 20\n8:0 Total 30\nTotal 30\n"})
	write(t, dir+"/memory", map[string]string{"memory.usage_in_bytes": "5000\n", "memory.stat": "cache 1\ntotal_inactive_file 1000\n", "memory.oom_control": "oom_kill_disable 0\noom_kill 0\n"})
	write(t, dir+"/memory/step_0/task_0", map[string]string{"memory.oom_control": "under_oom 0\noom_kill 1\n"})
	u, ok := ReadUsage([]string{dir + "/cpu", dir + "/blkio", dir + "/memory", dir + "/gone"})
	if want := (Usage{CPU: 3 * time.Second, Memory: 4000, Read: 10, Write: 20, OOM: 1}); !ok || u != want {
		t.Errorf("got %+v, %v", u, ok)
	}
}

func TestReadUsage_of_version_1_without_its_accounting_asks_the_processes(t *testing.T) {
	dir := t.TempDir()
	step := filepath.Join(dir, "step_0", "task_0")
	if err := os.MkdirAll(step, 0o700); err != nil {
		t.Fatal(err)
	}
	// One that is there, and one that is not.
	if err := os.WriteFile(filepath.Join(step, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())+"\n4194305\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	before, ok := ReadUsage([]string{dir})
	if !ok {
		t.Fatal("there is none")
	}
	// A child's work counts when it has ended.
	busy := exec.CommandContext(t.Context(), "sh", "-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done")
	if err := busy.Run(); err != nil {
		t.Fatal(err)
	}
	after, _ := ReadUsage([]string{dir})
	if used := busy.ProcessState.UserTime(); after.CPU-before.CPU < used/2 {
		t.Errorf("%v more, and the child alone took %v", after.CPU-before.CPU, used)
	}
	for _, name := range []string{"cpuacct.usage", blkio} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("7\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if u, _ := ReadUsage([]string{dir}); u.CPU != 7 || u.Read != 0 {
		t.Errorf("with accounting: %+v", u)
	}
}

func TestReadUsage_of_a_job_that_has_ended(t *testing.T) {
	if u, ok := ReadUsage([]string{"/nowhere"}); ok || u != (Usage{}) {
		t.Errorf("got %+v, %v", u, ok)
	}
}

func TestSampler_makes_rates(t *testing.T) {
	dir := t.TempDir()
	v2(t, dir)
	now := time.Unix(1000, 0)
	job := &session.Job{Session: wire.Session{Job: 7, Cgroups: []string{dir}, Devices: []wire.SessionDevice{{UUID: "GPU-1"}, {UUID: "MIG-x"}}}}
	s := &Sampler{
		Jobs: func() []*session.Job { return []*session.Job{job} }, Now: func() time.Time { return now },
		GPU: func(uuid string) (api.GPUSample, bool) { return api.GPUSample{UUID: uuid, Percent: 9}, uuid == "GPU-1" },
	}
	s.Measure()
	if len(s.Take()) != 0 {
		t.Error("a rate from one reading")
	}
	now = now.Add(2 * time.Second)
	write(t, dir, map[string]string{"cpu.stat": "usage_usec 5000000\n", "io.stat": "8:0 rbytes=3145729 wbytes=0\n"})
	s.Measure()
	got := s.Take()
	if len(got) != 1 || got[0].CPU != 150 || got[0].MemoryMB != 8 || got[0].ReadMB != 1 || got[0].WriteMB != 0 || len(got[0].GPUs) != 1 || got[0].GPUs[0].Percent != 9 {
		t.Errorf("got %+v", got)
	}
	s.PutBack(got)
	for range keep + 10 {
		now = now.Add(time.Second)
		s.Measure()
	}
	if n := len(s.Take()); n != keep {
		t.Errorf("kept %d", n)
	}
	if !s.OOM(job) {
		t.Error("the kill was not seen")
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if !s.OOM(job) {
		t.Error("the kill was forgotten with the cgroup")
	}
}

func gpus(t *testing.T, mode string) *GPUs {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return &GPUs{Program: self, Args: []string{mode}, Silence: 5 * time.Second, Again: time.Hour, Log: slog.New(slog.DiscardHandler)}
}

func TestGPUs_are_measured_by_a_child(t *testing.T) {
	g := gpus(t, "child")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.Run(ctx)
	}()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if s, ok := g.Get("GPU-1"); ok {
			if want := (api.GPUSample{UUID: "GPU-1", Percent: 42, MemoryMB: 3}); s != want {
				t.Errorf("got %+v", s)
			}
			break
		}
		<-tick.C
	}
	if n := len(g.All()); n != 2 {
		t.Errorf("%d GPUs", n)
	}
	cancel()
	<-done
}

func TestGPUs_child_that_fails(t *testing.T) {
	for mode, want := range map[string]error{"none": errNoGPUs, "hang": errSilent} {
		g := gpus(t, mode)
		if mode == "hang" {
			g.Silence = 300 * time.Millisecond
		}
		if err := g.once(t.Context()); !errors.Is(err, want) {
			t.Errorf("%s: %v", mode, err)
		}
	}
	if err := gpus(t, "noise").once(t.Context()); err == nil || errors.Is(err, errSilent) {
		t.Errorf("noise: %v", err)
	}
}

func TestChild_leaves_lost_GPUs_out(t *testing.T) {
	var out bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Child(ctx, &fakeLibrary{gpus: 9}, time.Hour, &out); err != nil || strings.Count(out.String(), `"uuid"`) != 8 {
		t.Errorf("wrote %s (%v)", out.String(), err)
	}
	if err := Child(ctx, &fakeLibrary{ret: nvml.ERROR_UNKNOWN}, time.Hour, &out); err == nil {
		t.Error("a sick driver is no error")
	}
}

func TestSources_answer_Prometheus(t *testing.T) {
	s := Sources{
		Jobs:    func() []*session.Job { return []*session.Job{{Session: wire.Session{Job: 7, UID: 10001}}} },
		Samples: func() []api.NodeSample { return []api.NodeSample{{Job: 7, CPU: 50, MemoryMB: 1}} },
		GPUs:    func() []api.GPUSample { return []api.GPUSample{{UUID: "GPU-1", PowerW: 70}} },
		Streams: func() (int, map[string]int64, int64, int64) { return 3, map[string]int64{"ok": 9}, 10, 20 },
		Problem: func() string { return "no plugin" },
		Expires: func() time.Time { return time.Unix(5000, 0) },
	}
	rec := httptest.NewRecorder()
	s.Handler().ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	for _, want := range []string{
		`carme_job_cpu_percent{job="7",uid="10001"} 50`, `carme_job_memory_bytes{job="7",uid="10001"} 1.048576e+06`,
		`carme_gpu_power_watts{uuid="GPU-1"} 70`, `carme_streams 3`, `carme_streams_asked_total{status="ok"} 9`, `carme_node_ready 0`,
		`carme_jobs{stage="without_app"} 1`, `carme_jobs{stage="image"} 0`, `carme_certificate_expires_seconds 5000`, `carme_stream_bytes_total{direction="from_app"} 20`,
	} {
		if !strings.Contains(rec.Body.String(), want+"\n") {
			t.Errorf("%s is missing in\n%s", want, rec.Body.String())
		}
	}
}
