//go:build integration

package integration

import (
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// both runs a command plain and sealed, for what must not differ.
func both(t *testing.T, seal string, args ...string) (plain, sealed result) {
	t.Helper()
	at := slices.IndexFunc(args, func(a string) bool { return !strings.HasPrefix(a, "-") })
	with := slices.Insert(slices.Clone(args), at, seal)
	return srun(t, "alice", append([]string{"-w" + node1}, args...)...), srun(t, "alice", append([]string{"-w" + node1}, with...)...)
}

func TestScenario_J2_exit_codes_signals_and_streams_are_as_without_carme(t *testing.T) {
	put(t, "alice", "it-no-exec", "#!/bin/sh\n")
	as(t, "alice", login, "chmod", "644", "it-no-exec").ok(t)
	cases := map[string][]string{
		"exit code":          {"sh", "-c", "exit 7"},
		"each task its own":  {"-n3", "sh", "-c", "exit $SLURM_PROCID"},
		"killed":             {"sh", "-c", "kill -KILL $$"},
		"terminated":         {"sh", "-c", "kill -TERM $$"},
		"segmentation":       {"sh", "-c", "ulimit -c 0; kill -SEGV $$"},
		"core":               {"sh", "-c", "ulimit -c unlimited; cd /tmp; kill -SEGV $$"},
		"streams":            {"-l", "-n2", "sh", "-c", "echo out; echo err >&2"},
		"limits":             {"sh", "-c", "ulimit -c; ulimit -n; ulimit -s; ulimit -l; umask"},
		"signals":            {"grep", "-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status"},
		"descriptors":        {"sh", "-c", "ls /proc/self/fd | grep -v 1[0-9]"},
		"who":                {"sh", "-c", "id -u; id -g; pwd; echo $HOME $USER $SLURM_JOB_NAME"},
		"--kill-on-bad-exit": {"-n2", "--kill-on-bad-exit=1", "sh", "-c", "[ $SLURM_PROCID = 0 ] && exit 3; exec sleep 60"},
	}
	for name, args := range cases {
		for where, seal := range seals {
			t.Run(name+" "+where, func(t *testing.T) {
				plain, sealed := both(t, seal, args...)
				if name == "--kill-on-bad-exit" || name == "streams" {
					// The order of lines is nobody's promise.
					for _, r := range []*result{&plain, &sealed} {
						out, errors := lines(r.out), lines(r.err)
						slices.Sort(out)
						slices.Sort(errors)
						r.out, r.err = strings.Join(out, "\n"), strings.Join(errors, "\n")
					}
				}
				same(t, plain, sealed)
			})
		}
	}
	for where, seal := range seals {
		t.Run("a command that is not there "+where, func(t *testing.T) {
			plain, sealed := both(t, seal, "nosuchcommand")
			if sealed.code != plain.code || !strings.Contains(sealed.err, "nosuchcommand") || !strings.Contains(sealed.err, "No such file") {
				t.Errorf("%d, not %d\n%s\nnot\n%s", sealed.code, plain.code, sealed.err, plain.err)
			}
			plain, sealed = both(t, seal, "/home/alice/it-no-exec")
			if sealed.code != plain.code || !strings.Contains(sealed.err, "Permission denied") {
				t.Errorf("not executable: %d, not %d\n%s\nnot\n%s", sealed.code, plain.code, sealed.err, plain.err)
			}
		})
		t.Run("input "+where, func(t *testing.T) {
			got := as(t, "alice", login, "bash", "-c", `seq 20000 | timeout 60 srun --time=2 "$0" md5sum`, seal).ok(t)
			if want := as(t, "alice", login, "bash", "-c", `seq 20000 | md5sum`).ok(t); got != want {
				t.Errorf("standard input arrives as %s, not %s", got, want)
			}
		})
	}
}

func TestScenario_J2_signals_reach_the_program(t *testing.T) {
	const wait = `trap 'echo usr1' USR1; trap 'echo term; exit 5' TERM; trap 'echo int' INT; echo ready; while :; do sleep 0.1; done`
	script := put(t, "alice", "it-signals.sh", "#!/bin/bash\nsrun bash -c \"$WAIT\" &\nwait $!; echo step $?\n")
	for where, seal := range seals {
		t.Run(where, func(t *testing.T) {
			id := sbatch(t, "alice", "-w", node1, seal, "--export=ALL,WAIT="+wait, script)
			says := func(word string) {
				t.Helper()
				eventually(t, 20*time.Second, word, func() bool {
					return slices.Contains(lines(homeFile(t, "alice", "it-"+id+".out")), word)
				})
			}
			says("ready")
			for signal, word := range map[string]string{"USR1": "usr1", "INT": "int"} {
				root(t, ctl, "scancel", "-s", signal, id+".0").ok(t)
				says(word)
			}
			root(t, ctl, "scancel", "-s", "TERM", id+".0").ok(t)
			says("term")
			says("step 5")
		})
	}
	// Slurm signals the extern step too, in which a sealed job lives: it would end five
	// seconds later.
	for where, seal := range seals {
		t.Run("all of the job/"+where, func(t *testing.T) {
			script := put(t, "alice", "it-all.sh", "#!/bin/bash\ntrap 'echo batch' USR1\nsrun bash -c 'trap \"echo usr1\" USR1; echo ready; for i in $(seq 90); do sleep 0.1; done; echo end' & wait $!; wait $!; echo step $?\n")
			id := sbatch(t, "alice", "-w", node1, seal, script)
			eventually(t, 20*time.Second, "ready", func() bool { return strings.Contains(homeFile(t, "alice", "it-"+id+".out"), "ready") })
			root(t, ctl, "scancel", "-s", "USR1", id).ok(t)
			if got := output(t, "alice", id); !strings.HasSuffix(got, "usr1\nend\nstep 0") {
				t.Errorf("prints %q", got)
			}
		})
	}
	t.Run("--signal", func(t *testing.T) {
		// Due at once: fifty-nine of sixty seconds before the limit.
		script := put(t, "alice", "it-warned.sh", "#!/bin/bash\ntrap 'echo warned; exit 4' USR1\necho ready\nwhile :; do sleep 0.1; done\n")
		id := sbatch(t, "alice", "-w", node1, "--carme=base", "--signal=B:USR1@170", script)
		if got := output(t, "alice", id); got != "ready\nwarned" {
			t.Errorf("prints %q", got)
		}
	})
	t.Run("KILL", func(t *testing.T) {
		id := sbatch(t, "alice", "-w", node1, "--carme=base", "--wrap", "srun sh -c 'echo ready; exec sleep 4243'; echo step $?")
		eventually(t, 20*time.Second, "ready", func() bool { return strings.Contains(homeFile(t, "alice", "it-"+id+".out"), "ready") })
		root(t, ctl, "scancel", "-s", "KILL", id+".0").ok(t)
		if got := output(t, "alice", id); !strings.Contains(got, "step 137") {
			t.Errorf("prints %q", got)
		}
	})
	idle(t)
}

func TestScenario_J2_the_time_limit_ends_a_job_with_a_warning_first(t *testing.T) {
	script := put(t, "alice", "it-limit.sh", "#!/bin/bash\ntrap 'echo term' TERM\necho ready\nwhile :; do sleep 0.1; done\n")
	id := sbatch(t, "alice", "-w", node1, "--carme=base", script)
	eventually(t, 20*time.Second, "ready", func() bool { return homeFile(t, "alice", "it-"+id+".out") == "ready" })
	root(t, ctl, "scontrol", "update", "JobId="+id, "EndTime=now").ok(t)
	awaitState(t, id, 60*time.Second, "TIMEOUT")
	eventually(t, 20*time.Second, "SIGTERM", func() bool { return strings.Contains(homeFile(t, "alice", "it-"+id+".out"), "term") })
	eventually(t, 20*time.Second, "end of its processes", func() bool { return root(t, node1, "pgrep", "-f", "it-limit|slurm_script").code != 0 })
	idle(t)
}

func TestScenario_J2_a_terminal_with_job_control(t *testing.T) {
	for where, seal := range seals {
		t.Run(where, func(t *testing.T) {
			s := interact(t, "srun --time=2 -J it-session "+seal+" --pty bash --norc --noprofile -i")
			s.types("PS1='ready> '; echo tty=$(tty) $(stat -c %U $(tty))\n")
			if got := s.says(`tty=/dev/pts/[0-9]+ \w+`); !strings.HasSuffix(got, "alice") && seal == "--carme=none" {
				t.Errorf("the terminal is another's: %s", got)
			}
			s.says("ready> ")
			s.types("sleep 100\n")
			eventually(t, 10*time.Second, "sleep", func() bool {
				return root(t, node1, "pgrep", "-fx", "sleep 100").code == 0 || root(t, node2, "pgrep", "-fx", "sleep 100").code == 0
			})
			s.types("\x1a")
			s.says(`Stopped\s+sleep 100`)
			s.says("ready> ")
			// Whether bash says "Terminated" besides is a matter of who sees the end first.
			s.types("bg; kill %1; wait $!; echo status $?; echo size $(stty size); echo 'no job con'trol\n")
			s.says(`status 143`)
			s.says(`size \d+ \d+`)
			s.says("ready> ")
			s.types("sleep 101\n")
			eventually(t, 10*time.Second, "sleep", func() bool {
				return root(t, node1, "pgrep", "-fx", "sleep 101").code == 0 || root(t, node2, "pgrep", "-fx", "sleep 101").code == 0
			})
			s.types("\x03")
			s.says("ready> ")
			s.types("echo code $?\n")
			s.says("code 130")
			s.types("exit 9\n")
			if code := s.ends(); code != 9 {
				t.Errorf("exit status %d, not 9", code)
			}
			if strings.Contains(s.text(), "cannot set terminal process group") {
				t.Errorf("bash has no job control:\n%s", s.text())
			}
		})
	}
}

func TestScenario_J2_ctrl_c_ends_a_step(t *testing.T) {
	s := interact(t, "srun --time=2 -J it-session --carme=base sh -c 'echo ready; exec sleep 4244'")
	s.says("ready")
	// srun ends with a second one within a second of another, and takes two at once
	// for one.
	go func() {
		press := time.NewTicker(300 * time.Millisecond)
		defer press.Stop()
		for {
			select {
			case <-s.done:
				return
			case <-press.C:
				_, _ = io.WriteString(s.in, "\x03") // it may end at any moment
			}
		}
	}()
	s.says("(?i)interrupt|sending Ctrl-C")
	if code := s.ends(); code == 0 {
		t.Errorf("exit status 0:\n%s", s.text())
	}
	for _, node := range []string{node1, node2} {
		eventually(t, 10*time.Second, "end of the program", func() bool { return root(t, node, "pgrep", "-fx", "sleep 4244").code != 0 })
	}
}

func TestScenario_J7_J14_scancel_while_the_container_starts(t *testing.T) {
	const file, slow = "/etc/carme/spank.yaml", "/opt/carme/slow-apptainer"
	place(t, node1, slow, []byte("#!/bin/sh\n[ \"$1\" != --version ] || exec apptainer --version\nsleep 120\n"))
	undo(t, node1, "mv "+file+".kept "+file)
	sh(t, node1, "chmod 755 "+slow+"; cp -p "+file+" "+file+".kept && echo 'apptainer: {path: "+slow+"}' >>"+file)
	for name, args := range map[string][]string{
		"batch": {"--carme=base", "--wrap", "echo ran"},
		"step":  {"--carme=none", "--wrap", "srun --carme=base echo ran"},
	} {
		t.Run(name, func(t *testing.T) {
			id := sbatch(t, "alice", append([]string{"-w", node1}, args...)...)
			eventually(t, 30*time.Second, "the container's runtime", func() bool {
				return root(t, node1, "pgrep", "-f", "image.sif /run/carme/hold").code == 0
			})
			start := time.Now()
			root(t, ctl, "scancel", id).ok(t)
			awaitState(t, id, 20*time.Second, "CANCELLED")
			eventually(t, 10*time.Second, "end of the runtime", func() bool {
				return root(t, node1, "pgrep", "-f", "image.sif /run/carme/hold").code != 0
			})
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("it took %v", took)
			}
			if out := homeFile(t, "alice", "it-"+id+".out"); strings.Contains(out, "ran") {
				t.Errorf("it ran: %s", out)
			}
		})
	}
	idle(t)
}

