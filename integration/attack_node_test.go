//go:build integration

package integration

import (
	"strings"
	"testing"
	"time"
)

// An attack is a shell script that prints "won" and what it got if it succeeds.
// It runs as mallory in a sealed job of its own with one GPU.
func attack(t *testing.T, script string) {
	t.Helper()
	for where, seal := range seals {
		t.Run(where, func(t *testing.T) {
			r := srun(t, "mallory", "-w", node1, "--gres=gpu:l40s:1", seal, "bash", "-c", script+"\necho tried")
			if !strings.Contains(r.out, "tried") {
				t.Fatalf("the attack did not run to its end: %d\n%s\n%s", r.code, r.out, r.err)
			}
			if strings.Contains(r.out, "won") {
				t.Errorf("the attack succeeds:\n%s\n%s", r.out, r.err)
			}
		})
	}
}

func TestAttack_J5_a_foreign_gpu_by_mknod_and_by_user_namespaces(t *testing.T) {
	attack(t, `
try() { "$@" >/tmp/out 2>&1; (exec 3</dev/shm/g) 2>/tmp/err && echo won open; grep -q "such device" /tmp/err && echo won "$(cat /tmp/err)"; rm -f /dev/shm/g; }
try mknod /dev/shm/g c 195 3
try mknod -m 666 /dev/nvidia3 c 195 3; [ -e /dev/nvidia3 ] && echo won node
try unshare -Ur mknod /dev/shm/g c 195 3
try unshare -Urm sh -c 'mount -t tmpfs none /mnt && mknod /mnt/g c 195 3 && (exec 3</mnt/g) && echo won'
try unshare -Urmpf --mount-proc sh -c 'ls /proc/driver/nvidia/gpus' ; [ "$(grep -c : /tmp/out)" -le 1 ] || echo won "$(cat /tmp/out)"
unshare -Urm sh -c 'umount -l /proc/driver/nvidia/gpus; umount -l /proc/driver; umount -l /proc; ls /proc/driver/nvidia/gpus 2>/dev/null | grep -c : ' 2>/dev/null | grep -q '[2-9]' && echo won names by umount
unshare -Urm sh -c 'umount -l /dev; ls /dev/nvidia3' 2>/dev/null && echo won node by umount
unshare -Urm sh -c 'mount -t devtmpfs none /mnt && ls /mnt/nvidia3' 2>/dev/null && echo won devtmpfs
unshare -Urmpf sh -c 'mount -t proc none /proc && ls /proc/driver/nvidia/gpus | grep -c :' 2>/dev/null | grep -q '[2-9]' && echo won names by proc
`)
}

