//go:build integration

package integration

import (
	"strings"
	"testing"
	"time"
)

func TestScenario_J2_a_core_is_dumped_where_the_program_was(t *testing.T) {
	if pattern := root(t, node1, "cat", "/proc/sys/kernel/core_pattern").ok(t); pattern != "core" {
		t.Skipf("the kernel of this machine hands cores to %q, not to a file beside the program", pattern)
	}
	// The marker is put together in memory, so that no command line holds it.
	const crash = `ulimit -c unlimited; cd /tmp; bash -c 'm=marker; m=$m-of-$SLURM_JOB_ID; kill -SEGV $$'; echo status $?; stat -c '%u %a' core*; grep -ac "marker-of-$SLURM_JOB_ID" core*; ls /tmp`
	uid := as(t, "alice", login, "id", "-u").ok(t)
	for where, seal := range seals {
		t.Run(where, func(t *testing.T) {
			r := srun(t, "alice", "-w", node1, seal, "bash", "-c", crash)
			out := lines(r.ok(t))
			if len(out) < 4 || out[0] != "status 139" || out[1] != uid+" 600" || out[2] == "0" || !strings.HasPrefix(out[3], "core") {
				t.Errorf("prints %q\n%s", out, r.err)
			}
			if left := sh(t, node1, "ls /tmp | grep ^core || true"); left != "" {
				t.Errorf("the node's /tmp has %s", left)
			}
		})
	}
}

// A conda environment is a directory with conda-meta and bin; conda itself need
// not be there.
func TestScenario_J8_a_conda_environment_is_active_in_the_job(t *testing.T) {
	const environment = "/home/alice/.conda/envs/it-env"
	put(t, "alice", ".conda/envs/it-env/bin/it-tool", "#!/bin/sh\necho tool of $CONDA_DEFAULT_ENV in $CONDA_PREFIX\n")
	as(t, "alice", login, "mkdir", "-p", environment+"/conda-meta").ok(t)
	undo(t, login, "rm -rf "+environment)
	for where, seal := range seals {
		for name, want := range map[string]string{"it-env": "it-env", environment: environment} {
			t.Run(name+" "+where, func(t *testing.T) {
				for _, node := range []string{node1, node2} {
					out := lines(srun(t, "alice", "-w", node, seal, "--carme-conda="+name, "sh", "-c", `it-tool; echo ${PATH%%:*}; command -v ls`).ok(t))
					if len(out) != 3 || out[0] != "tool of "+want+" in "+environment || out[1] != environment+"/bin" || !strings.HasSuffix(out[2], "/ls") {
						t.Errorf("on %s: %q", node, out)
					}
				}
			})
		}
		t.Run("in a later step "+where, func(t *testing.T) {
			a := allocate(t, "alice", "-w", node1, seal)
			if out := a.srun(t, seal, "--carme-conda=it-env", "it-tool").ok(t); !strings.HasPrefix(out, "tool of it-env") {
				t.Errorf("prints %q", out)
			}
			if out := a.srun(t, seal, "sh", "-c", "echo [$CONDA_PREFIX]").ok(t); out != "[]" {
				t.Errorf("a step without it has %s", out)
			}
		})
	}
	srun(t, "alice", "-w", node1, "--carme=none", "--carme-conda=it-none", "true").fails(t, "there is no conda environment", "\"it-none\"", "conda env list")
	// Of another user's home it cannot be taken.
	as(t, "alice", login, "chmod", "700", "/home/alice/.conda").ok(t)
	srun(t, "bob", "-w", node1, "--carme=none", "--carme-conda="+environment, "true").fails(t, "there is no conda environment")
}

