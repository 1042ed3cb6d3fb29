package session_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carme-hpc/carme/internal/wire"
	"github.com/carme-hpc/carme/nodeagent/session"
	"github.com/carme-hpc/carme/nodeagent/session/sessiontest"
)

func has(table *session.Table, id uint32) func() bool {
	return func() bool {
		_, ok := table.Get(id)
		return ok
	}
}

func get(t *testing.T, table *session.Table, id uint32) *session.Job {
	t.Helper()
	sessiontest.Eventually(t, "job is known", has(table, id))
	j, _ := table.Get(id)
	return j
}

func TestTable_finds_jobs_of_before_its_start(t *testing.T) {
	node := sessiontest.New(t)
	node.Add(t, 7, nil)
	node.Add(t, 5, nil)
	all := node.Open(t, nil).All()
	if len(all) != 2 || all[0].Job != 5 || all[1].Job != 7 {
		t.Errorf("jobs are %v", all)
	}
}

func TestTable_learns_of_jobs(t *testing.T) {
	node := sessiontest.New(t)
	table := node.Open(t, nil)
	node.Add(t, 7, nil)
	get(t, table, 7) // by looking at the directory
	<-table.Changed()
	job := node.Add(t, 8, nil)
	job.Register(t)
	get(t, table, 8)
}

func TestTable_notices_the_end(t *testing.T) {
	for name, end := range map[string]func(*testing.T, *sessiontest.Job){
		"of the anchor":        func(_ *testing.T, j *sessiontest.Job) { j.Kill() },
		"of the directory":     func(_ *testing.T, j *sessiontest.Job) { _ = os.RemoveAll(j.Dir) },
		"by a requeue on here": func(t *testing.T, j *sessiontest.Job) { t.Helper(); requeue(t, j) },
	} {
		t.Run(name, func(t *testing.T) {
			node := sessiontest.New(t)
			var ended atomic.Int32
			table := node.Open(t, func(o *session.Options) {
				o.Ended = func(j *session.Job, _ time.Time) {
					if j.Ended() && j.Instance == sessiontest.Instance("a") {
						ended.Add(1)
					}
				}
			})
			job := node.Add(t, 7, nil)
			j := get(t, table, 7)
			if _, err := j.Dial(t.Context()); !errors.Is(err, session.ErrNotListening) {
				t.Errorf("dial without an app: %v", err)
			}
			end(t, job)
			select {
			case <-j.Done():
			case <-time.After(10 * time.Second):
				t.Fatal("the end was not noticed")
			}
			sessiontest.Eventually(t, "told", func() bool { return ended.Load() == 1 })
			if _, err := j.Dial(t.Context()); !errors.Is(err, session.ErrNotListening) {
				t.Errorf("dial after the end: %v", err)
			}
		})
	}
}

