package metrics

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/exec"
	"sync"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/carme-hpc/carme/internal/wire/api"
)

// Library is what the child needs of NVML; nvml.New() is one.
type Library interface {
	Init() nvml.Return
	DeviceGetCount() (int, nvml.Return)
	DeviceGetHandleByIndex(index int) (nvml.Device, nvml.Return)
	Extensions() nvml.ExtendedInterface
}

// noGPUs is what the child writes, instead of a list, where there is no NVML.
const noGPUs = "null"

// Child writes what NVML says of all GPUs, one line of JSON every so often,
// until ctx ends or nobody reads. Without NVML it writes one line and ends.
func Child(ctx context.Context, lib Library, every time.Duration, out io.Writer) error {
	ret := lib.Init()
	if ret == nvml.ERROR_LIBRARY_NOT_FOUND || ret == nvml.ERROR_DRIVER_NOT_LOADED {
		_, err := fmt.Fprintln(out, noGPUs)
		return err
	}
	if ret != nvml.SUCCESS {
		return fmt.Errorf("start NVML: %w", ret)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	enc := json.NewEncoder(out)
	for {
		samples, err := sampleGPUs(lib)
		if err != nil {
			return err
		}
		if err := enc.Encode(samples); err != nil {
			return fmt.Errorf("write samples: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func sampleGPUs(lib Library) ([]api.GPUSample, error) {
	count, ret := lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return nil, fmt.Errorf("count GPUs: %w", ret)
	}
	all := make([]api.GPUSample, 0, count)
	for i := range count {
		device, ret := lib.DeviceGetHandleByIndex(i)
		if ret != nvml.SUCCESS {
			continue // it may have fallen off the bus; others are there
		}
		uuid, ret := device.GetUUID()
		if ret != nvml.SUCCESS {
			continue
		}
		all = append(all, sampleGPU(lib.Extensions(), device, uuid))
	}
	return all, nil
}

// sampleGPU asks for what this driver knows: a function that it lacks would end
// the process, one that this GPU does not support returns an error.
func sampleGPU(ext nvml.ExtendedInterface, device nvml.Device, uuid string) api.GPUSample {
	has := func(symbol string) bool { return ext == nil || ext.LookupSymbol(symbol) == nil }
	const mb = 1 << 20
	s := api.GPUSample{UUID: uuid}
	if has("nvmlDeviceGetUtilizationRates") {
		if u, ret := device.GetUtilizationRates(); ret == nvml.SUCCESS {
			s.Percent = float64(u.Gpu)
		}
	}
	if has("nvmlDeviceGetMemoryInfo") {
		if m, ret := device.GetMemoryInfo(); ret == nvml.SUCCESS {
			s.MemoryMB = float64(m.Used) / mb
		}
	}
	if has("nvmlDeviceGetPowerUsage") {
		if mw, ret := device.GetPowerUsage(); ret == nvml.SUCCESS {
			s.PowerW = float64(mw) / 1000
		}
	}
	if has("nvmlDeviceGetTotalEnergyConsumption") {
		if mj, ret := device.GetTotalEnergyConsumption(); ret == nvml.SUCCESS {
			s.EnergyJ = float64(mj) / 1000
		}
	}
	return s
}

// GPUs keeps the last samples of a child.
type GPUs struct {
	// Program is this program's file, Args what makes it the child.
	Program string
	Args    []string
	// Silence is after how long without a word a child is given up.
	Silence time.Duration
	// Again is how long after a failure the next child starts.
	Again time.Duration
	Log   *slog.Logger

	mu   sync.Mutex
	at   time.Time
	last map[string]api.GPUSample
}

// Get returns the sample of a GPU, false if none is new enough.
func (g *GPUs) Get(uuid string) (api.GPUSample, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s, ok := g.last[uuid]
	return s, ok && time.Since(g.at) < g.Silence
}

// All returns all samples that are new enough.
func (g *GPUs) All() []api.GPUSample {
	g.mu.Lock()
	defer g.mu.Unlock()
	if time.Since(g.at) >= g.Silence {
		return nil
	}
	all := make([]api.GPUSample, 0, len(g.last))
	for _, s := range g.last {
		all = append(all, s)
	}
	return all
}

var (
	errNoGPUs = errors.New("there is no NVML")
	errSilent = errors.New("NVML does not answer")
)

// Run keeps a child until ctx ends. While one hangs in the driver and cannot be
// killed, no other is started.
func (g *GPUs) Run(ctx context.Context) {
	for {
		err := g.once(ctx)
		if ctx.Err() != nil {
			return
		}
		wait := g.Again
		if errors.Is(err, errNoGPUs) {
			wait *= 10 // a driver may be loaded later
		} else {
			g.Log.Warn("GPUs cannot be measured; trying again", "error", err, "seconds", int(wait.Seconds()))
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// once runs one child to its end.
func (g *GPUs) once(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, g.Program, g.Args...) //nolint:gosec // G204: this program itself
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("start NVML's child: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start NVML's child: %w", err)
	}
	silent := false
	watchdog := time.AfterFunc(g.Silence, func() {
		silent = true
		cancel()
	})
	reason := error(nil)
	in := bufio.NewScanner(out)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		watchdog.Reset(g.Silence)
		if in.Text() == noGPUs {
			reason = errNoGPUs
			break
		}
		if err := g.take(in.Bytes()); err != nil {
			reason = err
			break
		}
	}
	watchdog.Stop()
	cancel()
	// A process that waits for a dead driver ends when the driver does. Until
	// then this goroutine waits, and nothing else does.
	err = cmd.Wait()
	switch {
	case reason != nil:
		return reason
	case silent:
		return errSilent
	case err != nil:
		return fmt.Errorf("NVML's child has ended: %w", err)
	}
	return errors.New("NVML's child has ended")
}

func (g *GPUs) take(line []byte) error {
	var samples []api.GPUSample
	if err := json.Unmarshal(line, &samples); err != nil {
		return fmt.Errorf("read samples of GPUs: %w", err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.at = time.Now()
	g.last = make(map[string]api.GPUSample, len(samples))
	for _, s := range samples {
		g.last[s.UUID] = s
	}
	return nil
}
