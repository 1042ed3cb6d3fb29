//go:build integration

package integration

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// These tests are about the testbed itself: what every other test relies on. They
// run plain jobs only and name no row.

// openAll tries each GPU's device file and prints one line for each.
const openAll = `for i in 0 1 2 3; do if (exec 3<>/dev/nvidia$i) 2>/tmp/$$; then echo open; else sed 's/.*: //' /tmp/$$; fi; done; rm -f /tmp/$$`

const (
	allowed = "No such device or address" // ENXIO: no driver stands behind the node
	denied  = "Operation not permitted"   // EPERM: the cgroup's device filter
)

func TestTestbed_users_come_from_ldap_on_every_node(t *testing.T) {
	for _, node := range []string{node1, node2} {
		if grep := root(t, node, "grep", "-c", "^alice:", "/etc/passwd"); grep.code == 0 {
			t.Errorf("%s has alice in /etc/passwd", node)
		}
		if id := root(t, node, "id", "carol").ok(t); !strings.Contains(id, "carme-users") || !strings.Contains(id, "carme-admins") {
			t.Errorf("%s: id carol: %s", node, id)
		}
		if id := root(t, node, "id", "dave").ok(t); strings.Contains(id, "carme-") {
			t.Errorf("%s: dave is in a group of Carme: %s", node, id)
		}
		if n := strings.Count(root(t, node, "id", "bob").ok(t), "project"); n != 40 {
			t.Errorf("%s: bob is in %d project groups, not 40", node, n)
		}
	}
}

func TestTestbed_ldap_refuses_a_bind_in_the_clear(t *testing.T) {
	bind := []string{"ldapwhoami", "-x", "-H", "ldap://carme-ldap/", "-D", "uid=alice,ou=people,dc=carme,dc=test", "-w", "alice-pass"}
	if r := root(t, ctl, bind...); r.code == 0 {
		t.Error("slapd accepts a password without StartTLS")
	}
	tls := append([]string{"env", "LDAPTLS_CACERT=/etc/ssl/testbed-ca.pem"}, slices.Insert(bind, 1, "-ZZ")...)
	if out := root(t, ctl, tls...).ok(t); !strings.Contains(out, "uid=alice") {
		t.Errorf("ldapwhoami: %s", out)
	}
}

func TestTestbed_a_plain_step_gets_the_gpus_it_asked_for(t *testing.T) {
	cases := map[string]struct {
		gres string
		want []string
	}{
		"one a100": {"gpu:a100:1", []string{allowed, denied, denied, denied}},
		"one l40s": {"gpu:l40s:1", []string{denied, denied, allowed, denied}},
		"all":      {"gpu:4", []string{allowed, allowed, allowed, allowed}},
		"none":     {"none", []string{denied, denied, denied, denied}},
	}
	for name, c := range cases {
		for _, node := range []string{node1, node2} {
			t.Run(name+" on "+node, func(t *testing.T) {
				got := lines(srun(t, "alice", "-w", node, "--gres="+c.gres, "bash", "-c", openAll).ok(t))
				if !slices.Equal(got, c.want) {
					t.Errorf("opening the GPUs gives\n%q, not\n%q", got, c.want)
				}
			})
		}
	}
}

func TestTestbed_nvml_lists_gpus_in_an_order_of_its_own(t *testing.T) {
	for i, node := range []string{node1, node2} {
		var minors []string
		for _, line := range lines(srun(t, "alice", "-w", node, "--gres=gpu:4", "nvidia-smi", "-L").ok(t)) {
			if strings.HasPrefix(line, "GPU ") {
				if want := fmt.Sprintf("GPU-5ca1ab1e-000%d-", i+1); !strings.Contains(line, want) {
					t.Errorf("%s shows a UUID of another node: %s", node, line)
				}
				minors = append(minors, line[len(line)-2:len(line)-1])
			}
		}
		if want := []string{"2", "1", "3", "0"}; !slices.Equal(minors, want) {
			t.Errorf("%s: minors in the order of NVML are %q, not %q", node, minors, want)
		}
	}
}

func TestTestbed_nvml_shows_mig_devices_to_the_job_that_has_them(t *testing.T) {
	both := srun(t, "alice", "-w", node1, "--gres=gpu:a100:2", "nvidia-smi", "-L").ok(t)
	if n := strings.Count(both, "MIG-"); n != 2 {
		t.Errorf("both a100 have %d MIG devices, not 2:\n%s", n, both)
	}
	first := srun(t, "alice", "-w", node1, "--gres=gpu:a100:1", "nvidia-smi", "-L").ok(t)
	if strings.Contains(first, "MIG-") {
		t.Errorf("the first a100 shows the MIG devices of the second:\n%s", first)
	}
}

