//go:build integration

package integration

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// submitHeld submits a held job with sbatch and returns its id; the job is
// cancelled when the test ends.
func submitHeld(t *testing.T, args ...string) string {
	t.Helper()
	out := as(t, "alice", login, append([]string{"sbatch", "--parsable", "--hold"}, args...)...).ok(t)
	id := strings.TrimSpace(out)
	t.Cleanup(func() { root(t, ctl, "scancel", id) })
	return id
}

// features is the constraint that a job carries in Slurm.
func features(t *testing.T, id string) string {
	t.Helper()
	for field := range strings.FieldsSeq(root(t, ctl, "scontrol", "show", "job", id).ok(t)) {
		if value, found := strings.CutPrefix(field, "Features="); found {
			return value
		}
	}
	t.Fatalf("job %s has no field Features", id)
	return ""
}

func TestScenario_J18_a_carme_job_is_sent_to_nodes_with_the_feature(t *testing.T) {
	cases := map[string]struct {
		args []string
		want string
	}{
		"plain":                  {nil, "(null)"},
		"plain with constraint":  {[]string{"-C", "carme|carme"}, "carme|carme"},
		"without an image":       {[]string{"--carme"}, "carme"},
		"with an image":          {[]string{"--carme=base"}, "carme"},
		"feature already there":  {[]string{"--carme", "-C", "carme"}, "carme"},
		"an alternative as well": {[]string{"--carme", "-C", "carme|carme"}, "(carme|carme)&carme"},
		"array":                  {[]string{"--carme", "--array=1-2"}, "carme"},
		"switched off by no":     {[]string{"--carme=no"}, "(null)"},
		"switched off by 0":      {[]string{"--carme=0"}, "(null)"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			id := submitHeld(t, append(c.args, "--wrap", "true")...)
			if got := features(t, id); got != c.want {
				t.Errorf("Features=%s, not %s", got, c.want)
			}
		})
	}
	// CARME in a profile is for every job but those that say otherwise.
	for _, c := range []struct{ option, want string }{{"--carme-debug", "carme"}, {"--no-carme", "(null)"}} {
		out := as(t, "alice", login, "env", "CARME=base", "sbatch", "--parsable", "--hold", c.option, "--wrap", "true").ok(t)
		id := strings.TrimSpace(out)
		t.Cleanup(func() { root(t, ctl, "scancel", id) })
		if got := features(t, id); got != c.want {
			t.Errorf("CARME=base and %s: Features=%s, not %s", c.option, got, c.want)
		}
	}
}

// restReply is slurmrestd's answer to a submission.
type restReply struct {
	JobID int `json:"job_id"`
	text  string
}

// postJob submits a job as alice through slurmrestd.
func postJob(t *testing.T, job map[string]any) restReply {
	t.Helper()
	body, err := json.Marshal(map[string]any{"job": job})
	if err != nil {
		t.Fatal(err)
	}
	token := root(t, ctl, "/usr/local/lib/testbed/token", "alice").ok(t)
	out := root(t, ctl, "curl", "-s", "--unix-socket", "/run/slurmrestd/slurmrestd.sock",
		"-H", "X-SLURM-USER-NAME: alice", "-H", "X-SLURM-USER-TOKEN: "+token, "-H", "Content-Type: application/json",
		"-d", string(body), "http://slurm/slurm/v0.0.42/job/submit").ok(t)
	reply := restReply{text: out}
	if err := json.Unmarshal([]byte(out), &reply); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return reply
}

func TestScenario_J18_a_carme_job_through_slurmrestd_is_constrained_too(t *testing.T) {
	const option = "_SLURM_SPANK_OPTION_carme_carme=base"
	job := map[string]any{
		"script": "#!/bin/sh\ntrue\n", "current_working_directory": "/home/alice", "hold": true,
		"environment": []string{"PATH=/bin:/usr/bin", option},
	}
	// The nodes would not hear of it before its first step.
	if reply := postJob(t, job); reply.JobID != 0 || !strings.Contains(reply.text, "error") {
		t.Errorf("without spank_environment it is taken as job %d: %s", reply.JobID, reply.text)
	}
	job["spank_environment"] = []string{option}
	reply := postJob(t, job)
	if reply.JobID == 0 {
		t.Fatalf("no job id in %s", reply.text)
	}
	id := fmt.Sprint(reply.JobID)
	t.Cleanup(func() { root(t, ctl, "scancel", id) })
	if got := features(t, id); got != "carme" {
		t.Errorf("Features=%s, not carme", got)
	}
}

func TestAttack_J18_a_later_constraint_does_not_lose_the_feature(t *testing.T) {
	id := submitHeld(t, "--carme", "--wrap", "true")
	for change, want := range map[string]string{"": "carme", "carme|carme": "(carme|carme)&carme"} {
		as(t, "alice", login, "scontrol", "update", "job="+id, "features="+change)
		if got := features(t, id); got != want {
			t.Errorf("after the update to %q the job has Features=%s, not %s", change, got, want)
		}
	}
}

