//go:build integration

package integration

import (
	"encoding/json"
	"fmt"
	"strconv"
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
	root(t, login, "timeout", "60", "carme", "doctor").fails(t, login+" is no compute node", "on the nodes")
	as(t, "alice", node1, "timeout", "60", "carme", "doctor").fails(t, "cannot be told", "as root")
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
	turns(t, node2, true) // it may have withdrawn without its slurmd
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

func TestScenario_W2_an_admin_takes_a_lost_factor_away_and_the_audit_log_has_it(t *testing.T) {
	alice := visit(t, "alice").login()
	if out := root(t, ctl, "carme", "health").ok(t); !strings.Contains(out, "database") || strings.Contains(out, "FAIL") {
		t.Errorf("carme health:\n%s", out)
	}
	before := root(t, ctl, "carme", "audit", "verify").ok(t)
	var count int
	if _, err := fmt.Sscanf(before, "%d records, unbroken", &count); err != nil {
		t.Fatalf("carme audit verify: %q", before)
	}
	root(t, ctl, "carme", "reset-factors", "alice").ok(t)
	eventually(t, 10*time.Second, "end of her login", func() bool { return !alice.loggedIn() })
	if r := alice.password("alice", "alice-pass"); !strings.HasPrefix(r.to(), "/login/enrol") {
		t.Errorf("her next login: %s", r)
	}
	list := root(t, ctl, "carme", "audit", "list", "--after", strconv.Itoa(count), "--json").ok(t)
	var r struct{ Act, Object, Actor string }
	if err := json.Unmarshal([]byte(lines(list)[0]), &r); err != nil || r.Act != "factors removed" || r.Object != "alice" || r.Actor != "local uid 0" {
		t.Errorf("audit: %v\n%s", err, list)
	}
	if r := root(t, ctl, "carme", "reset-factors", "nobody-there"); r.code == 0 || !strings.Contains(r.err, "carme: There is no such") {
		t.Errorf("no such user: %d %s", r.code, r.err)
	}
	for _, words := range [][]string{{"carme", "audit", "list"}, {"carme", "reset-factors", "alice"}, {"carme", "health"}} {
		if r := as(t, "alice", ctl, words...); r.code == 0 {
			t.Errorf("%v as a user: %s", words, r.out)
		}
	}
}

func TestScenario_A7_Prometheus_gets_counters_of_every_daemon(t *testing.T) {
	const port = "9744"
	for machine, daemon := range map[string]string{ctl: "backend", login: "portal", node1: "agent"} {
		file := "/etc/carme/" + daemon + ".yaml"
		undo(t, machine, "mv "+file+".kept "+file+" && svc restart carme-"+daemon)
		sh(t, machine, "cp -p "+file+" "+file+".kept && sed -i '/^metrics_listen:/d' "+file+" && echo 'metrics_listen: 127.0.0.1:"+port+"' >>"+file+" && svc restart carme-"+daemon)
	}
	metric := func(machine, name string) (value float64, found bool) {
		t.Helper()
		out := root(t, machine, "curl", "-sf", "http://127.0.0.1:"+port+"/metrics").out
		for _, line := range lines(out) {
			if rest, is := strings.CutPrefix(line, name+" "); is {
				v, err := strconv.ParseFloat(rest, 64)
				if err != nil {
					t.Errorf("%s: %v", line, err)
				}
				return v, true
			}
		}
		return 0, false
	}
	reaches := func(machine, name string, least float64) {
		t.Helper()
		eventually(t, 60*time.Second, fmt.Sprintf("%s of at least %v", name, least), func() bool {
			v, found := metric(machine, name)
			return found && v >= least
		})
	}
	id := sbatch(t, "alice", "-w", node1, "--time=2", "--mem=200", "--gres=gpu:1", "--carme=none", "--wrap", `x=$(head -c 50000000 /dev/zero | tr '\0' a); while :; do :; done`)
	labels := `{job="` + id + `",uid="10001"}`
	reaches(node1, "carme_node_ready", 1)
	reaches(node1, "carme_job_cpu_percent"+labels, 20)
	reaches(node1, "carme_job_memory_bytes"+labels, 50e6)
	reaches(node1, "carme_certificate_expires_seconds", float64(time.Now().Unix()))
	out := root(t, node1, "curl", "-s", "http://127.0.0.1:"+port+"/metrics").out
	for _, name := range []string{"carme_gpu_percent", "carme_gpu_memory_bytes", "carme_gpu_power_watts", "carme_gpu_energy_joules_total"} {
		if strings.Count(out, "\n"+name+"{uuid=\"GPU-") < 4 {
			t.Errorf("not all GPUs have a %s:\n%s", name, out)
		}
	}
	visit(t, "alice").login()
	reaches(login, "carme_portal_certificate_expires_seconds", float64(time.Now().Unix()))
	reaches(login, "carme_portal_routes", 0)
	reaches(ctl, `carme_backend_requests_total{route="POST /v1/login",status="200"}`, 1)
	scancel(id)
	eventually(t, 60*time.Second, "the job to be forgotten", func() bool {
		_, found := metric(node1, "carme_job_cpu_percent"+labels)
		return !found
	})
	if out := root(t, login, "curl", "-s", "-m", "3", "http://"+node1+":"+port+"/metrics"); out.code == 0 {
		t.Error("the counters answer others than their own host")
	}
}

func TestScenario_W5_a_sealed_job_of_the_command_line_runs_and_waits_for_no_app(t *testing.T) {
	alice := visit(t, "alice").login()
	id := sbatch(t, "alice", "-w", node1, "--time=2", "--mem=100", "--carme=none", "--wrap", "sleep 100")
	eventually(t, 30*time.Second, "the seal in the job's log", func() bool {
		return strings.Contains(alice.get("/jobs/"+id).body, "The job is sealed on "+node1)
	})
	page := alice.get("/jobs/" + id).body
	if !strings.Contains(page, `is-ok">Running<`) || strings.Contains(page, "steps-list") {
		_, head, _ := strings.Cut(page, `id="jobhead"`)
		t.Errorf("the page says\n%.1500s", head)
	}
}