func TestScenario_J20_prologs_and_epilogs_of_tasks_run_inside(t *testing.T) {
	host := strings.Fields(root(t, node1, "readlink", "/proc/self/ns/pid", "/proc/self/ns/mnt").ok(t))
	for where, seal := range seals {
		t.Run(where, func(t *testing.T) {
			as(t, "alice", login, "sh", "-c", "rm -rf task-hooks && mkdir task-hooks").ok(t)
			t.Cleanup(func() { cleanUp(login, "rm -rf /home/alice/task-hooks") })
			hook := put(t, "alice", "it-hook.sh", "#!/bin/sh\necho \"export HOOKED=yes\"\necho \"own $0 $(readlink /proc/self/ns/pid) $(readlink /proc/self/ns/mnt)\" >>~/task-hooks/log\n")
			out := lines(srun(t, "alice", "-w", node1, seal, "--task-prolog="+hook, "--task-epilog="+hook, "sh", "-c",
				`echo $HOOKED $TESTBED_TASKPROLOG; readlink /proc/self/ns/pid`).ok(t))
			if out[0] != "yes "+node1 {
				t.Errorf("variables of the prologs: %q", out[0])
			}
			var log []string
			eventually(t, 10*time.Second, "four hooks", func() bool {
				log = lines(homeFile(t, "alice", "task-hooks/log"))
				return len(log) == 4
			})
			for _, line := range log {
				f := strings.Fields(line)
				if pid, mnt := f[len(f)-2], f[len(f)-1]; pid != out[1] || mnt == host[1] {
					t.Errorf("%s ran in %s %s, the task in %s, the host is %v", f[0], pid, mnt, out[1], host)
				}
			}
		})
	}
}