// A private /dev hides a foreign GPU; that it cannot be opened either is Slurm's
// filter. Whoever holds a handle of its device file puts that on trial.
func TestAttack_J5_J6_a_foreign_gpu_by_descriptor_from_every_kind_of_task(t *testing.T) {
	// An accomplice of the same user outside passes such handles through a socket
	// in the shared home.
	put(t, "mallory", "it-give.py", `
import socket, os, sys, time
path = os.path.expanduser("~/it-sock")
if os.path.exists(path): os.unlink(path)
s = socket.socket(socket.AF_UNIX); s.bind(path); s.listen(4)
fds = [os.open("/dev/nvidia3", os.O_PATH), os.open("/dev", os.O_RDONLY), os.open("/", os.O_RDONLY), os.open("/proc/self/ns/mnt", os.O_RDONLY), os.open("/dev/nvidia2", os.O_PATH)]
while True:
    c, _ = s.accept(); socket.send_fds(c, [b"x"], fds)
`)
	taker := put(t, "mallory", "it-take.py", `
import socket, os, subprocess
s = socket.socket(socket.AF_UNIX); s.connect(os.path.expanduser("~/it-sock"))
_, fds, _, _ = socket.recv_fds(s, 1, 8)
assert len(fds) == 5
def attempt(what, how):
    try:
        how(); print("won", what)
    except OSError as e:
        print("won" if e.errno == 6 else "refused", what, e.errno)
attempt("own", lambda: os.open("/proc/self/fd/%d" % fds[4], os.O_RDWR))
attempt("reopen", lambda: os.open("/proc/self/fd/%d" % fds[0], os.O_RDWR))
attempt("reopen for reading", lambda: os.open("/proc/self/fd/%d" % fds[0], os.O_RDONLY))
attempt("openat", lambda: os.open("nvidia3", os.O_RDWR, dir_fd=fds[1]))
attempt("openat of the root", lambda: os.open("dev/nvidia3", os.O_RDWR, dir_fd=fds[2]))
def setns():
    if subprocess.run(["nsenter", "--mount=/proc/self/fd/%d" % fds[3], "true"], pass_fds=fds, stderr=subprocess.DEVNULL).returncode:
        raise OSError(1, "nsenter")
attempt("setns", setns)
print("tried")
`)
	background(t, "mallory", node1, "python3", "/home/mallory/it-give.py")
	eventually(t, 10*time.Second, "the accomplice", func() bool {
		return root(t, node1, "test", "-S", "/home/mallory/it-sock").code == 0
	})
	// Where no filter holds, the trick works: 6 is ENXIO, there is no driver.
	if out := as(t, "mallory", node1, "python3", taker).ok(t); strings.Count(out, "won") != 5 {
		t.Fatalf("outside of any job it wins nothing, so this test proves nothing:\n%s", out)
	}
	const filtered = "refused reopen 1\nrefused reopen for reading 1\nrefused openat 1\nrefused openat of the root 1\nrefused setns 1\ntried"
	for where, seal := range seals {
		t.Run(where, func(t *testing.T) {
			// The l40s that Slurm gives first is nvidia2; nvidia3 is foreign.
			job := allocate(t, "mallory", "-w", node1, "-n2", "--gres=gpu:l40s:1", seal)
			try := func(kind, own string, args ...string) {
				t.Helper()
				if out := job.srun(t, append(args, "python3", taker)...).ok(t); out != own+"\n"+filtered {
					t.Errorf("%s:\n%s", kind, out)
				}
			}
			const mine, denied = "won own 6", "refused own 1"
			try("a step", mine, "-n1")
			try("a step without a GPU", denied, "-n1", "--gres=none")
			try("a nested step", mine, "-n1", "srun", "--overlap", "-n1")
			root(t, ctl, "scontrol", "suspend", job.id).ok(t)
			awaitState(t, job.id, 20*time.Second, "SUSPENDED")
			root(t, ctl, "scontrol", "resume", job.id).ok(t)
			awaitState(t, job.id, 20*time.Second, "RUNNING")
			try("a step after suspend and resume", mine, "-n1")
			scancel(job.id)
			awaitState(t, job.id, 20*time.Second, "CANCELLED")
			if out := srun(t, "mallory", "-w", node1, "--gres=gpu:l40s:1", seal, "python3", taker).ok(t); out != mine+"\n"+filtered {
				t.Errorf("a job of srun's own:\n%s", out)
			}
			if out := srun(t, "mallory", "-w", node1, seal, "python3", taker).ok(t); out != denied+"\n"+filtered {
				t.Errorf("a job without GPUs:\n%s", out)
			}
		})
	}
	idle(t)
}

func TestAttack_J5_a_foreign_gpu_from_a_container_inside_the_job(t *testing.T) {
	out := srun(t, "mallory", "-w", node1, "--gres=gpu:l40s:1", "--carme=none", "bash", "-c", `
apptainer --quiet exec --userns --nv /opt/carme/images/base sh -c '
	for i in 0 1 3; do (exec 3</dev/nvidia$i) 2>&1 | grep -q "such device" && echo won $i; ls /dev/nvidia$i 2>/dev/null && echo won node $i; done
	(exec 3</dev/nvidia2) 2>&1 | grep "such device"; ls /proc/driver/nvidia/gpus'; echo tried`).ok(t)
	if strings.Contains(out, "won") || !strings.Contains(out, allowed) || strings.Count(out, "0000:") != 1 {
		t.Errorf("a container in the job:\n%s", out)
	}
}