func TestScenario_J12_files_are_broadcast_to_directories_that_the_job_sees(t *testing.T) {
	put(t, "alice", "it-program", "#!/bin/sh\necho program on $SLURMD_NODENAME\n")
	for where, seal := range seals {
		t.Run("sbcast "+where, func(t *testing.T) {
			for _, node := range []string{node1, node2} {
				root(t, node, "install", "-d", "-o", "alice", "/scratch/alice/it").ok(t)
				root(t, node, "rm", "-f", "/scratch/alice/it/program", "/tmp/it-program").ok(t)
			}
			undo(t, node1, "rm -f /tmp/it-program")
			undo(t, node2, "rm -f /tmp/it-program")
			id := sbatch(t, "alice", "-N2", "-w", node1+","+node2, seal, "--carme-bind=/scratch/alice/it:/scratch/alice/it", "--wrap",
				"cd ~; sbcast it-program /scratch/alice/it/program && srun -N2 /scratch/alice/it/program; sbcast it-program /tmp/it-program; ls /tmp")
			out := output(t, "alice", id)
			if strings.Count(out, "program on ") != 2 {
				t.Errorf("the job prints\n%s", out)
			}
			// As docs/limits.md says.
			if strings.Contains(out, "it-program") {
				t.Errorf("what went to /tmp is seen in the job's own:\n%s", out)
			}
			root(t, node1, "test", "-e", "/tmp/it-program").ok(t)
		})
		t.Run("srun --bcast "+where, func(t *testing.T) {
			out := as(t, "alice", login, "timeout", "80", "srun", "--time=2", "-N2", "-w", node1+","+node2, seal, "--bcast=/home/alice/it-copy", "it-program").ok(t)
			if strings.Count(out, "program on ") != 2 {
				t.Errorf("it prints\n%s", out)
			}
		})
	}
}

// As docs/limits.md says: slurmstepd opens it before there is a task, outside.
func TestScenario_J12_output_below_tmp_is_the_nodes(t *testing.T) {
	const file = "/tmp/it-output"
	undo(t, node1, "rm -f "+file)
	for where, seal := range seals {
		t.Run(where, func(t *testing.T) {
			root(t, node1, "rm", "-f", file).ok(t)
			id := as(t, "alice", login, "sbatch", "--parsable", "--time=2", "-w", node1, "-o", file, seal, "--wrap", "echo said; ls -A /tmp | wc -l").ok(t)
			t.Cleanup(func() { scancel(id) })
			awaitState(t, id, 60*time.Second, "COMPLETED", "FAILED")
			if out := root(t, node1, "cat", file).ok(t); out != "said\n0" {
				t.Errorf("the node's file has %q", out)
			}
		})
	}
}

// preempted is a job in the low partition that counts in its home, on all of node 1.
func preempted(t *testing.T, seal, name string) string {
	t.Helper()
	script := put(t, "alice", name+".sh", "#!/bin/bash\necho \"run $SLURM_RESTART_COUNT $(ls /tmp | wc -l) $(readlink /proc/self/ns/pid)\" >>~/"+name+"\ntouch /tmp/left\nwhile :; do echo tick >>~/"+name+"; sleep 0.2; done\n")
	as(t, "alice", login, "rm", "-f", name).ok(t)
	id := sbatch(t, "alice", "-p", "low", "-w", node1, "-n32", "--mem=100", "--requeue", seal, script)
	eventually(t, 40*time.Second, "ticks of the job", func() bool { return ticks(t, name) > 1 })
	return id
}

func ticks(t *testing.T, name string) int {
	t.Helper()
	return strings.Count(homeFile(t, "alice", name), "tick")
}

func TestScenario_J12_a_job_is_preempted_and_runs_anew(t *testing.T) {
	for where, seal := range seals {
		t.Run(where, func(t *testing.T) {
			id := preempted(t, seal, "it-preempted")
			out := srun(t, "bob", "-p", "debug", "-w", node1, "-n32", "--mem=100", seal, "sh", "-c", `[ "$SLURM_PROCID" != 0 ] || { ls /tmp | wc -l; readlink /proc/self/ns/pid; }`).ok(t)
			l := lines(out)
			if len(l) != 2 || l[0] != "0" || !sealed(t, node1, l[1]) {
				t.Errorf("the job that came first prints %q", l)
			}
			if s := state(t, id); s != "PENDING" && s != "RUNNING" {
				t.Errorf("the other one is %s", s)
			}
			eventually(t, 30*time.Second, "the job to wait", func() bool { return state(t, id) != "COMPLETING" })
			root(t, ctl, "scontrol", "update", "JobId="+id, "StartTime=now")
			eventually(t, 60*time.Second, "its second run", func() bool {
				return strings.Contains(homeFile(t, "alice", "it-preempted"), "run 1 0 pid:")
			})
			scancel(id)
			nothingLeft(t, node1)
		})
	}
	idle(t)
}