func TestScenario_J12_arrays_heterogeneous_jobs_and_sixteen_tasks(t *testing.T) {
	const where = `echo "$SLURM_ARRAY_TASK_ID $(readlink /proc/self/ns/pid) $(cat /etc/carme-image)"`
	t.Run("array", func(t *testing.T) {
		as(t, "alice", login, "sh", "-c", "rm -f it-array-*").ok(t)
		id := sbatch(t, "alice", "-a", "1-3", "--carme=base", "-o", "it-array-%a", "--wrap", where)
		seen := map[string]bool{}
		for _, task := range []string{"1", "2", "3"} {
			var text string
			eventually(t, 60*time.Second, "task "+task+" of array "+id, func() bool {
				text = homeFile(t, "alice", "it-array-"+task)
				return strings.Contains(text, "carme testbed image")
			})
			f := strings.Fields(text)
			if f[0] != task || seen[f[1]] {
				t.Errorf("task %s is in the namespace of another: %s", task, text)
			}
			seen[f[1]] = true
		}
	})
	t.Run("heterogeneous", func(t *testing.T) {
		r := srun(t, "alice", "--carme=base", "-n1", "bash", "-c", where, ":", "--carme=base", "-n2", "-w", node2, "bash", "-c", where)
		if got := r.ok(t); strings.Count(got, "carme testbed image") != 3 {
			t.Errorf("three tasks in an image:\n%s", got)
		}
		host := root(t, node2, "readlink", "/proc/self/ns/pid").ok(t)
		if strings.Contains(r.out, host) {
			t.Errorf("a component runs unsealed:\n%s", r.out)
		}
	})
	t.Run("sixteen tasks", func(t *testing.T) {
		got := lines(srun(t, "alice", "-w", node1, "-n16", "--carme=base", "readlink", "/proc/self/ns/pid").ok(t))
		if slices.Sort(got); len(got) != 16 || got[0] != got[15] {
			t.Errorf("%d tasks in %v", len(got), slices.Compact(got))
		}
	})
	t.Run("--multi-prog", func(t *testing.T) {
		file := put(t, "alice", "it-multi.conf", "0 echo zero %t\n1 cat /etc/carme-image\n")
		got := lines(srun(t, "alice", "-n2", "--carme=base", "--multi-prog", file).ok(t))
		if slices.Sort(got); !slices.Equal(got, []string{"carme testbed image", "zero 0"}) {
			t.Errorf("prints %q", got)
		}
	})
}