func TestAttack_J2_processes_outside_and_pid_1(t *testing.T) {
	background(t, "mallory", node1, "sleep", "4245")
	eventually(t, 10*time.Second, "the victim", func() bool { return root(t, node1, "pgrep", "-fx", "sleep 4245").code == 0 })
	victim := root(t, node1, "pgrep", "-fx", "sleep 4245").ok(t)
	attack(t, `
kill -0 `+victim+` 2>/dev/null && [ "$(tr '\0' ' ' </proc/`+victim+`/cmdline 2>/dev/null)" = "sleep 4245 " ] && echo won signal
kill -0 1 2>/dev/null && echo won signal to PID 1
kill -KILL 1 2>/dev/null && echo won kill of PID 1
ls -l /proc/1/fd 2>/dev/null | grep -q . && ls /proc/1/fd/* 2>/dev/null && echo won descriptors of PID 1
cat /proc/1/environ 2>/dev/null | grep -q . && echo won environment of PID 1
ls /proc/1/root/ 2>/dev/null && echo won root of PID 1
readlink /proc/1/ns/mnt 2>/dev/null && echo won namespaces of PID 1
timeout 5 strace -p 1 2>&1 | grep -q "attached" && echo won ptrace of PID 1
kill -KILL -1 2>/dev/null
unshare -Urpf --mount-proc sh -c "kill -0 `+victim+` 2>/dev/null; ps -e | grep -c sleep" | grep -q '[1-9]' && echo won through a namespace
`)
	if root(t, node1, "pgrep", "-fx", "sleep 4245").code != 0 {
		t.Error("a process of the same user outside the job was killed")
	}
	idle(t)
}

func TestAttack_J2_everything_the_user_may_kill_is_killed(t *testing.T) {
	// The container's own helpers run as the user; killing them hurts the job
	// alone, and the next step says so in a line.
	job := allocate(t, "mallory", "-w", node1, "--carme=base")
	job.srun(t, "sh", "-c", "kill -KILL $(pgrep -u mallory | grep -vx $$)")
	eventually(t, 20*time.Second, "end of the job", func() bool { s := state(t, job.id); return s != "RUNNING" && s != "COMPLETING" })
	idle(t)
	if out := srun(t, "mallory", "-w", node1, "--carme=base", "echo", "well").ok(t); out != "well" {
		t.Errorf("the next job prints %q", out)
	}
}

func TestAttack_J2_J8_files_of_others(t *testing.T) {
	other := allocate(t, "alice", "-w", node1, "--carme=base")
	put(t, "alice", "private/file", "secret-of-alice")
	as(t, "alice", login, "chmod", "700", "private").ok(t)
	attack(t, `
[ -e /etc/carme-image ] || ! cat /etc/shadow 2>/dev/null || echo won shadow
for f in /run/host/etc/shadow /run/carme/host/etc/shadow /proc/1/root/etc/shadow /home/alice/private/file; do cat $f 2>/dev/null | grep -q . && echo won $f; done
ls /run/carme/jobs 2>/dev/null | grep -vx "$SLURM_JOB_ID" | grep -q . && echo won "other jobs: $(ls /run/carme/jobs)"
ls /run/carme/jobs/`+other.id+` 2>/dev/null && echo won the neighbour
ls -A /run/carme/jobs/*/pmix 2>/dev/null | grep -q . && echo won pmix
find /run/carme -maxdepth 3 -writable ! -type l -uid +999 2>/dev/null | grep . && echo won writable
touch /run/carme/x 2>/dev/null && echo won touch
find / -xdev -name anchor.sock 2>/dev/null | grep . && echo won the anchor
cat /var/spool/slurmd/job*/slurm_script 2>/dev/null | grep -q . && [ "$(ls -d /var/spool/slurmd/job* | wc -l)" -gt 1 ] && cat /var/spool/slurmd/job$(printf %05d `+other.id+`)/slurm_script 2>/dev/null && echo won script
unshare -Urm sh -c 'umount -l /run/carme; ls /run/carme/jobs/`+other.id+`' 2>/dev/null && echo won by umount
unshare -Urm sh -c 'umount -l /tmp && ls /tmp/.. /tmp | grep -q it-host' 2>/dev/null && echo won tmp
`)
}

