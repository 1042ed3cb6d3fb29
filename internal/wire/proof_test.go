package wire

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func TestProofIsReadBackAsItWasWritten(t *testing.T) {
	want := &Proof{
		Version: ProofVersion, JobID: 42, StepID: 0, UID: 1001, GID: 1001, User: "alice", Node: "node1",
		Instance: "0123456789abcdef0123456789abcdef", Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Slurm: "24.11.5", Carme: "0.1.0", Net: "host",
		Namespaces: []ProofNamespace{{Kind: NamespacePID, JobInode: 4026532000, HostInode: 4026531836}},
		Cgroup:     ProofCgroup{Version: 2, JobPath: "/system.slice/slurmstepd.scope/job_42", ConstrainDevices: true},
		Devices: []ProofDevice{
			{Path: "/dev/nvidia1", Kind: DeviceGPU, Major: 195, Minor: 1, UUID: "GPU-1", PCI: "00000000:41:00.0", Model: "A100", MIGUUIDs: []string{"MIG-1"}},
			{Path: "/dev/nvidiactl", Kind: DeviceControl, Major: 195, Minor: 255},
		},
		Mounts:  []ProofMount{{Target: "/tmp", Source: "tmpfs", Kind: MountPrivate, Options: "nosuid,nodev"}},
		Image:   &ProofImage{Name: "base", Path: "/images/base.sif", Format: "sif"},
		Options: []ProofOption{{Name: "carme", Value: "base"}},
		Checks:  []Check{{Name: "devices", OK: true}, {Name: "proc", Detail: "seen"}},
	}
	var out bytes.Buffer
	if err := want.Encode(&out); err != nil {
		t.Fatal(err)
	}
	got, err := DecodeProof(&out)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got.Failed() != 1 {
		t.Errorf("%d failed checks, want 1", got.Failed())
	}
	if ns, ok := got.Namespace(NamespacePID); !ok || ns.JobInode != 4026532000 {
		t.Errorf("pid namespace is %+v, %v", ns, ok)
	}
	if _, ok := got.Namespace(NamespaceUser); ok {
		t.Error("a namespace is found that is not there")
	}
	if gpus := got.DevicesOf(DeviceGPU); len(gpus) != 1 || gpus[0].Minor != 1 {
		t.Errorf("GPUs are %+v", gpus)
	}
}

func TestProofHasListsThatAreNeverNull(t *testing.T) {
	var out bytes.Buffer
	if err := (&Proof{Version: ProofVersion}).Encode(&out); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "null") {
		t.Errorf("null in %s", out.String())
	}
}

func TestProofThatCannotBeReadIsRefused(t *testing.T) {
	cases := map[string]struct{ text, says string }{
		"not JSON":      {"{", "decode proof"},
		"no version":    {"{}", "no version"},
		"newer version": {`{"version": 2}`, "version 2, this program knows 1"},
		"two proofs":    {`{"version": 1}{"version": 1}`, "after top-level value"},
		"too long":      {strings.Repeat(" ", ProofMax+1), "more than"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if _, err := DecodeProof(strings.NewReader(c.text)); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %q", err, c.says)
			}
		})
	}
	broken := errors.New("broken")
	if _, err := DecodeProof(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("read: got %v", err)
	}
	if err := (&Proof{}).Encode(brokenWriter{}); err == nil {
		t.Error("a write that fails is no error")
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("broken") }
