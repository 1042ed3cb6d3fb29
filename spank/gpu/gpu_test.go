package gpu

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// fakeNVML is a library with these GPUs.
type fakeNVML struct {
	init  nvml.Return
	count nvml.Return
	gpus  []fakeDevice
	open  int // starts without an end
}

func (f *fakeNVML) Init() nvml.Return {
	if f.init == nvml.SUCCESS {
		f.open++
	}
	return f.init
}

func (f *fakeNVML) Shutdown() nvml.Return {
	f.open--
	return nvml.SUCCESS
}
func (f *fakeNVML) DeviceGetCount() (int, nvml.Return) { return len(f.gpus), f.count }
func (f *fakeNVML) DeviceGetHandleByIndex(i int) (nvml.Device, nvml.Return) {
	return f.gpus[i], f.gpus[i].handle
}

// fakeDevice answers what Map asks; anything else is a nil pointer.
type fakeDevice struct {
	nvml.Device
	handle, ret      nvml.Return
	minor            int
	uuid, name, pci  string
	mig              []fakeDevice
	migMode, migRet  nvml.Return
	gi, ci           int
	giRet, ciRet     nvml.Return
	minorRet, pciRet nvml.Return
	nameRet          nvml.Return
}

func (d fakeDevice) GetMinorNumber() (int, nvml.Return) { return d.minor, d.minorRet }
func (d fakeDevice) GetUUID() (string, nvml.Return)     { return d.uuid, d.ret }
func (d fakeDevice) GetName() (string, nvml.Return)     { return d.name, d.nameRet }
func (d fakeDevice) GetPciInfo() (nvml.PciInfo, nvml.Return) {
	var info nvml.PciInfo
	copy(info.BusId[:], d.pci)
	return info, d.pciRet
}

func (d fakeDevice) GetMigMode() (current, pending int, ret nvml.Return) {
	if d.mig == nil {
		return 0, 0, nvml.ERROR_NOT_SUPPORTED
	}
	return nvml.DEVICE_MIG_ENABLE, nvml.DEVICE_MIG_ENABLE, d.migMode
}
func (d fakeDevice) GetMaxMigDeviceCount() (int, nvml.Return) { return len(d.mig), d.migRet }
func (d fakeDevice) GetMigDeviceHandleByIndex(i int) (nvml.Device, nvml.Return) {
	return d.mig[i], d.mig[i].handle
}

func (d fakeDevice) GetGpuInstanceId() (int, nvml.Return) { //nolint:revive // the interface's name
	return d.gi, d.giRet
}

func (d fakeDevice) GetComputeInstanceId() (int, nvml.Return) { //nolint:revive // the interface's name
	return d.ci, d.ciRet
}