func TestAttack_J8_binds_of_what_is_not_the_users(t *testing.T) {
	root(t, node1, "sh", "-c", "ln -sfn /etc /scratch/mallory/etc; ln -sfn /etc/shadow /scratch/mallory/shadow; ln -sfn /run/carme /scratch/mallory/carme; ln -sfn /home/alice /scratch/mallory/alice; ln -sfn /proc/self/root /scratch/mallory/root; chown -h mallory /scratch/mallory/*").ok(t)
	for _, source := range []string{
		"/etc/shadow", "/etc", "/", "/run/carme", "/run", "/home/alice", "/root", "/dev", "/dev/nvidia3", "/proc", "/sys", "/proc/1/root",
		"/scratch/mallory/../alice", "/scratch/alice", "/scratch", "/data/../etc", "/var/spool/slurmd", "/etc/carme", "/tmp",
	} {
		as(t, "mallory", login, "srun", "--carme=base", "--carme-bind="+source+":/mnt", "true").fails(t)
	}
	for _, link := range []string{"etc", "shadow", "carme", "alice", "root"} {
		for _, seal := range seals {
			srun(t, "mallory", "-w", node1, seal, "--carme-bind=/scratch/mallory/"+link+":/tmp/x", "true").fails(t, "/scratch/mallory/"+link)
		}
	}
	for _, place := range []string{"/etc/passwd", "/etc", "/", "/proc", "/dev", "/run/carme", "/run/carme/job", "/usr/lib", "/sys/fs/cgroup", "/lib", "/bin", "/run/munge", "/home/mallory/../../etc"} {
		r := srun(t, "mallory", "-w", node1, "--carme=none", "--carme-bind=/scratch/mallory:"+place, "true")
		r.fails(t)
	}
	// Swapped between a directory and a link, the target is never the link's.
	script := put(t, "mallory", "it-swap.sh", "#!/bin/bash\ncd /scratch/mallory; rm -rf a; mkdir a; echo up; while :; do ln -sfn /etc b; mv -T b a 2>/dev/null || { rmdir a; mv -T b a; }; rm a; mkdir a; done\n")
	background(t, "mallory", node1, script)
	for range 6 {
		r := srun(t, "mallory", "-w", node1, "--carme=base", "--carme-bind=/scratch/mallory/a:/mnt", "ls", "/mnt")
		if strings.Contains(r.out, "shadow") || strings.Contains(r.out, "passwd") {
			t.Fatalf("the link was followed:\n%s", r.out)
		}
	}
	idle(t)
}