func TestTestbed_mpi_spans_both_nodes(t *testing.T) {
	const want = "of 4 on"
	launchers := map[string][]string{
		"srun pmix":           {"srun", "-N2", "--ntasks-per-node=2", "--mpi=pmix", "mpihello"},
		"srun pmix, in image": {"srun", "-N2", "--ntasks-per-node=2", "--mpi=pmix", "apptainer", "exec", "/opt/carme/images/base.sif", "mpihello"},
		"mpirun":              {"salloc", "-N2", "--ntasks-per-node=2", "mpirun", "mpihello"},
	}
	for name, command := range launchers {
		t.Run(name, func(t *testing.T) {
			if suite() == "forky" && strings.Contains(name, "pmix") {
				t.Skip("Debian builds Slurm 26.05 without the PMIx plugin")
			}
			out := openMPI(t, func() result { return as(t, "alice", login, append([]string{"timeout", "80"}, command...)...) }).ok(t)
			if n := strings.Count(out, want); n != 4 {
				t.Errorf("%d ranks of 4 found each other:\n%s", n, out)
			}
			if n := strings.Count(out, "2 here, sum 10, shared 4711"); n != 4 {
				t.Errorf("%d ranks of 4 share memory with their neighbour:\n%s", n, out)
			}
		})
	}
	if out := srun(t, "alice", "-N2", "--ntasks-per-node=2", "--mpi=pmi2", "pmi2hello").ok(t); strings.Count(out, "of 4") != 4 {
		t.Errorf("PMI-2:\n%s", out)
	}
}

func TestTestbed_sixteen_tasks_fit_on_a_node(t *testing.T) {
	if out := srun(t, "alice", "-w", node1, "-n16", "hostname").ok(t); len(lines(out)) != 16 {
		t.Errorf("%d of 16 tasks ran:\n%s", len(lines(out)), out)
	}
}

func TestTestbed_homes_of_node_2_are_closed_to_root(t *testing.T) {
	srun(t, "alice", "-w", node2, "sh", "-c", "echo mine >~/closed").ok(t)
	if r := root(t, node2, "cat", "/home/alice/closed"); r.code == 0 {
		t.Errorf("root reads alice's file on %s: %s", node2, r.out)
	}
	if out := root(t, node1, "cat", "/home/alice/closed").ok(t); out != "mine" {
		t.Errorf("%s shows %q", node1, out)
	}
	// slurmstepd opens output as root with the user's effective uid: NFS lets it.
	as(t, "alice", login, "timeout", "60", "sbatch", "--wait", "-w", node2, "-o", "batch.out", "--wrap", "pwd").ok(t)
	eventually(t, 5*time.Second, "output of the batch job", func() bool {
		return root(t, node1, "cat", "/home/alice/batch.out").out == "/home/alice"
	})
}

func TestTestbed_task_prolog_and_epilog_run_on_node_1_alone(t *testing.T) {
	as(t, "bob", login, "sh", "-c", "rm -rf task-hooks && mkdir task-hooks").ok(t)
	const show = `echo "[$TESTBED_TASKPROLOG]"`
	if out := srun(t, "bob", "-w", node1, "sh", "-c", show).ok(t); out != "["+node1+"]" {
		t.Errorf("%s: %s", node1, out)
	}
	if out := srun(t, "bob", "-w", node2, "sh", "-c", show).ok(t); out != "[]" {
		t.Errorf("%s: %s", node2, out)
	}
	eventually(t, 5*time.Second, "a line of each hook", func() bool {
		log := root(t, login, "cat", "/home/bob/task-hooks/log").out
		return strings.Count(log, "prolog") == 1 && strings.Count(log, "epilog") == 1
	})
}

func TestTestbed_accounting_knows_users_and_gpus(t *testing.T) {
	srun(t, "bob", "--gres=gpu:l40s:1", "--job-name=acct-probe", "true").ok(t)
	eventually(t, 20*time.Second, "the job in sacct", func() bool {
		out := as(t, "bob", login, "sacct", "-XnP", "--name=acct-probe", "--format=account,state,alloctres").out
		return strings.Contains(out, "carme|COMPLETED|") && strings.Contains(out, "gres/gpu:l40s=1")
	})
}

func TestTestbed_slurmrestd_asks_for_a_token(t *testing.T) {
	ping := []string{"curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--unix-socket", "/run/slurmrestd/slurmrestd.sock", "http://slurm/slurm/v0.0.42/ping/"}
	if code := root(t, ctl, ping...).out; code != "401" {
		t.Errorf("without a token: %s", code)
	}
	token := root(t, ctl, "/usr/local/lib/testbed/token", "alice").ok(t)
	with := slices.Insert(slices.Clone(ping), 1, "-H", "X-SLURM-USER-NAME: alice", "-H", "X-SLURM-USER-TOKEN: "+token)
	if code := root(t, ctl, with...).out; code != "200" {
		t.Errorf("with a token: %s", code)
	}
}