func TestAttack_J18_what_cannot_be_sealed_is_refused_with_a_remedy(t *testing.T) {
	cases := map[string]struct{ option, want string }{
		"OCI container":  {"--container=/tmp", "carme: --carme and --container exclude each other"},
		"counted":        {"--constraint=carme*1", "carme: the constraint 'carme*1' cannot be combined"},
		"matching group": {"--constraint=[carme|carme]", "carme: the constraint '[carme|carme]' cannot be combined"},
	}
	for name, c := range cases {
		for _, command := range [][]string{{"srun"}, {"salloc"}, {"sbatch", "--wrap", "true"}} {
			t.Run(name+" by "+command[0], func(t *testing.T) {
				args := append([]string{"timeout", "30", command[0], "--carme", c.option}, command[1:]...)
				if command[0] != "sbatch" {
					args = append(args, "true")
				}
				r := as(t, "alice", login, args...)
				if r.code == 0 || !strings.Contains(r.err, c.want) {
					t.Errorf("exit status %d, message\n%s", r.code, r.err)
				}
			})
		}
	}
}

func TestFault_J18_J14_a_node_without_the_feature_gets_no_carme_job(t *testing.T) {
	for _, node := range []string{node1, node2} {
		down(t, node, "stop", "carme-agent")
	}
	set := func(node, feature string) {
		root(t, ctl, "scontrol", "update", "nodename="+node, "availablefeatures="+feature, "activefeatures="+feature).ok(t)
	}
	for _, node := range []string{node1, node2} {
		undo(t, ctl, "scontrol update nodename="+node+" availablefeatures=carme activefeatures=carme")
	}
	set(node2, "none")
	for _, command := range [][]string{{"srun"}, {"salloc"}, {"sbatch", "--wrap", "true"}} {
		args := append([]string{"timeout", "30", command[0], "--carme", "-w", node2}, command[1:]...)
		if command[0] != "sbatch" {
			args = append(args, "true")
		}
		r := as(t, "alice", login, args...)
		if !strings.Contains(r.err, "not available") {
			t.Errorf("%s: exit status %d, message\n%s", command[0], r.code, r.err)
		}
		r.fails(t, "--carme jobs run on "+node1+" only", node2+" cannot seal jobs off")
	}
	if out := srun(t, "alice", "-w", node2, "hostname").ok(t); out != node2 {
		t.Errorf("a plain job there prints %q", out)
	}
	if r := srun(t, "alice", "--carme", "hostname"); r.ok(t) != node1 || strings.Contains(r.err, "carme: ") {
		t.Errorf("a --carme job runs on %q, and says %q", r.out, r.err)
	}
	set(node1, "none")
	srun(t, "alice", "--carme", "true").fails(t, "no node can seal jobs off", "carme doctor")
	set(node1, "carme")
	set(node2, "carme")
	// Nor where it was not the reason.
	for what, args := range map[string][]string{"with --carme": {"--carme"}, "without": nil} {
		if r := srun(t, "alice", append(args, "--gres=gpu:9", "true")...); r.code == 0 || strings.Contains(r.err, "carme: ") {
			t.Errorf("a job of nine GPUs, %s, is told: %s", what, r.err)
		}
	}
}

// On a cluster that has them: elsewhere Slurm itself does not know what is asked for.
func TestAttack_J18_J5_shares_of_a_gpu_are_refused_by_name(t *testing.T) {
	slurmConf(t, "GresTypes=gpu,shard,mps")
	for _, name := range []string{"shard", "mps"} {
		want := "carme: gres/" + name + " lets several jobs share a GPU, which --carme cannot seal off; ask for whole GPUs or MIG devices with --gres=gpu:N"
		for _, command := range [][]string{{"srun", "true"}, {"salloc", "true"}, {"sbatch", "--wrap", "true"}} {
			r := as(t, "alice", login, append([]string{"timeout", "30", command[0], "--carme", "--gres=" + name + ":1"}, command[1:]...)...)
			if r.code == 0 || !strings.Contains(r.err, want) {
				t.Errorf("%s of %s: exit status %d, message\n%s", command[0], name, r.code, r.err)
			}
		}
	}
	srun(t, "alice", "--carme=none", "--gres=gpu:1", "true").ok(t)
}

// A step in an allocation is no matter of job_submit.lua: srun itself asks whether
// the allocation's nodes can seal it off.
func TestFault_J18_J14_a_step_is_refused_where_a_node_cannot_seal_it_off(t *testing.T) {
	sealed, plain := bare(t, "--carme=none"), bare(t, "--mem=10")
	down(t, node1, "stop", "carme-agent")
	const feature = "scontrol update nodename=" + node1 + " availablefeatures=%[1]s activefeatures=%[1]s"
	undo(t, ctl, fmt.Sprintf(feature, "carme"))
	sh(t, ctl, fmt.Sprintf(feature, "none"))
	sealed.on(t, node1, nil, "--carme=none", "true").fails(t, node1+" of job "+sealed.id+" can no longer seal steps off", "carme doctor", "submit the job again")
	plain.on(t, node1, nil, "--carme=none", "true").fails(t, node1+" of job "+plain.id+" cannot seal steps off", "make the allocation with --carme or --constraint=carme")
	if out := plain.on(t, node1, nil, "hostname").ok(t); out != node1 {
		t.Errorf("a plain step there prints %q", out)
	}
	allocation{"67000000", "alice"}.on(t, node1, nil, "--carme=none", "true").fails(t, "slurmctld does not say", "check the job's number")
	sh(t, ctl, fmt.Sprintf(feature, "carme"))
	sealed.on(t, node1, nil, "--carme=none", "true").ok(t)
}