// proc makes a root with a driver's files: name below /proc/driver/nvidia to
// content.
func proc(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		file := filepath.Join(root, "proc/driver/nvidia", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func driver(t *testing.T) string {
	t.Helper()
	return proc(t, map[string]string{
		"gpus/0000:C1:00.0/information":              "Model: \t\t NVIDIA L40S\nIRQ:   \t\t 100\nGPU UUID: \t GPU-bb\nDevice Minor: \t 0\n",
		"gpus/0000:41:00.0/information":              "Model: \t\t NVIDIA A100\nGPU UUID: \t GPU-aa\nBus Location: \t 0000:41:00.0\nDevice Minor: \t 2\nGPU Excluded:\t No\n",
		"gpus/0000:42:00.0/information":              "Model: \t\t Unknown\n",
		"capabilities/gpu2/mig/gi1/access":           "DeviceFileMinor: 12\nDeviceFileMode: 292\n",
		"capabilities/gpu2/mig/gi1/ci0/access":       "DeviceFileMinor: 13\n",
		"capabilities/gpu2/mig/gi2/access":           "DeviceFileMinor: 21\n",
		"capabilities/gpu2/mig/gi2/ci0/access":       "DeviceFileMode: 292\n",
		"capabilities/mig/config":                    "DeviceFileMinor: 1\n",
		"capabilities/gpu2/mig/config/unexpected":    "",
		"capabilities/gpu2/mig/gi1/cix/unexpected":   "",
		"capabilities/gpu2/mig/gi99999999/also/here": "",
	})
}

func TestMapTellsMinorsOfIndexes(t *testing.T) {
	lib := &fakeNVML{gpus: []fakeDevice{
		{minor: 2, uuid: "GPU-aa", name: "NVIDIA A100", pci: "00000000:41:00.0", mig: []fakeDevice{
			{uuid: "MIG-1", gi: 1},
			{handle: nvml.ERROR_NOT_FOUND},
			{uuid: "MIG-2", gi: 2},
		}},
		{minor: 0, uuid: "GPU-bb", name: "NVIDIA L40S", pci: "00000000:C1:00.0"},
		{minor: 3, uuid: "GPU-cc", name: "X", pci: "00010000:C1:00.0"},
	}}
	got, err := Map(lib, driver(t))
	if err != nil {
		t.Fatal(err)
	}
	want := []GPU{
		{Index: 0, Minor: 2, UUID: "GPU-aa", PCI: "0000:41:00.0", Model: "NVIDIA A100", MIG: []MIG{
			{UUID: "MIG-1", GI: 1, CapMinors: []uint32{12, 13}},
			{UUID: "MIG-2", GI: 2},
		}},
		{Index: 1, Minor: 0, UUID: "GPU-bb", PCI: "0000:c1:00.0", Model: "NVIDIA L40S"},
		{Index: 2, Minor: 3, UUID: "GPU-cc", PCI: "00010000:c1:00.0", Model: "X"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if lib.open != 0 {
		t.Error("NVML was not shut down")
	}
}

func TestMapSaysWhichGPUFails(t *testing.T) {
	bad := nvml.ERROR_GPU_IS_LOST
	cases := map[string]struct {
		lib  fakeNVML
		says string
	}{
		"start":            {fakeNVML{init: nvml.ERROR_UNKNOWN}, "start NVML"},
		"count":            {fakeNVML{count: bad}, "count GPUs"},
		"handle":           {fakeNVML{gpus: []fakeDevice{{handle: bad}}}, "open GPU 0"},
		"minor":            {fakeNVML{gpus: []fakeDevice{{}, {minorRet: bad}}}, "describe GPU 1: minor"},
		"UUID":             {fakeNVML{gpus: []fakeDevice{{ret: bad}}}, "UUID"},
		"name":             {fakeNVML{gpus: []fakeDevice{{nameRet: bad}}}, "name"},
		"PCI":              {fakeNVML{gpus: []fakeDevice{{pciRet: bad}}}, "PCI"},
		"MIG count":        {fakeNVML{gpus: []fakeDevice{{mig: []fakeDevice{}, migRet: bad}}}, "count MIG"},
		"MIG handle":       {fakeNVML{gpus: []fakeDevice{{mig: []fakeDevice{{handle: bad}}}}}, "open MIG device 0"},
		"MIG UUID":         {fakeNVML{gpus: []fakeDevice{{mig: []fakeDevice{{ret: bad}}}}}, "UUID of MIG"},
		"GPU instance":     {fakeNVML{gpus: []fakeDevice{{mig: []fakeDevice{{giRet: bad}}}}}, "GPU instance of MIG"},
		"compute instance": {fakeNVML{gpus: []fakeDevice{{mig: []fakeDevice{{ciRet: bad}}}}}, "compute instance of MIG"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if _, err := Map(&c.lib, t.TempDir()); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %q", err, c.says)
			}
			if c.lib.open != 0 {
				t.Error("NVML was not shut down")
			}
		})
	}
}

func TestNodeWithoutNVMLIsNotABrokenNode(t *testing.T) {
	for _, ret := range []nvml.Return{nvml.ERROR_LIBRARY_NOT_FOUND, nvml.ERROR_DRIVER_NOT_LOADED} {
		if _, err := Map(&fakeNVML{init: ret}, "/"); !errors.Is(err, ErrNoNVML) {
			t.Errorf("%v: got %v", ret, err)
		}
	}
	var _ Library = nvml.New() // the real one fits
}

func TestDriverTellsMinorsWithoutNVML(t *testing.T) {
	got, err := FromProc(driver(t))
	if err != nil {
		t.Fatal(err)
	}
	want := []GPU{
		{Index: -1, Minor: 2, UUID: "GPU-aa", PCI: "0000:41:00.0", Model: "NVIDIA A100", MIG: []MIG{{GI: 1, CapMinors: []uint32{12, 13}}, {GI: 2}}},
		{Index: -1, Minor: 0, UUID: "GPU-bb", PCI: "0000:c1:00.0", Model: "NVIDIA L40S"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if got, err := FromProc(t.TempDir()); err != nil || got != nil {
		t.Errorf("no driver: got %v, %v", got, err)
	}
	if _, err := FromProc("/nowhere/at/all"); err == nil {
		t.Error("a root that is missing is no error")
	}
	if _, err := FromProc(proc(t, map[string]string{"gpus/0000:41:00.0/else": ""})); err == nil {
		t.Error("a GPU without its file is no error")
	}
}
