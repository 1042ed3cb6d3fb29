//go:build integration

package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestAttack_J7_environment_of_the_user_reaches_no_code_of_root(t *testing.T) {
	// Programs that leave a trace with the name of whoever runs them, under the
	// names of those that the set-up of a job needs.
	trap := put(t, "mallory", "it-trap", "#!/bin/sh\n/usr/bin/id >>/scratch/mallory/trace\n")
	const programs = "apptainer squashfuse squashfuse_ll fusermount3 carme-hold ldconfig"
	root(t, node1, "sh", "-c", "cd /scratch/mallory && rm -f trace && for f in "+programs+"; do cp "+trap+" $f; done; chown mallory "+programs).ok(t)
	t.Cleanup(func() { cleanUp(node1, "cd /scratch/mallory && rm -f trace "+programs) })
	env := []string{
		"LD_PRELOAD=/scratch/mallory/evil.so", "LD_LIBRARY_PATH=/scratch/mallory", "LD_AUDIT=/scratch/mallory/evil.so", "GODEBUG=gctrace=1",
		"PATH=/scratch/mallory:/usr/bin:/bin", "APPTAINER_CONFIGDIR=/scratch/mallory", "BASH_ENV=" + trap, "ENV=" + trap, "HOME=/home/alice",
	}
	for where, seal := range seals {
		r := as(t, "mallory", login, "timeout", "80", "srun", "--time=2", "-w", node1, seal, "--export=ALL,"+strings.Join(env, ","), "/usr/bin/true")
		if r.code != 0 {
			t.Errorf("%s: %d\n%s", where, r.code, r.err)
		}
		if trace := root(t, node1, "cat", "/scratch/mallory/trace"); trace.code == 0 {
			t.Errorf("%s: programs of the user were run while the job was made:\n%s", where, trace.out)
		}
	}
	job := allocate(t, "mallory", "-w", node1, "--carme=base", "--export=ALL,"+strings.Join(env[:4], ","))
	for _, name := range []string{"carme-anchor", "carme-init"} {
		out := root(t, node1, "sh", "-c", "for p in $(pgrep -x "+name+"); do tr '\\0' '\\n' </proc/$p/environ; done").ok(t)
		if out != "" {
			t.Errorf("%s has an environment in job %s:\n%s", name, job.id, out)
		}
	}
}

func TestAttack_J2_no_privilege_is_left_or_gained(t *testing.T) {
	attack(t, `
grep -E '^Cap(Prm|Eff|Inh|Amb)' /proc/self/status | grep -v 0000000000000000 && echo won capabilities
[ "$(id -u)" = 0 ] && echo won root
mount -t tmpfs none /mnt 2>/dev/null && echo won mount
ls -l /proc/self/fd | grep -E 'carme|anchor|memfd|ns:|net:|mnt:|pid:|/dev/nvidia' && echo won descriptors
for f in core_pattern hostname modprobe; do [ -w /proc/sys/kernel/$f ] && echo won $f; done
for ns in /proc/[0-9]*/ns/mnt; do
	[ "$(readlink $ns)" = "$(readlink /proc/self/ns/mnt)" ] && continue
	nsenter --mount=$ns true 2>/dev/null && echo won $ns
done`)
}

// A step without an image can trace the processes of an image's runtime, which are
// the user's and in the same namespaces: none may do more than a task.
func TestAttack_J2_J7_no_process_of_a_job_can_gain_privileges(t *testing.T) {
	job := allocate(t, "mallory", "-w", node1, "--carme=base")
	job.srun(t, "true").ok(t) // the container is up
	out := job.srun(t, "--carme=none", "bash", "-c", `
for p in /proc/[0-9]*; do
	[ "$(stat -c %u $p)" = "$(id -u)" ] || continue
	echo "$(cat $p/comm) $(grep NoNewPrivs $p/status)"
done`).ok(t)
	if !strings.Contains(out, "carme-hold") {
		t.Fatalf("the container's processes are not to be seen, so this test proves nothing:\n%s", out)
	}
	for _, line := range lines(out) {
		if !strings.HasSuffix(line, "1") {
			t.Errorf("a process of the job may gain privileges: %s", line)
		}
	}
}