func TestAttack_J14_hostile_option_strings(t *testing.T) {
	put(t, "mallory", "it-hostile.sh", `
n=0
try() {
	n=$((n+1)); srun "$@" touch "$HOME/it-ran" >out 2>err && echo "won: accepted $n"
	[ "$(grep -c '' err)" = 1 ] && grep -q '^carme: ' err || { echo "won: $n says $(head -c 300 err)"; }
	grep -q '[[:cntrl:]]' err && echo "won: $n prints control characters"
	[ "$(wc -c <err)" -lt 2000 ] || echo "won: $n prints $(wc -c <err) bytes"
}
big=$(head -c 100000 /dev/zero | tr '\0' a)
for o in carme carme-net carme-bind carme-workdir carme-home carme-overlay carme-conda; do
	with=; [ $o = carme ] || with=--carme=base
	try $with --$o="$(printf 'a\nb')"
	try $with --$o="$(printf '/scratch/mallory\n/etc')"
	try $with --$o="$(printf 'x\033[31mred')"
	try $with --$o="$big"
	try $with --$o=';touch ~/it-ran'
	try $with --$o='$(touch ~/it-ran)'
	try $with --$o='../../etc/passwd'
	try $with --$o="$(printf '\377\376')"
done
try --carme=base --carme-bind="$(yes /data/public:/mnt:ro, | head -200 | tr -d '\n')"
try --carme=base --carme-bind=a:b:c:d
try --carme=base --carme-bind='/data/public:/mnt:ro,'
try --carme=base --carme-workdir=/../..//./../etc/../..x
[ -e ~/it-ran ] && echo won: ran
echo tried
`)
	out := as(t, "mallory", login, "bash", "it-hostile.sh").ok(t)
	if strings.Contains(out, "won") || !strings.Contains(out, "tried") {
		t.Errorf("hostile strings:\n%s", out)
	}
	// Past the checks of srun: straight into what the node gets.
	for _, value := range []string{"../../etc/passwd", "a\nb", "$(id)", strings.Repeat("a", 60000), "/etc/shadow", "/proc/self/root"} {
		r := as(t, "mallory", login, "env", "SLURM_SPANK__SLURM_SPANK_OPTION_carme_carme="+value, "CARME_JOB_IMAGE=x", "timeout", "80", "srun", "--time=2", "--export=ALL", "true")
		if r.code == 0 {
			t.Errorf("%.40q was taken", value)
		}
	}
	idle(t)
}

func TestAttack_J2_cgroups_cannot_be_left_or_changed(t *testing.T) {
	attack(t, `
find /sys/fs/cgroup -name 'cgroup.procs' -o -name tasks -o -name 'devices.allow' -o -name 'memory.limit_in_bytes' -o -name memory.max 2>/dev/null | while read -r f; do
	[ -w "$f" ] && echo won $f; (echo $$ >"$f") 2>/dev/null && echo won moved to $f; done
(echo a >/sys/fs/cgroup/devices/devices.allow) 2>/dev/null && echo won devices
unshare -Urm sh -c 'mount -t cgroup -o devices none /mnt && ls /mnt' 2>/dev/null && echo won mount
unshare -Urm sh -c 'mount -o remount,rw,bind /sys/fs/cgroup && touch /sys/fs/cgroup/x' 2>/dev/null && echo won remount
unshare -UrCm sh -c 'mount -t cgroup2 none /mnt && find /mnt -maxdepth 4 -writable | grep cgroup.procs' 2>/dev/null && echo won cgroup2
unshare -Urm sh -c 'umount -l /sys/fs/cgroup && find /sys/fs/cgroup -maxdepth 5 -name "job_*" | grep .' 2>/dev/null && echo won by umount
`)
}

func TestAttack_J2_nothing_survives_by_a_double_fork(t *testing.T) {
	for where, seal := range seals {
		t.Run(where, func(t *testing.T) {
			srun(t, "mallory", "-w", node1, seal, "bash", "-c", `
(setsid setsid sleep 4246 </dev/null >/dev/null 2>&1 &) &
(trap '' TERM INT HUP; nohup setsid bash -c 'trap "" TERM; exec -a "sleep 4246" sleep 4246' >/dev/null 2>&1 &) &
unshare -Urpf setsid sleep 4246 >/dev/null 2>&1 &
until [ "$(pgrep -fc 'sleep 4246')" -ge 3 ]; do sleep 0.05; done; echo up`).ok(t)
			eventually(t, 15*time.Second, "their end", func() bool { return root(t, node1, "pgrep", "-f", "[s]leep 4246").code != 0 })
		})
	}
	idle(t)
}
