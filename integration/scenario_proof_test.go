//go:build integration

package integration

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// proof is what the tests read of `carme proof --json`.
type proof struct {
	OK     bool `json:"ok"`
	Record struct {
		JobID      uint32 `json:"job_id"`
		User       string `json:"user"`
		Node       string `json:"node"`
		Net        string `json:"net"`
		Namespaces []struct {
			Kind string `json:"kind"`
			Job  uint64 `json:"job_inode"`
			Host uint64 `json:"host_inode"`
		} `json:"namespaces"`
		Devices []struct {
			Path string `json:"path"`
			Kind string `json:"kind"`
			UUID string `json:"uuid"`
		} `json:"devices"`
		Options []struct {
			Name  string `json:"name"`
			Value string `json:"value"`
		} `json:"options"`
		Mounts []struct {
			Target string `json:"target"`
		} `json:"mounts"`
	} `json:"record"`
}

func readProof(t *testing.T, text string) proof {
	t.Helper()
	var p proof
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return p
}

func TestScenario_J15_the_proof_inside_a_job_says_what_is_so(t *testing.T) {
	for where, seal := range seals {
		t.Run(where, func(t *testing.T) {
			job := allocate(t, "alice", "-w", node1, "--gres=gpu:l40s:1", seal)
			text := job.srun(t, "carme", "proof").ok(t)
			if !strings.Contains(text, "job "+job.id+" of alice") || !strings.Contains(text, "every check is OK") || strings.Contains(text, "FAIL") {
				t.Errorf("as text:\n%s", text)
			}
			p := readProof(t, job.srun(t, "carme", "proof", "--json").ok(t))
			if !p.OK || strconv.FormatUint(uint64(p.Record.JobID), 10) != job.id || p.Record.User != "alice" || p.Record.Node != node1 {
				t.Errorf("as JSON: %+v", p)
			}
			for _, ns := range p.Record.Namespaces {
				if ns.Kind == "user" {
					continue
				}
				host := root(t, node1, "stat", "-L", "-c", "%i", "/proc/self/ns/"+ns.Kind).ok(t)
				if strconv.FormatUint(ns.Host, 10) != host {
					t.Errorf("the node's %s namespace is %s, not %d", ns.Kind, host, ns.Host)
				}
				if own := ns.Job != ns.Host; own != (ns.Kind != "net") {
					t.Errorf("%s namespace of its own: %v", ns.Kind, own)
				}
			}
			var gpus, mounts []string
			for _, d := range p.Record.Devices {
				if d.Kind == "gpu" {
					gpus = append(gpus, d.Path+" "+d.UUID)
				}
			}
			name, value, _ := strings.Cut(strings.TrimPrefix(seal, "--"), "=")
			if o := p.Record.Options; len(o) != 1 || o[0].Name != name || o[0].Value != value {
				t.Errorf("options %+v of a job with %s", o, seal)
			}
			for _, m := range p.Record.Mounts {
				mounts = append(mounts, m.Target)
			}
			for _, want := range []string{"/dev", "/dev/pts", "/tmp", "/run/user"} {
				if !slices.Contains(mounts, want) {
					t.Errorf("%s is not among %q", want, mounts)
				}
			}
			if want := "/dev/nvidia2 " + gpuUUID(node1, 2); len(gpus) != 1 || gpus[0] != want {
				t.Errorf("GPUs %q, not %q", gpus, want)
			}
			// The administrator sees the same from outside, others do not.
			admin := root(t, node1, "carme", "proof", job.id)
			if admin.code != 0 || !strings.Contains(admin.out, "job "+job.id+" of alice") {
				t.Errorf("for the administrator: %d\n%s\n%s", admin.code, admin.out, admin.err)
			}
			if r := as(t, "bob", node1, "carme", "proof", job.id); r.code == 0 || strings.Contains(r.out, "GPU-") {
				t.Errorf("another user reads it:\n%s", r.out)
			}
			if r := job.srun(t, "sh", "-c", "echo x >/run/carme/job/proof.json"); r.code == 0 {
				t.Error("the job can change its proof")
			}
		})
	}
}

func TestScenario_J15_there_is_no_proof_outside_a_sealed_job(t *testing.T) {
	r := srun(t, "alice", "-w", node1, "carme", "proof")
	if r.fails(t, "srun --carme"); r.out != "" {
		t.Errorf("in a plain job: %d\n%s\n%s", r.code, r.out, r.err)
	}
}
