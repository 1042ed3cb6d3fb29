//go:build integration

package integration

import (
	"strings"
	"testing"
	"time"
)

func TestScenario_A1_the_plugin_file_acts_with_the_next_step(t *testing.T) {
	const file = "/etc/carme/plugstack.d/carme.conf"
	srun(t, "alice", "-w", node2, "--carme=none", "true").ok(t)
	undo(t, login, "test -e "+file+" || mv "+file+".away "+file)
	sh(t, login, "mv "+file+" "+file+".away")
	if r := srun(t, "alice", "-w", node2, "--carme=none", "true"); r.code == 0 || !strings.Contains(r.err, "--carme") {
		t.Errorf("without the file srun knows --carme: %d %s", r.code, r.err)
	}
	srun(t, "alice", "-w", node2, "true").ok(t)
	sh(t, login, "mv "+file+".away "+file)
	srun(t, "alice", "-w", node2, "--carme=none", "true").ok(t)
}

func TestScenario_A2_doctor_finds_a_sound_node_ready_and_names_what_is_wrong(t *testing.T) {
	for _, node := range []string{node1, node2} {
		if out := root(t, node, "timeout", "60", "carme", "doctor").ok(t); !strings.Contains(out, "ready for srun --carme") {
			t.Errorf("%s: %s", node, out)
		}
	}
	undo(t, node2, "chmod 755 /usr/libexec/carme/carme-anchor; rm -f /etc/carme/disabled")
	sh(t, node2, "chmod 777 /usr/libexec/carme/carme-anchor; touch /etc/carme/disabled")
	r := root(t, node2, "timeout", "60", "carme", "doctor")
	for _, want := range []string{"NOT ready", "chmod go-w /usr/libexec/carme/carme-anchor", "rm /etc/carme/disabled"} {
		if r.code == 0 || !strings.Contains(r.out, want) {
			t.Errorf("doctor ends with %d and does not say %q:\n%s", r.code, want, r.out)
		}
	}
}

// flatten prints a file of Slurm's with those that it includes: a configless node
// gets no included file by an absolute path (slurm.conf(5), "Include").
const flatten = `flatten() { awk 'tolower($1) == "include" { while ((getline line < $2) > 0) print line; next } 1' "$1"; }
`

// A node that has nothing in /etc/slurm but the Prolog; slurmd fetches the rest.
func TestScenario_A1_J18_a_configless_node(t *testing.T) {
	if suite() != "trixie" {
		t.Skip("slurmd is started by hand here, which the testbed's way to cgroup v2 does not allow")
	}
	undo(t, ctl, "cd /etc/slurm && if [ -e kept.conf ]; then cat kept.conf >slurm.conf; rm -f kept.conf cgroup.conf; fi; scontrol reconfigure")
	undo(t, node2, "svc stop slurmd; if [ -d /etc/slurm.kept ]; then rm -rf /etc/slurm && mv /etc/slurm.kept /etc/slurm; fi; rm -rf /run/slurm; svc start slurmd")
	cgroup := sh(t, node2, flatten+"flatten /etc/slurm/cgroup.conf")
	place(t, ctl, "/etc/slurm/cgroup.conf", []byte(cgroup+"\n"))
	sh(t, ctl, flatten+"cd /etc/slurm && cp slurm.conf kept.conf && flatten kept.conf >slurm.conf && echo SlurmctldParameters=enable_configless >>slurm.conf")
	root(t, ctl, "scontrol", "reconfigure").ok(t)
	awaitNodes(t.Context(), t)
	sh(t, node2, "svc stop slurmd; mv /etc/slurm /etc/slurm.kept && mkdir /etc/slurm && cp -a /etc/slurm.kept/carme_prolog /etc/slurm/")
	sh(t, node2, "slurmd --conf-server carme-ctl")
	eventually(t, 40*time.Second, "a plain job there", func() bool { return srun(t, "alice", "-w", node2, "true").code == 0 })
	if r := root(t, node2, "timeout", "60", "carme", "doctor"); r.code != 0 || !strings.Contains(r.out, "plugstack line") {
		t.Errorf("doctor: %s", r.out)
	}
	for where, seal := range seals {
		out := lines(srun(t, "alice", "-w", node2, seal, "sh", "-c", "readlink /proc/self/ns/pid; srun --overlap readlink /proc/self/ns/pid; scontrol show node $SLURMD_NODENAME | grep -o NodeName=[a-z0-9-]*").ok(t))
		if len(out) != 3 || !sealed(t, node2, out[0]) || out[1] != out[0] || out[2] != "NodeName="+node2 {
			t.Errorf("%s: %q", where, out)
		}
	}
	if out := srun(t, "alice", "-w", node2, "readlink", "/proc/self/ns/pid").ok(t); sealed(t, node2, out) {
		t.Errorf("a plain job runs in %s", out)
	}
	a := bare(t, "--carme=none")
	if out := a.on(t, node2, nil, "sh", "-c", pidNS).ok(t); !sealed(t, node2, out) {
		t.Errorf("a step from outside runs in %s", out)
	}
	scancel(a.id)
	idle(t)
}