// soon lets a requeued job start that waits: Slurm makes it wait for two minutes,
// and once more when the node has told of its end. To be called until it runs. It does
// not start in the second of its end: slurmd takes its credential for one that was
// revoked then (slurm_cred.c, times are whole seconds).
func soon(t *testing.T, id string) {
	t.Helper()
	if state(t, id) == "PENDING" {
		// It may just have started.
		_ = root(t, ctl, "sh", "-c", `at=$(scontrol show job `+id+` | sed -n 's/.*EligibleTime=\([^ ]*\).*/\1/p')
			[ "$(date -d "$at" +%s)" -le "$(($(date +%s) + 5))" ] || scontrol update JobId=`+id+` StartTime=now+3`)
	}
}

func TestScenario_J12_requeue_starts_anew(t *testing.T) {
	script := put(t, "alice", "it-requeue.sh", "#!/bin/bash\necho \"$SLURM_RESTART_COUNT $(readlink /proc/self/ns/pid) $(ls /tmp | wc -l) $(cat /etc/carme-image)\" >>~/it-requeue\ntouch /tmp/left; [ -n \"$SLURM_RESTART_COUNT\" ] || exec sleep 100\n")
	as(t, "alice", login, "rm", "-f", "it-requeue").ok(t)
	id := sbatch(t, "alice", "-w", node1, "--requeue", "--carme=base", script)
	runs := func() []string { return lines(homeFile(t, "alice", "it-requeue")) }
	eventually(t, 30*time.Second, "the first run", func() bool { return len(runs()) == 1 })
	root(t, ctl, "scontrol", "requeue", id).ok(t)
	eventually(t, 60*time.Second, "the second run", func() bool {
		soon(t, id)
		return len(runs()) == 2
	})
	second := strings.Fields(runs()[1])
	if second[0] != "1" || second[2] != "0" || !strings.Contains(runs()[1], "carme testbed image") {
		t.Errorf("the second run: %v", second)
	}
}

