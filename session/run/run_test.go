package run

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/carme-hpc/carme/internal/wire"
)

// The test program itself is the app: it listens on the socket in its argument.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "serve" {
		l, err := new(net.ListenConfig).Listen(context.Background(), "unix", os.Args[2])
		if err != nil {
			os.Exit(3)
		}
		server := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/end" {
				os.Exit(0)
			}
			w.WriteHeader(http.StatusNoContent)
		})}
		_ = server.Serve(l)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func newRunner(t *testing.T, app wire.App) *Runner {
	t.Helper()
	dir := t.TempDir()
	data, err := json.Marshal(app)
	if err != nil {
		t.Fatal(err)
	}
	p := Paths{App: filepath.Join(dir, "app.json"), Dir: filepath.Join(dir, "s"), Session: os.Args[0]}
	if err := os.Mkdir(p.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.App, data, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = out.Close() })
	return &Runner{Paths: p, Env: os.Environ(), Stdin: os.Stdin, Stdout: out, Stderr: out, Grace: 2 * time.Second}
}

func served() wire.App {
	return wire.App{
		Name: "x", Title: "X", Command: []string{"{{session}}", "serve", "{{socket}}"}, Socket: "app.sock",
		HealthPath: "/", HealthStatus: []int{204}, HealthSeconds: 60,
	}
}

func (r *Runner) await(t *testing.T, state string) string {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); <-time.After(10 * time.Millisecond) {
		text, err := os.ReadFile(filepath.Join(r.Paths.Dir, wire.StatusFile))
		if err == nil && strings.HasPrefix(string(text), state+"\n") {
			return string(text)
		}
	}
	t.Fatalf("the status never was %s", state)
	return ""
}

func (r *Runner) get(t *testing.T, path string) {
	t.Helper()
	c, err := new(net.Dialer).DialContext(t.Context(), "unix", filepath.Join(r.Paths.Dir, "app.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // the end of the app is what counts
	if _, err := c.Write([]byte("GET " + path + " HTTP/1.0\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	_, _ = c.Read(make([]byte, 1))
}

type result struct {
	status int
	err    error
}

func (r *Runner) start(command ...string) <-chan result {
	done := make(chan result, 1)
	go func() {
		status, err := r.Run(command)
		done <- result{status, err}
	}()
	return done
}

func (r *Runner) ends(t *testing.T, done <-chan result, want int) {
	t.Helper()
	select {
	case got := <-done:
		if got.err != nil || got.status != want {
			t.Errorf("ended with %d, %v; want %d", got.status, got.err, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("did not end")
	}
}

func TestAn_app_outlives_a_command_that_succeeds(t *testing.T) {
	r := newRunner(t, served())
	done := r.start("true")
	r.await(t, wire.AppReady)
	select {
	case got := <-done:
		t.Fatalf("ended with the command: %v", got)
	default:
	}
	r.get(t, "/end")
	r.ends(t, done, 0)
	r.await(t, wire.AppEnded)
}

func TestA_command_that_fails_ends_the_app(t *testing.T) {
	r := newRunner(t, served())
	r.ends(t, r.start("sh", "-c", "exit 3"), 3)
	r.await(t, wire.AppEnded)
}

func TestAn_app_that_fails_says_so_and_is_the_jobs_status(t *testing.T) {
	app := served()
	app.Command = []string{"sh", "-c", "exit 7"}
	r := newRunner(t, app)
	r.ends(t, r.start("true"), 7)
	if text := r.await(t, wire.AppEnded); !strings.Contains(text, "exit status 7") {
		t.Errorf("status: %q", text)
	}
}

func TestAn_app_that_is_not_there_leaves_the_command_alone(t *testing.T) {
	app := served()
	app.Command = []string{"/no/such/program"}
	r := newRunner(t, app)
	r.ends(t, r.start("true"), 127)
	if text := r.await(t, wire.AppEnded); !strings.Contains(text, "could not be started") {
		t.Errorf("status: %q", text)
	}
}

func TestAn_app_finds_its_files(t *testing.T) {
	app := served()
	app.Files = map[string]string{"a/b.json": "{}\n"}
	app.Command = []string{"sh", "-c", "cat {{files}}/a/b.json && exec {{session}} serve {{socket}}"}
	r := newRunner(t, app)
	done := r.start("true")
	r.await(t, wire.AppReady)
	r.get(t, "/end")
	r.ends(t, done, 0)
	if out, err := os.ReadFile(r.Stdout.Name()); err != nil || string(out) != "{}\n" {
		t.Errorf("it read %q, %v", out, err)
	}
}

func TestA_slow_app_is_called_slow_and_not_ended(t *testing.T) {
	app := served()
	app.HealthStatus = []int{299}
	app.HealthSeconds = 1
	r := newRunner(t, app)
	done := r.start("true")
	for text := ""; !strings.Contains(text, "has not answered"); {
		text = r.await(t, wire.AppStarting)
	}
	r.get(t, "/end")
	r.ends(t, done, 0)
}

func TestSIGTERM_ends_command_and_app(t *testing.T) {
	r := newRunner(t, served())
	done := r.start("sleep", "100")
	r.await(t, wire.AppReady)
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	r.ends(t, done, 128+15)
}

func TestA_second_task_becomes_its_command(t *testing.T) {
	r := newRunner(t, served())
	lock, err := r.lock()
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close() //nolint:errcheck // nothing was written
	if _, err := r.lock(); err == nil {
		t.Fatal("the app would be started twice")
	}
	if _, err := exec.LookPath("true"); err != nil {
		t.Skip(err)
	}
	if _, err := r.Run([]string{"/no/such/command"}); err == nil {
		t.Error("a command that is not there was run")
	}
}
