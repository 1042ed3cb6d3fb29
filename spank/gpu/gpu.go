package gpu

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// Major is the major number of /dev/nvidiaN and /dev/nvidiactl
// (Documentation/admin-guide/devices.txt in Linux).
const Major = 195

// ErrNoNVML says that this machine has no NVML, or no driver for it to talk to.
var ErrNoNVML = errors.New("no NVML on this node")

// GPU is one GPU of the node.
type GPU struct {
	// Index is NVML's, which is not the minor number; -1 from FromProc.
	Index int
	// Minor is N of /dev/nvidiaN.
	Minor uint32
	// UUID begins with "GPU-".
	UUID string
	// PCI is the address as Linux writes it: 0000:41:00.0.
	PCI   string
	Model string
	// MIG are the partitions, nil if the GPU is not partitioned.
	MIG []MIG
}

// MIG is one partition of a GPU: a compute instance.
type MIG struct {
	// UUID begins with "MIG-"; empty from FromProc.
	UUID string
	// GI and CI are the ids of GPU instance and compute instance.
	GI, CI int
	// CapMinors are N of the files /dev/nvidia-caps/nvidia-capN that open the
	// GPU instance and the compute instance, in this order; nil if the driver
	// does not tell.
	CapMinors []uint32
}

// Library is what Map needs of NVML; nvml.New() returns one.
type Library interface {
	Init() nvml.Return
	Shutdown() nvml.Return
	DeviceGetCount() (int, nvml.Return)
	DeviceGetHandleByIndex(int) (nvml.Device, nvml.Return)
}

// Map lists what NVML shows to this process, by index. root is the root of the
// file system in which the capability files are looked up ("/" on a node). It
// fails with ErrNoNVML where there is none. With a real driver that is not
// loaded persistently it can take seconds.
func Map(lib Library, root string) ([]GPU, error) {
	if ret := lib.Init(); ret != nvml.SUCCESS {
		switch ret {
		case nvml.ERROR_LIBRARY_NOT_FOUND, nvml.ERROR_DRIVER_NOT_LOADED:
			return nil, ErrNoNVML
		}
		return nil, fmt.Errorf("start NVML: %w", ret)
	}
	defer lib.Shutdown() //nolint:errcheck // there is nothing to do about it
	dir, err := driverFiles(root)
	if err != nil {
		return nil, err
	}
	if dir != nil {
		defer dir.Close() //nolint:errcheck // nothing was written
	}
	count, ret := lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return nil, fmt.Errorf("count GPUs: %w", ret)
	}
	gpus := make([]GPU, 0, count)
	for i := range count {
		device, ret := lib.DeviceGetHandleByIndex(i)
		if ret != nvml.SUCCESS {
			return nil, fmt.Errorf("open GPU %d: %w", i, ret)
		}
		g, err := describe(device, i)
		if err != nil {
			return nil, fmt.Errorf("describe GPU %d: %w", i, err)
		}
		for j := range g.MIG {
			m := &g.MIG[j]
			if dir != nil {
				m.CapMinors = capMinors(dir, g.Minor, m.GI, m.CI)
			}
		}
		gpus = append(gpus, g)
	}
	return gpus, nil
}

func describe(device nvml.Device, index int) (GPU, error) {
	g := GPU{Index: index}
	minor, ret := device.GetMinorNumber()
	if ret != nvml.SUCCESS {
		return g, fmt.Errorf("minor number: %w", ret)
	}
	g.Minor = uint32(minor) //nolint:gosec // a device number of the kernel
	if g.UUID, ret = device.GetUUID(); ret != nvml.SUCCESS {
		return g, fmt.Errorf("UUID: %w", ret)
	}
	if g.Model, ret = device.GetName(); ret != nvml.SUCCESS {
		return g, fmt.Errorf("name: %w", ret)
	}
	pci, ret := device.GetPciInfo()
	if ret != nvml.SUCCESS {
		return g, fmt.Errorf("PCI address: %w", ret)
	}
	g.PCI = linuxPCI(text(pci.BusId[:]))
	var err error
	g.MIG, err = partitions(device)
	return g, err
}

// partitions lists a GPU's MIG devices. A GPU or driver that knows no MIG has
// none.
func partitions(device nvml.Device) ([]MIG, error) {
	mode, _, ret := device.GetMigMode()
	if ret != nvml.SUCCESS || mode != nvml.DEVICE_MIG_ENABLE {
		return nil, nil //nolint:nilerr // a GPU without MIG answers with an error
	}
	most, ret := device.GetMaxMigDeviceCount()
	if ret != nvml.SUCCESS {
		return nil, fmt.Errorf("count MIG devices: %w", ret)
	}
	var all []MIG
	for i := range most {
		part, ret := device.GetMigDeviceHandleByIndex(i)
		if ret == nvml.ERROR_NOT_FOUND {
			continue // places are numbered, not all are taken
		}
		if ret != nvml.SUCCESS {
			return nil, fmt.Errorf("open MIG device %d: %w", i, ret)
		}
		var m MIG
		if m.UUID, ret = part.GetUUID(); ret != nvml.SUCCESS {
			return nil, fmt.Errorf("UUID of MIG device %d: %w", i, ret)
		}
		if m.GI, ret = part.GetGpuInstanceId(); ret != nvml.SUCCESS {
			return nil, fmt.Errorf("GPU instance of MIG device %d: %w", i, ret)
		}
		if m.CI, ret = part.GetComputeInstanceId(); ret != nvml.SUCCESS {
			return nil, fmt.Errorf("compute instance of MIG device %d: %w", i, ret)
		}
		all = append(all, m)
	}
	return all, nil
}

