package core

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// procGPU is what the driver says of one GPU in
// /proc/driver/nvidia/gpus/PCI/information.
type procGPU struct {
	minor uint32
	uuid  string
	pci   string
	model string
}

// readProcGPUs reads the driver's own list below root, the root directory of a
// file system. It costs no driver start, which NVML may (seconds without the
// persistence daemon). GPUs that the driver does not describe are left out.
func readProcGPUs(root string) []procGPU {
	files, err := filepath.Glob(filepath.Join(root, "proc/driver/nvidia/gpus/*/information"))
	if err != nil {
		return nil // the pattern is constant
	}
	var gpus []procGPU
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		g, ok := parseInformation(string(text))
		g.pci = strings.ToLower(filepath.Base(filepath.Dir(f)))
		if ok {
			gpus = append(gpus, g)
		}
	}
	return gpus
}

func parseInformation(text string) (procGPU, bool) {
	var g procGPU
	minor := false
	for _, line := range strings.Split(text, "\n") {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(key) {
		case "Model":
			g.model = value
		case "GPU UUID":
			g.uuid = value
		case "Device Minor":
			n, err := strconv.ParseUint(value, 10, 32)
			g.minor, minor = uint32(n), err == nil
		}
	}
	return g, minor
}

// describe joins device nodes with what is known of their GPUs, by the minor
// number: indexes and the order of gres.conf mean nothing (they differ).
func describe(nodes []*device, known []procGPU) []hostGPU {
	gpus := make([]hostGPU, 0, len(nodes))
	for _, d := range nodes {
		g := hostGPU{device: d}
		for _, k := range known {
			if k.minor == d.minor() {
				g.uuid, g.pci, g.model = k.uuid, k.pci, k.model
			}
		}
		gpus = append(gpus, g)
	}
	return gpus
}
