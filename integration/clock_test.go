//go:build integration

package integration

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// pid is the number that a daemon of a machine has here, by how its command begins.
func pid(t *testing.T, machine, command string) string {
	t.Helper()
	for _, line := range lines(run(t, "docker", "top", container(machine), "-eo", "pid,args").ok(t)) {
		if number, args, _ := strings.Cut(strings.TrimSpace(line), " "); strings.HasPrefix(strings.TrimSpace(args), command) {
			return number
		}
	}
	t.Fatalf("no %s runs on %s", command, machine)
	return ""
}

// setClock sets the clock of one daemon. The kernel has one clock for all that runs on
// it, so the daemon's own reading of it is what changes: the function of its vDSO that
// tells the time of day gives way to one that adds an offset (vdso(7), clock_gettime(2);
// what tells monotonic time stays right, as when a clock is set).
func setClock(t *testing.T, machine, daemon string, offset time.Duration) {
	t.Helper()
	proc := filepath.Join("/proc", pid(t, machine, daemon))
	maps, err := os.ReadFile(filepath.Join(proc, "maps"))
	if err != nil {
		t.Fatal(err)
	}
	var from, to uint64
	for _, line := range lines(string(maps)) {
		if strings.HasSuffix(line, "[vdso]") {
			if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil {
				t.Fatal(err)
			}
		}
	}
	mem, err := os.OpenFile(filepath.Join(proc, "mem"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = mem.Close() }()
	image := make([]byte, to-from)
	if _, err := mem.ReadAt(image, int64(from)); err != nil {
		t.Fatal(err)
	}
	vdso, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	symbols, err := vdso.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	teller := slices.IndexFunc(symbols, func(s elf.Symbol) bool { return s.Name == "__vdso_clock_gettime" })
	if teller < 0 {
		t.Fatal("the vDSO tells no time")
	}
	code := binary.LittleEndian.AppendUint64([]byte{
		0xb8, 228, 0, 0, 0, // mov $__NR_clock_gettime, %eax
		0x0f, 0x05, // syscall
		0x85, 0xff, // test %edi, %edi: CLOCK_REALTIME is 0
		0x75, 10, // jnz to the ret
		0x48, 0x8b, 0x0d, 4, 0, 0, 0, // mov offset(%rip), %rcx
		0x48, 0x01, 0x0e, // add %rcx, (%rsi): the seconds
		0xc3, // ret
	}, uint64(int64(offset/time.Second)))
	if symbols[teller].Size < uint64(len(code)) {
		t.Fatalf("the vDSO's function has %d bytes", symbols[teller].Size)
	}
	thaw := freeze(t, machine, "^"+daemon)
	defer thaw()
	eventually(t, patience, daemon+" to stop", func() bool {
		stat, err := os.ReadFile(filepath.Join(proc, "stat"))
		return err == nil && strings.Contains(string(stat), ") T ")
	})
	if _, err := mem.WriteAt(code, int64(from+symbols[teller].Value)); err != nil {
		t.Fatal(err)
	}
}

// The clock of one machine is set while all run: what is open stays open, whatever needs
// the time is refused within seconds, with a reason, and no job is started twice; once
// the clock is right again, all is well by itself.
func TestFault_W1_W6_W14_A9_the_clock_of_a_machine_is_set(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the vDSO is replaced by machine code for amd64")
	}
	v, app := mirrored(t)
	bob := visit(t, "bob").login()
	bob.post("/security", "/logout")
	undo(t, ctl, "scancel -u alice --name terminal")
	for _, m := range []struct {
		name    string
		machine string
		daemons []string
	}{
		{"the head node", ctl, []string{"/usr/sbin/carme-backend --config", "/usr/sbin/carme-backend signer"}},
		{"the node", node1, []string{"/usr/sbin/carme-agent"}},
		{"the portal", login, []string{"/usr/sbin/carme-portal"}},
	} {
		for name, offset := range map[string]time.Duration{"an hour ahead": time.Hour, "an hour behind": -time.Hour} {
			t.Run(m.name+" is "+name, func(t *testing.T) {
				wrongClock(t, v, bob, app, offset, func(by time.Duration) {
					for _, d := range m.daemons {
						setClock(t, m.machine, d, by)
					}
				})
			})
		}
	}
	if out := root(t, ctl, "carme-backend", "audit", "verify"); out.code != 0 {
		t.Errorf("the audit log: %s %s", out.out, out.err)
	}
}

