//go:build integration

package integration

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// fit says whether Slurm sends --carme jobs to a node.
func fit(t *testing.T, node string) bool {
	t.Helper()
	out := root(t, ctl, "sinfo", "-h", "-N", "-p", "debug", "-n", node, "-o", "%b").ok(t)
	return slices.Contains(strings.Split(out, ","), "carme")
}

// turns waits until the node's agent has given the feature or taken it away, and
// logs how long that took. Nothing but the agent does either.
func turns(t *testing.T, node string, on bool) {
	t.Helper()
	began := time.Now()
	what := "withdrawal of " + node
	if on {
		what = "return of " + node
	}
	eventually(t, 20*time.Second, what, func() bool { return fit(t, node) == on })
	t.Logf("%s took %v", what, time.Since(began).Round(100*time.Millisecond))
}

func TestFault_A15_J18_A13_a_node_withdraws_itself_and_comes_back_within_seconds(t *testing.T) {
	place(t, node1, pluginDir+"/other.so", forAnotherSlurm(t))
	const line, core = "/etc/carme/plugstack.d/carme.conf", "/usr/lib/carme/libcarme.so"
	cases := map[string]struct{ harm, mend string }{
		"its line is taken out":        {"mv " + line + " /etc/carme/it-kept", "[ ! -e /etc/carme/it-kept ] || mv /etc/carme/it-kept " + line},
		"the kill switch":              {"touch /etc/carme/disabled", "rm -f /etc/carme/disabled"},
		"the core is missing":          {"mv " + core + " " + core + ".kept", "[ ! -e " + core + ".kept ] || mv " + core + ".kept " + core},
		"a program has lost its mode":  {"chmod 644 /usr/libexec/carme/carme-host", "chmod 755 /usr/libexec/carme/carme-host"},
		"its configuration is rubbish": {"cp -a /etc/carme/spank.yaml /run/it-kept && echo nonsense: 1 >>/etc/carme/spank.yaml", "[ ! -e /run/it-kept ] || { cat /run/it-kept >/etc/carme/spank.yaml; rm /run/it-kept; }"},
		"Slurm's line is taken out":    {"cp -a /etc/slurm/plugstack.conf /run/it-kept && : >/etc/slurm/plugstack.conf", "[ ! -e /run/it-kept ] || { cat /run/it-kept >/etc/slurm/plugstack.conf; rm /run/it-kept; }"},
	}
	for state, script := range broken(t) {
		if state == "unreadable" {
			continue // root reads it all the same
		}
		cases["the plugin is "+state] = struct{ harm, mend string }{
			"cp -a " + plugin + " " + plugin + ".new && mv " + plugin + " " + plugin + ".kept && mv " + plugin + ".new " + plugin + " && { " + script + "; }",
			"[ ! -e " + plugin + ".kept ] || mv " + plugin + ".kept " + plugin,
		}
	}
	turns(t, node1, true)
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			undo(t, node1, c.mend)
			sh(t, node1, c.harm)
			turns(t, node1, false)
			srun(t, "alice", "--carme=none", "-w", node1, "true").fails(t, "--carme jobs run on "+node2+" only")
			if out := srun(t, "alice", "-w", node1, "hostname").ok(t); out != node1 {
				t.Errorf("a plain job there prints %q", out)
			}
			sh(t, node1, c.mend)
			turns(t, node1, true)
			srun(t, "alice", "--carme=none", "-w", node1, "true").ok(t)
		})
	}
	idle(t)
}

// slurmctld forgets what it was told of nodes. A self-test that nothing asks for comes
// once a minute, so that three times in a row cannot be luck.
func TestFault_A15_nodes_have_the_feature_back_when_slurm_has_read_its_configuration_again(t *testing.T) {
	undo(t, ctl, "scontrol reconfigure")
	for _, m := range []string{ctl, login, node1, node2} {
		undo(t, m, "sed -i 's/ State=UNKNOWN/ Feature=carme State=UNKNOWN/' /etc/slurm/slurm.conf")
		sh(t, m, "sed -i 's/ Feature=carme / /' /etc/slurm/slurm.conf")
	}
	for range 3 {
		root(t, ctl, "scontrol", "reconfigure").ok(t)
		turns(t, node1, true)
		turns(t, node2, true)
	}
	srun(t, "alice", "-N2", "--carme=none", "true").ok(t)
}

// slurm.conf may say that the node has the feature; what counts is what the agent
// finds when it comes up, as on a machine that was just booted.
func TestFault_A15_a_fresh_node_is_examined_before_it_is_trusted_for_long(t *testing.T) {
	undo(t, node2, "svc restart slurmd; svc start carme-agent")
	breaking(t, node2, "rm "+plugin)
	root(t, node2, "svc", "stop", "carme-agent").ok(t)
	root(t, node2, "svc", "stop", "slurmd").ok(t)
	root(t, ctl, "scontrol", "update", "nodename="+node2, "availablefeatures=carme", "activefeatures=carme").ok(t)
	root(t, node2, "svc", "start", "carme-agent").ok(t)
	root(t, node2, "svc", "start", "slurmd").ok(t)
	turns(t, node2, false)
	sh(t, node2, "mv "+plugin+".kept "+plugin)
	turns(t, node2, true)
}