// A job's session keyring (keyctl(2)). keep puts a secret into it for 100 s, says under
// which number, and stays; look finds one by its name, reads it by its number, and
// lists what there is.
const (
	keep = `perl -e '$| = 1; ($kind, $name, $data) = ("user", "%s", "of alice"); $id = syscall(248, $kind, $name, $data, 8, -3); syscall(250, 15, $id, 100); print "key $id\n"; sleep 170'`
	look = `perl -e '
	($kind, $name) = ("user", "%[1]s");
	for $id (syscall(250, 10, -3, $kind, $name, 0), %[2]s) {
		$data = "\0" x 8;
		print "read $data\n" if $id > 0 && syscall(250, 11, $id, $data, 8) > 0;
	}'
grep -o %[1]s /proc/keys
true`
)

func TestAttack_J2_a_neighbours_keyring(t *testing.T) {
	// What finds the secret that alice keeps in a job with these arguments.
	kept := func(args ...string) (spying string) {
		t.Helper()
		secret := fmt.Sprintf("it-%d", time.Now().UnixNano())
		script := put(t, "alice", "it-keep.sh", "#!/bin/bash\n"+fmt.Sprintf(keep, secret))
		id := sbatch(t, "alice", append(append([]string{"-w", node1}, args...), script)...)
		said := ""
		eventually(t, 20*time.Second, "the neighbour", func() bool {
			said = strings.TrimSpace(homeFile(t, "alice", "it-"+id+".out"))
			return said != ""
		})
		number, ok := strings.CutPrefix(said, "key ")
		if !ok || strings.HasPrefix(number, "-") {
			t.Fatalf("the neighbour keeps no secret: %s", said)
		}
		return fmt.Sprintf(look, secret, number)
	}
	spy := func(spying string, args ...string) string {
		t.Helper()
		return srun(t, "mallory", append(append([]string{"-w", node1}, args...), "bash", "-c", spying)...).ok(t)
	}
	plain := kept()
	if found := spy(plain); !strings.Contains(found, "read of alice") {
		t.Fatalf("a plain job does not find the secret of a plain neighbour, so this test proves nothing:\n%s", found)
	}
	for where, seal := range seals {
		t.Run(where, func(t *testing.T) {
			if found := spy(plain, seal); found != "" {
				t.Errorf("a sealed job finds the secret of a plain neighbour:\n%s", found)
			}
			sealed := kept(seal)
			if found := spy(sealed, seal) + spy(sealed); found != "" {
				t.Errorf("a neighbour finds the secret of a sealed job:\n%s", found)
			}
		})
	}
}

func TestAttack_J2_a_neighbours_terminal_and_sockets(t *testing.T) {
	s := interact(t, "srun --time=2 -J it-session -w "+node1+" --carme=none --pty bash --norc --noprofile -i")
	s.types("PS1='ready> '; echo tty=$(tty)\n")
	tty := strings.TrimPrefix(s.says(`tty=/dev/pts/[0-9]+`), "tty=")
	attack(t, `
(echo injected >`+tty+`) 2>/dev/null && echo won write
(exec 3<`+tty+`) 2>/dev/null && echo won read
for s in $(find /run /tmp /var -type s 2>/dev/null | grep -v -e munge -e nslcd); do
	perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0); exit !connect(S, pack_sockaddr_un($ARGV[0]))' $s && case $s in
	/var/spool/slurmd/*) ;; # slurmstepd asks MUNGE who speaks
	*) echo won $s ;;
	esac
done`)
	if strings.Contains(s.text(), "injected") {
		t.Error("the neighbour's terminal shows what the attacker wrote")
	}
}

func TestAttack_J8_the_submit_directory_leads_nowhere_else(t *testing.T) {
	root(t, node1, "sh", "-c", "cd /scratch/mallory && ln -sfn /proc proc && ln -sfn /run/carme carme && ln -sfn /dev dev && chown -h mallory *").ok(t)
	for _, name := range []string{"proc", "carme", "dev"} {
		dir := "/scratch/mallory/" + name
		out := srun(t, "mallory", "-w", node1, "--carme=base", "--export=ALL,SLURM_SUBMIT_DIR="+dir, "ls", "-A", dir+"/").out
		if out != "" {
			t.Errorf("the job sees %s:\n%.300s", name, out)
		}
	}
	if r := srun(t, "mallory", "-w", node1, "--carme=base", "--export=ALL,SLURM_SUBMIT_DIR=/scratch/alice", "ls", "/scratch/alice"); r.code == 0 {
		t.Errorf("the job sees another user's files:\n%s", r.out)
	}
}