// wrongClock sets a clock by an offset and back.
func wrongClock(t *testing.T, v, bob *visitor, app opened, offset time.Duration, set func(time.Duration)) {
	t.Helper()
	whole := v.t
	defer func() { v.t, bob.t = whole, whole }()
	v.t, bob.t = t, t
	forgetAttempts(t)
	socket := v.socket(app)
	if socket == nil {
		t.Fatal("no websocket")
	}
	wrong := true
	defer func() {
		if wrong {
			set(0)
		}
	}()
	set(offset)
	for _, page := range []string{"/", "/jobs", "/jobs/" + app.job, "/security"} {
		if r, took := v.timed(page); r.code != http.StatusOK || took > 8*time.Second {
			t.Errorf("%s: %d after %v", page, r.code, took)
		}
	}
	start := time.Now()
	begun, err := v.form(newID(t), v.token("/security"))
	if err != nil || begun.to() == "" && words(begun.body) == "" || time.Since(start) > 20*time.Second {
		t.Errorf("a start after %v: %v %s", time.Since(start), err, begun)
	}
	t.Logf("a start: %d %s%s", begun.code, begun.to(), words(begun.body))
	switch r := bob.password("bob", "bob-pass"); {
	case strings.HasPrefix(r.to(), "/login/factor"):
		if r := bob.post("/login/factor", "/login/factor", "code", bob.codeAt(time.Now().Add(offset-codeStep))); r.code == http.StatusServiceUnavailable {
			t.Errorf("a code: %s", r)
		}
	case r.code != http.StatusServiceUnavailable: // the directory's certificate is not valid yet
		t.Errorf("a login: %s", r)
	}
	kept(t, 10*time.Second, "what is open", func() bool { return socket.live() && v.answers(app) && v.loggedIn() })
	v.give(app.origin, appCookie, "unseen")
	v.give(app.origin, nonceCookie, "none")
	r := v.enter(app.origin + "/who")
	if r.body != "alice in job "+app.job && (r.code != http.StatusBadGateway || !strings.Contains(r.body, "Your job goes on")) {
		t.Errorf("a new way in: %s", r)
	}
	t.Logf("a new way in: %d", r.code)

	set(0)
	wrong = false
	recovers(t, 30*time.Second, "the app", func() bool { return v.answers(app) })
	if !socket.live() {
		t.Error("the websocket has closed")
	}
	if begun.to() != "" {
		recovers(t, 90*time.Second, "a job, or word that there is none", func() bool {
			page := v.get(begun.to())
			return page.code == http.StatusOK && !strings.Contains(page.body, `data-stage="sending"`) && strings.Contains(page.body, "data-stage=")
		})
	}
	forgetAttempts(t)
	recovers(t, 90*time.Second, "a login", func() bool {
		again := visit(t, "bob")
		if r := again.password("bob", "bob-pass"); !strings.HasPrefix(r.to(), "/login/factor") {
			return false
		}
		return again.post("/login/factor", "/login/factor", "recovery", bob.codes[0]).to() == "/" && again.loggedIn()
	})
	bob.codes = bob.codes[1:]
	id := newID(t)
	if r, err := v.form(id, v.token("/security")); err != nil || r.to() != "/jobs/"+id {
		t.Fatalf("a start with the clock right again: %v %s", err, r)
	}
	recovers(t, time.Minute, "a job of its own", func() bool { return strings.Contains(v.get("/jobs/"+id).body, `data-stage="ready"`) })
	if got := lines(as(t, "alice", login, "squeue", "-h", "--me", "--name", "terminal", "-o", "%i").ok(t)); len(got) > 2 {
		t.Errorf("two starts made the jobs %v", got)
	}
	as(t, "alice", login, "scancel", "--me", "--name", "terminal").ok(t)
	if s := state(t, app.job); s != "RUNNING" {
		t.Errorf("the job is %s", s)
	}
}