// text is a C string in an array.
func text(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return s
}

// linuxPCI turns NVML's address, whose domain has eight digits and is in
// capitals, into the one of Linux, whose domain has four.
func linuxPCI(address string) string {
	address = strings.ToLower(address)
	domain, rest, ok := strings.Cut(address, ":")
	if ok && len(domain) == 8 && strings.HasPrefix(domain, "0000") {
		return domain[4:] + ":" + rest
	}
	return address
}

// driverFiles opens /proc/driver/nvidia below root, once: from there on it is a
// few steps to each of its files, which os.Root takes one by one. It is nil
// without a driver.
func driverFiles(root string) (*os.Root, error) {
	top, err := os.OpenRoot(root)
	if err != nil {
		return nil, fmt.Errorf("open root: %w", err)
	}
	defer top.Close() //nolint:errcheck // nothing was written
	dir, err := top.OpenRoot("proc/driver/nvidia")
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the driver's files: %w", err)
	}
	return dir, nil
}

// FromProc reads /proc/driver/nvidia below root and lists the GPUs in the order
// of their PCI addresses. A GPU whose file does not name its minor number is
// left out. No driver there is an empty list. Errors are those of reading.
func FromProc(root string) ([]GPU, error) {
	dir, err := driverFiles(root)
	if dir == nil {
		return nil, err
	}
	defer dir.Close() //nolint:errcheck // nothing was written
	names, err := list(dir, "gpus")
	if err != nil {
		return nil, fmt.Errorf("list GPUs of the driver: %w", err)
	}
	var gpus []GPU
	for _, name := range names {
		data, err := dir.ReadFile(path.Join("gpus", name, "information"))
		if err != nil {
			return nil, fmt.Errorf("read GPU of the driver: %w", err)
		}
		if g, ok := parseInformation(string(data)); ok {
			g.PCI = strings.ToLower(name)
			g.MIG = partitionsFromProc(dir, g.Minor)
			gpus = append(gpus, g)
		}
	}
	return gpus, nil
}

// list returns the names in a directory, sorted, none if it does not exist.
func list(dir *os.Root, name string) ([]string, error) {
	d, err := dir.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Close() //nolint:errcheck // nothing was written
	names, err := d.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// parseInformation reads /proc/driver/nvidia/gpus/PCI/information.
func parseInformation(content string) (GPU, bool) {
	g := GPU{Index: -1}
	hasMinor := false
	for line := range strings.Lines(content) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(key) {
		case "Model":
			g.Model = value
		case "GPU UUID":
			g.UUID = value
		case "Device Minor":
			g.Minor, hasMinor = number(value)
		}
	}
	return g, hasMinor
}

// partitionsFromProc lists MIG partitions by the driver's capability files.
func partitionsFromProc(dir *os.Root, minor uint32) []MIG {
	base := migDir(minor)
	var all []MIG
	instances, _ := list(dir, base) // unreadable is as good as none: it names no partition
	for _, gi := range instances {
		giID, ok := idIn(gi, "gi")
		if !ok {
			continue
		}
		computes, _ := list(dir, path.Join(base, gi))
		for _, ci := range computes {
			if ciID, ok := idIn(ci, "ci"); ok {
				all = append(all, MIG{GI: giID, CI: ciID, CapMinors: capMinors(dir, minor, giID, ciID)})
			}
		}
	}
	return all
}

func idIn(name, prefix string) (int, bool) {
	rest, ok := strings.CutPrefix(name, prefix)
	if !ok {
		return 0, false
	}
	id, err := strconv.ParseUint(rest, 10, 16)
	return int(id), err == nil
}

// migDir is where the driver describes the partitions of a GPU, by its minor
// number.
func migDir(minor uint32) string {
	return fmt.Sprintf("capabilities/gpu%d/mig", minor)
}

// capMinors returns the minor numbers of the capability files of a GPU instance
// and a compute instance, nil unless the driver tells both.
func capMinors(dir *os.Root, minor uint32, gi, ci int) []uint32 {
	instance := path.Join(migDir(minor), fmt.Sprintf("gi%d", gi))
	var minors []uint32
	for _, name := range []string{path.Join(instance, "access"), path.Join(instance, fmt.Sprintf("ci%d", ci), "access")} {
		data, err := dir.ReadFile(name)
		if err != nil {
			return nil
		}
		for line := range strings.Lines(string(data)) {
			key, value, _ := strings.Cut(line, ":")
			if n, ok := number(strings.TrimSpace(value)); ok && key == "DeviceFileMinor" {
				minors = append(minors, n)
			}
		}
	}
	if len(minors) != 2 {
		return nil
	}
	return minors
}

func number(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil
}