func TestScenario_J12_salloc_gives_a_shell_whose_steps_are_sealed(t *testing.T) {
	s := interact(t, "salloc --time=2 -J it-session --carme=base -n2 bash --norc --noprofile -i")
	s.types("PS1='ready> '; srun -n2 cat /etc/carme-image\n")
	s.says(`carme testbed image\s+carme testbed image`)
	s.says("ready> ")
	s.types("srun --carme=none -n1 sh -c 'cat /proc/1/comm'\n")
	s.says("carme-init")
	s.says("ready> ") // before, srun would take what is typed
	s.types("exit 3\n")
	if code := s.ends(); code != 3 {
		t.Errorf("exit status %d", code)
	}
}

func TestScenario_J12_overlapping_steps_see_each_other(t *testing.T) {
	for where, seal := range seals {
		t.Run(where, func(t *testing.T) {
			job := allocate(t, "alice", "-w", node1, seal)
			out := job.srun(t, "bash", "-c", "ps -eo args | grep -c '[s]leep 170'; readlink /proc/$(pgrep -x -o sleep)/ns/pid; readlink /proc/self/ns/pid").ok(t)
			if l := lines(out); len(l) != 3 || l[0] == "0" || l[1] != l[2] {
				t.Errorf("a second step sees of the first:\n%s", out)
			}
		})
	}
}

