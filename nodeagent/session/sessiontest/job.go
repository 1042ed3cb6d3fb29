package sessiontest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/carme-hpc/carme/internal/wire"
	"github.com/carme-hpc/carme/nodeagent/session"
)

// Node is a directory of jobs.
type Node struct {
	Dir    string // of the jobs
	Socket string // of the agent
}

// New makes one, short enough for the paths of sockets.
func New(tb testing.TB) Node {
	tb.Helper()
	dir, err := os.MkdirTemp("", "carme") //nolint:usetesting // TempDir's names are too long for a socket's path
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	return Node{Dir: filepath.Join(dir, "jobs"), Socket: filepath.Join(dir, "agent.sock")}
}

// Options are those to open the node's table with.
func (n Node) Options() session.Options {
	return session.Options{
		Dir: n.Dir, Socket: n.Socket, Owner: uint32(os.Getuid()), IsAnchor: func(int) bool { return true }, //nolint:gosec // G115: a uid
		Log: slog.New(slog.DiscardHandler),
	}
}

// Open opens the table and runs it until the test ends.
func (n Node) Open(tb testing.TB, change func(*session.Options)) *session.Table {
	tb.Helper()
	o := n.Options()
	if change != nil {
		change(&o)
	}
	table, err := session.Open(o)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- table.Run(ctx) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Error(err)
		}
	})
	return table
}

// Job is one job.
type Job struct {
	wire.Session

	Dir string
	// Kill ends its anchor.
	Kill func()
	node Node
}

// Instance is an instance made of one digit.
func Instance(digit string) string { return strings.Repeat(digit, 32) }

// Add makes a job with the app "web" on app.sock.
func (n Node) Add(tb testing.TB, id uint32, change func(*wire.Session)) *Job {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	anchor := exec.CommandContext(ctx, "sleep", "600")
	if err := anchor.Start(); err != nil {
		tb.Fatal(err)
	}
	kill := func() {
		cancel()
		_ = anchor.Wait()
	}
	tb.Cleanup(kill)
	j := &Job{
		Session: wire.Session{
			Job: id, UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), Instance: Instance("a"), //nolint:gosec // G115: ids
			App: "web", Socket: "app.sock", Anchor: anchor.Process.Pid, Started: time.Now(),
		},
		Dir: filepath.Join(n.Dir, strconv.FormatUint(uint64(id), 10)), Kill: kill, node: n,
	}
	if change != nil {
		change(&j.Session)
	}
	if err := os.MkdirAll(filepath.Join(j.Dir, "sess"), 0o700); err != nil {
		tb.Fatal(err)
	}
	data, err := json.Marshal(j.Session)
	if err != nil {
		tb.Fatal(err)
	}
	j.write(tb, wire.SessionFile, string(data))
	return j
}

func (j *Job) write(tb testing.TB, name, text string) {
	tb.Helper()
	file := filepath.Join(j.Dir, name)
	if err := os.WriteFile(file+".new", []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		tb.Fatal(err)
	}
}

// Status writes what the app's starter says.
func (j *Job) Status(tb testing.TB, text string) {
	tb.Helper()
	j.write(tb, "sess/status", text)
}

// Register tells the agent of the job, as the plugin does.
func (j *Job) Register(tb testing.TB) {
	tb.Helper()
	conn, err := new(net.Dialer).DialContext(context.Background(), "unix", j.node.Socket)
	if err != nil {
		tb.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // a test's connection
	fmt.Fprintf(conn, "{\"event\":\"start\",\"job\":%d}\n", j.Job)
}

// SocketPath is where the app listens.
func (j *Job) SocketPath() string { return filepath.Join(j.Dir, "sess", j.Socket) }

// Listen starts an app that hands each connection to serve.
func (j *Job) Listen(tb testing.TB, serve func(*net.UnixConn)) {
	tb.Helper()
	Listen(tb, j.SocketPath(), serve)
}

// Listen serves on a socket until the test ends.
func Listen(tb testing.TB, path string, serve func(*net.UnixConn)) {
	tb.Helper()
	l, err := new(net.ListenConfig).Listen(context.Background(), "unix", path)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c.(*net.UnixConn))
		}
	}()
}

// Echo is an app that sends back what it gets, and ends when its client does.
func Echo(c *net.UnixConn) {
	defer c.Close() //nolint:errcheck // a test's connection
	_, _ = io.Copy(c, c)
}

// Eventually waits until something is so.
func Eventually(tb testing.TB, what string, so func() bool) {
	tb.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(10 * time.Second)
	for !so() {
		if time.Now().After(deadline) {
			tb.Fatalf("not so after 10 s: %s", what)
		}
		<-tick.C
	}
}
