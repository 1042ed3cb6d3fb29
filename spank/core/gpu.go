package core

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/carme-hpc/carme/spank/gpu"
)

// gpuCache keeps what NVML said, with what the driver's files said at that
// time. Starting NVML costs milliseconds, without the persistence daemon
// seconds, and must not be paid by each job.
const gpuCache = "/run/carme/gpus.json"

type cachedGPUs struct {
	Proc []gpu.GPU `json:"proc"`
	NVML []gpu.GPU `json:"nvml"`
}

// knownGPUs describes the node's GPUs. The driver's files in /proc know all of
// them and cost nothing; NVML is asked where they do not suffice: for the UUIDs
// of MIG devices, and where there are no such files. The extern step may not ask
// it: NVML shows only those GPUs that may be opened, and Slurm has closed the
// others to it by then.
func knownGPUs(mayAsk bool) ([]gpu.GPU, error) {
	proc, err := gpu.FromProc("/")
	if err != nil {
		return nil, fmt.Errorf("read the driver's list of GPUs: %w", err)
	}
	if len(proc) > 0 && !anyMIG(proc) {
		return proc, nil
	}
	if cached, ok := readGPUCache(gpuCache, proc); ok {
		return cached, nil
	}
	if !mayAsk {
		return nil, errLater
	}
	listed, err := gpu.Map(nvml.New(), "/")
	if errors.Is(err, gpu.ErrNoNVML) {
		return proc, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ask NVML for the GPUs: %w", err)
	}
	merged := mergeGPUs(proc, listed)
	if len(listed) >= len(proc) {
		err = writeGPUCache(gpuCache, cachedGPUs{Proc: proc, NVML: merged})
	}
	return merged, err
}

func anyMIG(gpus []gpu.GPU) bool {
	for _, g := range gpus {
		if len(g.MIG) > 0 {
			return true
		}
	}
	return false
}

// mergeGPUs prefers NVML's description; GPUs that NVML did not show to this
// process, which a device filter may hide, are taken from the driver's files.
func mergeGPUs(proc, listed []gpu.GPU) []gpu.GPU {
	out := append([]gpu.GPU{}, listed...)
	for _, p := range proc {
		known := false
		for _, g := range listed {
			known = known || g.Minor == p.Minor
		}
		if !known {
			out = append(out, p)
		}
	}
	return out
}

func readGPUCache(path string, proc []gpu.GPU) ([]gpu.GPU, bool) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, false
	}
	var c cachedGPUs
	if json.Unmarshal(text, &c) != nil || !reflect.DeepEqual(c.Proc, proc) {
		return nil, false // written before the GPUs were partitioned anew
	}
	return c.NVML, true
}

func writeGPUCache(path string, c cachedGPUs) error {
	text, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode the list of GPUs: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".gpus-*")
	if err != nil {
		return fmt.Errorf("write the list of GPUs: %w", err)
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write the list of GPUs: %w", err), os.Remove(f.Name()))
	}
	return nil
}

// describe joins device nodes with what is known of their GPUs, by the minor
// number: indexes and the order of gres.conf mean nothing (they differ).
func describe(nodes []*device, known []gpu.GPU) []hostGPU {
	gpus := make([]hostGPU, 0, len(nodes))
	for _, d := range nodes {
		g := hostGPU{device: d}
		for _, k := range known {
			if k.Minor == d.minor() {
				g.GPU = k
			}
		}
		gpus = append(gpus, g)
	}
	return gpus
}

// capsOwner returns the index of the GPU to which the capability file of that
// minor number belongs, -1 if to none, and the UUID of the MIG device if it is
// the file of a compute instance, which no other instance shares.
func capsOwner(gpus []hostGPU, minor uint32) (index int, uuid string) {
	for i, g := range gpus {
		for _, m := range g.MIG {
			for n, c := range m.CapMinors {
				if c == minor && n == len(m.CapMinors)-1 {
					return i, m.UUID
				}
				if c == minor {
					return i, ""
				}
			}
		}
	}
	return -1, ""
}