func TestScenario_J20_homes_groups_and_umask(t *testing.T) {
	t.Run("a home that root cannot read", func(t *testing.T) {
		as(t, "alice", login, "sh", "-c", "mkdir -p closed-dir && chmod 700 closed-dir && echo mine >closed-dir/file && cp /opt/carme/images/base.sif closed-dir/own.sif").ok(t)
		t.Cleanup(func() { cleanUp(login, "rm -rf /home/alice/closed-dir") })
		for where, seal := range seals {
			if got := srun(t, "alice", "-w", node2, seal, "-D", "/home/alice/closed-dir", "sh", "-c", "pwd; cat file; echo new >new && cat new").ok(t); got != "/home/alice/closed-dir\nmine\nnew" {
				t.Errorf("%s: %q", where, got)
			}
		}
		if got := srun(t, "alice", "-w", node2, "--carme=/home/alice/closed-dir/own.sif", "cat", "/etc/carme-image").ok(t); got != "carme testbed image" {
			t.Errorf("an image there: %q", got)
		}
		// Root cannot even see that it is a directory. The program needs no others.
		as(t, "alice", login, "sh", "-c", "mkdir -p closed-dir/box/bin closed-dir/box/etc && cp /usr/libexec/carme/carme-enter closed-dir/box/bin/own").ok(t)
		if r := srun(t, "alice", "-w", node2, "--carme=/home/alice/closed-dir/box", "/bin/own"); r.code != 1 || !strings.Contains(r.err, "usage: carme-enter") {
			t.Errorf("an image directory at home ends with %d\n%s", r.code, r.err)
		}
		id := as(t, "alice", login, "sh", "-c", "cd closed-dir && sbatch --parsable --time=2 -w carme-node2 --carme=base -o out --wrap 'pwd; cat file'").ok(t)
		t.Cleanup(func() { scancel(id) })
		awaitState(t, id, 30*time.Second, "COMPLETED", "FAILED")
		eventually(t, 10*time.Second, "its output", func() bool { return homeFile(t, "alice", "closed-dir/out") == "/home/alice/closed-dir\nmine" })
	})
	t.Run("many groups", func(t *testing.T) {
		for where, seal := range seals {
			plain := srun(t, "bob", "-w", node1, "sh", "-c", "id -G | tr ' ' '\n' | sort -n; umask").ok(t)
			if seal == "--carme=none" {
				if got := srun(t, "bob", "-w", node1, seal, "sh", "-c", "id -G | tr ' ' '\n' | sort -n; umask").ok(t); got != plain {
					t.Errorf("%s: groups %q, not %q", where, got, plain)
				}
				continue
			}
			// A user namespace of one id shows the others as nobody's, but the
			// kernel goes on granting what they allow.
			root(t, node1, "sh", "-c", "install -d -m 2770 -g project140 /data/it-project && echo ours >/data/it-project/file").ok(t)
			got := srun(t, "bob", "-w", node1, seal, "--carme-bind=/data/it-project:/mnt:ro", "cat", "/mnt/file").ok(t)
			if got != "ours" {
				t.Errorf("%s: a file of the last group: %q", where, got)
			}
		}
	})
}

func TestScenario_J20_a_symlinked_home(t *testing.T) {
	root(t, login, "sh", "-c", "[ -L /home/dave ] || { mv /home/dave /home/dave.real && ln -s dave.real /home/dave; }").ok(t)
	t.Cleanup(func() { cleanUp(login, "[ -L /home/dave ] && rm /home/dave && mv /home/dave.real /home/dave") })
	put(t, "dave", "it-file", "mine")
	for where, seal := range seals {
		for _, node := range []string{node1, node2} {
			if got := srun(t, "dave", "-w", node, seal, "sh", "-c", "cat ~/it-file it-file; touch it-new && ls ~/it-new /home/dave.real/it-new").ok(t); got != "minemine/home/dave.real/it-new\n/home/dave/it-new" {
				t.Errorf("%s on %s: %q", where, node, got)
			}
		}
		if got := srun(t, "dave", "-w", node1, seal, "--carme-home=no", "sh", "-c", "ls -A ~/ /home/dave.real/ 2>/dev/null | grep it-file").out; got != "" {
			t.Errorf("%s: without a home there is %s", where, got)
		}
	}
}

func TestScenario_J14_debug_shows_the_steps_with_times(t *testing.T) {
	r := srun(t, "alice", "-n2", "--carme=base", "--carme-debug", "true")
	r.ok(t)
	times := regexp.MustCompile(`(?m)^carme: debug: +\d+\.\d ms  \w+`).FindAllString(r.err, -1)
	if len(times) < 5 {
		t.Errorf("%d lines with times:\n%s", len(times), r.err)
	}
	plain := srun(t, "alice", "-n2", "--carme=base", "true")
	if plain.ok(t); strings.Contains(plain.err, "carme:") {
		t.Errorf("without --carme-debug:\n%s", plain.err)
	}
}
