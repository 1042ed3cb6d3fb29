//go:build integration

package integration

import (
	"strings"
	"testing"
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