func requeue(t *testing.T, j *sessiontest.Job) {
	t.Helper()
	notes := j.Session
	notes.Instance = sessiontest.Instance("b")
	data, err := json.Marshal(notes)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(j.Dir, "session.json")
	if err := os.WriteFile(file+".new", data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

func TestTable_does_not_take(t *testing.T) {
	dead := func(t *testing.T, j *sessiontest.Job) { t.Helper(); j.Kill() }
	write := func(text string) func(*testing.T, *sessiontest.Job) {
		return func(t *testing.T, j *sessiontest.Job) {
			t.Helper()
			if err := os.WriteFile(filepath.Join(j.Dir, "session.json"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, spoil := range map[string]func(*testing.T, *sessiontest.Job){
		"a job whose anchor is dead": dead,
		"notes that are no JSON":     write("{"),
		"notes of another job":       write(`{"job":8,"instance":"` + sessiontest.Instance("a") + `","anchor":2}`),
		"notes without an instance":  write(`{"job":7,"anchor":2}`),
		"a socket elsewhere":         write(`{"job":7,"anchor":2,"socket":"../../x","instance":"` + sessiontest.Instance("a") + `"}`),
		"a directory others can write to": func(t *testing.T, j *sessiontest.Job) {
			t.Helper()
			if err := os.Chmod(j.Dir, 0o777); err != nil {
				t.Fatal(err)
			}
		},
		"notes others can write to": func(t *testing.T, j *sessiontest.Job) {
			t.Helper()
			if err := os.Chmod(filepath.Join(j.Dir, "session.json"), 0o666); err != nil {
				t.Fatal(err)
			}
		},
		"an extern step that was another process": func(t *testing.T, j *sessiontest.Job) {
			t.Helper()
			if err := os.WriteFile(filepath.Join(j.Dir, "extern"), []byte(strconv.Itoa(os.Getpid())+" 1\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			node := sessiontest.New(t)
			spoil(t, node.Add(t, 7, nil))
			if all := node.Open(t, nil).All(); len(all) != 0 {
				t.Errorf("took %+v", all[0].Session)
			}
		})
	}
}

func TestTable_registers_for_root_only(t *testing.T) {
	node := sessiontest.New(t)
	table := node.Open(t, func(o *session.Options) { o.Owner++ })
	job := node.Add(t, 7, nil)
	job.Register(t)
	// The refusal is that the connection is closed; the directory, which is not
	// root's either, is refused too.
	if len(table.All()) != 0 {
		t.Error("took a job that is not root's")
	}
	info, err := os.Stat(node.Socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}
}

func TestTable_survives_a_flood_of_registrations(t *testing.T) {
	node := sessiontest.New(t)
	table := node.Open(t, nil)
	for range 200 {
		c, err := new(net.Dialer).DialContext(t.Context(), "unix", node.Socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	job := node.Add(t, 7, nil)
	job.Register(t)
	get(t, table, 7)
}

func TestJob_stage_follows_the_app(t *testing.T) {
	node := sessiontest.New(t)
	table := node.Open(t, nil)
	job := node.Add(t, 7, nil)
	j := get(t, table, 7)
	want := func(stage, text string) {
		t.Helper()
		sessiontest.Eventually(t, stage+" "+text, func() bool {
			s, said := j.Stage()
			return s == stage && said == text
		})
	}
	want(session.StageImage, "")
	job.Status(t, "starting\nloading <b>\x1b[1m\xff kernels\nmore")
	want(session.StageApp, "loading <b>[1m kernels")
	job.Status(t, "ready\n")
	want(session.StageApp, "")
	job.Listen(t, sessiontest.Echo)
	want(session.StageReady, "")
	if err := os.Remove(job.SocketPath()); err != nil {
		t.Fatal(err)
	}
	want(session.StageApp, "")
	job.Status(t, "starting\n"+strings.Repeat("ä", 3000))
	sessiontest.Eventually(t, "text is cut", func() bool {
		_, said := j.Stage()
		return len(said) == 400
	})
}

func TestTable_is_not_kept_busy_by_a_user(t *testing.T) {
	node := sessiontest.New(t)
	table := node.Open(t, nil)
	job := node.Add(t, 7, nil)
	j := get(t, table, 7)
	flood := filepath.Join(job.Dir, "sess", "x")
	for range 20000 {
		if err := os.WriteFile(flood, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(flood); err != nil {
			t.Fatal(err)
		}
	}
	job.Status(t, "starting\nstill heard\n")
	sessiontest.Eventually(t, "the stage after the flood", func() bool {
		_, text := j.Stage()
		return text == "still heard"
	})
}

func TestJob_status_that_is_no_file_stops_nobody(t *testing.T) {
	node := sessiontest.New(t)
	job := node.Add(t, 7, nil)
	if err := syscall.Mkfifo(filepath.Join(job.Dir, "sess", "status"), 0o600); err != nil {
		t.Fatal(err)
	}
	job8 := node.Add(t, 8, nil)
	if err := os.Symlink("/etc/passwd", filepath.Join(job8.Dir, "sess", "status")); err != nil {
		t.Fatal(err)
	}
	table := node.Open(t, nil)
	for _, id := range []uint32{7, 8} {
		if stage, text := get(t, table, id).Stage(); stage != session.StageImage || text != "" {
			t.Errorf("job %d: %s %q", id, stage, text)
		}
	}
}

func TestDial_reaches_the_app(t *testing.T) {
	node := sessiontest.New(t)
	job := node.Add(t, 7, nil)
	job.Listen(t, sessiontest.Echo)
	c, err := get(t, node.Open(t, nil), 7).Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // a test's connection
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Errorf("read %d, %v", n, err)
	}
}

func TestDial_refuses(t *testing.T) {
	link := func(target func(*testing.T) string) func(*testing.T, *sessiontest.Job) {
		return func(t *testing.T, j *sessiontest.Job) {
			t.Helper()
			if err := os.Symlink(target(t), j.SocketPath()); err != nil {
				t.Fatal(err)
			}
		}
	}
	roots := func(t *testing.T) string {
		t.Helper()
		path := sessiontest.New(t).Socket
		sessiontest.Listen(t, path, sessiontest.Echo)
		return path
	}
	for name, c := range map[string]struct {
		make func(*testing.T, *sessiontest.Job)
		uid  uint32 // added to ours: who the job's user is
		want error
	}{
		"nothing there":              {func(*testing.T, *sessiontest.Job) {}, 0, session.ErrNotListening},
		"a link to another's socket": {link(roots), 0, session.ErrNotTheUsers},
		"a link to nowhere":          {link(func(*testing.T) string { return "/nowhere" }), 0, session.ErrNotTheUsers},
		"a file": {func(t *testing.T, j *sessiontest.Job) {
			t.Helper()
			if err := os.WriteFile(j.SocketPath(), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, 0, session.ErrNotTheUsers},
		"a FIFO": {func(t *testing.T, j *sessiontest.Job) {
			t.Helper()
			if err := syscall.Mkfifo(j.SocketPath(), 0o600); err != nil {
				t.Fatal(err)
			}
		}, 0, session.ErrNotTheUsers},
		"a directory": {func(t *testing.T, j *sessiontest.Job) {
			t.Helper()
			if err := os.Mkdir(j.SocketPath(), 0o700); err != nil {
				t.Fatal(err)
			}
		}, 0, session.ErrNotTheUsers},
		"a socket that nobody listens on": {func(t *testing.T, j *sessiontest.Job) {
			t.Helper()
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: j.SocketPath(), Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			l.SetUnlinkOnClose(false)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}, 0, session.ErrNotListening},
		// The directory is refused as it is not the user's.
		"a socket of another user": {func(t *testing.T, j *sessiontest.Job) { t.Helper(); j.Listen(t, sessiontest.Echo) }, 1, session.ErrNotListening},
	} {
		t.Run(name, func(t *testing.T) {
			node := sessiontest.New(t)
			job := node.Add(t, 7, func(n *wire.Session) { n.UID += c.uid })
			c.make(t, job)
			conn, err := get(t, node.Open(t, nil), 7).Dial(t.Context())
			if conn != nil || !errors.Is(err, c.want) {
				t.Errorf("error is %v, want %v", err, c.want)
			}
		})
	}
}

// While a user swaps the socket for a link to another socket as fast as
// possible, every connection reaches the user's own socket or none.
func TestDial_cannot_be_led_astray_by_swapping(t *testing.T) {
	node := sessiontest.New(t)
	job := node.Add(t, 7, nil)
	own := job.SocketPath() + "-own"
	sessiontest.Listen(t, own, func(c *net.UnixConn) {
		defer c.Close() //nolint:errcheck // a test's connection
		_, _ = c.Write([]byte{'u'})
	})
	forbidden := sessiontest.New(t).Socket
	var reached atomic.Bool
	sessiontest.Listen(t, forbidden, func(c *net.UnixConn) {
		reached.Store(true)
		_ = c.Close()
	})
	j := get(t, node.Open(t, nil), 7)
	ctx, cancel := context.WithCancel(t.Context())
	swapped := make(chan struct{})
	go func() {
		defer close(swapped)
		tmp := job.SocketPath() + "-tmp"
		for ctx.Err() == nil {
			_ = os.Symlink(forbidden, tmp)
			_ = os.Rename(tmp, job.SocketPath())
			_ = os.Link(own, tmp)
			_ = os.Rename(tmp, job.SocketPath())
		}
	}()
	good := 0
	for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline); {
		c, err := j.Dial(t.Context())
		if err != nil {
			continue
		}
		buf := make([]byte, 1)
		if _, err := c.Read(buf); err == nil && buf[0] == 'u' {
			good++
		}
		_ = c.Close()
	}
	cancel()
	<-swapped
	if reached.Load() || good == 0 {
		t.Errorf("forbidden socket reached: %v; own socket reached %d times", reached.Load(), good)
	}
}

func TestJob_status_with_a_lease_of_the_user_stops_nobody(t *testing.T) {
	node := sessiontest.New(t)
	job := node.Add(t, 7, nil)
	job.Status(t, "starting\n")
	file, err := os.OpenFile(filepath.Join(job.Dir, "sess", "status"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close() //nolint:errcheck // nothing was written
	if _, err := unix.FcntlInt(file.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Skip("no lease here: ", err)
	}
	// The kernel asks for the lease by SIGIO.
	began := time.Now()
	table := node.Open(t, nil)
	stage, _ := get(t, table, 7).Stage()
	if stage != session.StageImage || time.Since(began) > 5*time.Second {
		t.Errorf("stage %s after %s", stage, time.Since(began))
	}
}