func TestScenario_J12_a_job_is_suspended_for_another_and_goes_on(t *testing.T) {
	slurmConf(t, "PreemptMode=SUSPEND,GANG")
	root(t, ctl, "scontrol", "update", "PartitionName=low", "PreemptMode=suspend").ok(t)
	undo(t, ctl, "scontrol update PartitionName=low PreemptMode=requeue || true")
	for where, seal := range seals {
		t.Run(where, func(t *testing.T) {
			id := preempted(t, seal, "it-suspended")
			out := srun(t, "bob", "-p", "debug", "-w", node1, "-n32", "--mem=100", seal, "sh", "-c", `[ "$SLURM_PROCID" != 0 ] || { sleep 2; ls /tmp | wc -l; readlink /proc/self/ns/pid; }`)
			l := lines(out.ok(t))
			if len(l) != 2 || l[0] != "0" || !sealed(t, node1, l[1]) {
				t.Errorf("the job that came first prints %q", l)
			}
			awaitState(t, id, 40*time.Second, "RUNNING")
			before := ticks(t, "it-suspended")
			eventually(t, 40*time.Second, "further ticks", func() bool { return ticks(t, "it-suspended") > before+2 })
			if n := strings.Count(homeFile(t, "alice", "it-suspended"), "run"); n != 1 {
				t.Errorf("it has begun %d times", n)
			}
			a := allocation{id, "alice"}
			if n := a.srun(t, "sh", "-c", "ls /tmp | grep -c left").ok(t); n != "1" {
				t.Errorf("it has lost its files: %s", n)
			}
			scancel(id)
			nothingLeft(t, node1)
		})
	}
	idle(t)
}

// displayServer speaks as much of X11 as a client's first request needs: it lets
// in who has the cookie (X Window System Protocol, 8).
const displayServer = `use Socket; my ($path, $cookie) = @ARGV; $| = 1; unlink $path;
socket(S, AF_UNIX, SOCK_STREAM, 0) && bind(S, pack_sockaddr_un($path)) && listen(S, 9) or die "listen: $!"; chmod 0777, $path;
sub take { my ($n, $b) = ($_[0], ''); while (length $b < $n) { sysread(C, $b, $n - length $b, length $b) or return $b } $b }
while (accept(C, S)) {
	my ($order, $major, $minor, $n, $d) = unpack 'a x v v v v', take(12); $n = ($n + 3) & ~3; take($n); my $got = unpack 'H*', take($d);
	my $body = $got eq $cookie ? "it-display" . "\0" x 2 : "go away "; syswrite C, pack('C C v v v', $got eq $cookie, 8, 11, 0, length($body) / 4) . $body; close C }`

// displayClient asks the display that its environment names for a connection.
const displayClient = `use Socket; my ($host, $n) = $ENV{DISPLAY} =~ /^(.*):(\d+)/ or die "no DISPLAY"; open F, '<', $ENV{XAUTHORITY} || "$ENV{HOME}/.Xauthority" or die "no cookies: $!";
local $/; my $all = <F>; my $cookie = ''; while (length $all) { my ($family, $a, $number, $name, $data, $rest) = unpack 'n n/a n/a n/a n/a a*', $all; $cookie = $data if $number eq $n; $all = $rest }
socket(C, AF_INET, SOCK_STREAM, 0) && connect(C, pack_sockaddr_in(6000 + $n, inet_aton($host))) or die "connect: $!";
syswrite C, pack('a x v v v v x2', 'l', 11, 0, 18, length $cookie) . "MIT-MAGIC-COOKIE-1\0\0" . $cookie; my ($b, $part) = ('', ''); $b .= $part while sysread C, $part, 999; print unpack('C', $b) ? 'let in by ' : 'refused: ', unpack('x8 Z*', $b), "\n"`

func TestScenario_J20_a_program_in_the_job_opens_a_window_at_home(t *testing.T) {
	const cookie, socket = "00112233445566778899aabbccddeeff", "/tmp/.X11-unix/X9"
	root(t, login, "install", "-d", "-m", "1777", "/tmp/.X11-unix").ok(t)
	undo(t, login, "rm -f "+socket+" /home/alice/.Xauthority")
	background(t, "alice", login, "perl", "-e", displayServer, socket, cookie)
	as(t, "alice", login, "xauth", "-q", "add", ":9", ".", cookie).ok(t)
	client := put(t, "alice", "it-client.pl", displayClient)
	run := func(args ...string) result {
		return as(t, "alice", login, prefix(append([]string{"timeout", "80", "srun", "--time=2", "-w", node1, "--x11"}, args...), "DISPLAY=:9")...)
	}
	if got := run("perl", client).ok(t); got != "let in by it-display" {
		t.Fatalf("without Carme: %q", got)
	}
	for where, seal := range seals {
		t.Run(where, func(t *testing.T) {
			if got := run(seal, "perl", client).ok(t); got != "let in by it-display" {
				t.Errorf("it prints %q", got)
			}
		})
	}
	idle(t)
}
