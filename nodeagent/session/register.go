package session

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"time"
)

const (
	// registerTime is how long the plugin may take to say what it has to say.
	registerTime = time.Second
	// registering is how many may speak at once.
	registering = 32
)

func listenPrivate(name string) (net.Listener, error) {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", name, err)
	}
	l, err := new(net.ListenConfig).Listen(context.Background(), "unix", name)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", name, err)
	}
	if err := os.Chmod(name, 0o600); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("listen on %s: %w", name, err)
	}
	return l, nil
}

// registration is what the plugin says when a job is set up.
type registration struct {
	Event string `json:"event"`
	Job   uint32 `json:"job"`
}

func (t *Table) serve(ctx context.Context) {
	slots := make(chan struct{}, registering)
	for {
		conn, err := t.listen.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			t.Log.Error("cannot take registrations", "error", err)
			if !pause(ctx, stageEvery) {
				return
			}
			continue
		}
		select {
		case slots <- struct{}{}:
			go func() {
				defer func() { <-slots }()
				t.register(conn)
			}()
		default:
			_ = conn.Close() // the directory tells of the job too
		}
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func (t *Table) register(conn net.Conn) {
	defer conn.Close() //nolint:errcheck // nothing was written
	uid, err := PeerUID(conn.(*net.UnixConn))
	if err != nil || uid != t.Owner {
		t.Log.Warn("registration refused: the peer is not root", "uid", uid, "error", err)
		return
	}
	if err := conn.SetDeadline(time.Now().Add(registerTime)); err != nil {
		return
	}
	line, err := bufio.NewReader(io.LimitReader(conn, 1024)).ReadBytes('\n')
	if err != nil {
		return
	}
	var r registration
	if err := json.Unmarshal(line, &r); err != nil || r.Job == 0 {
		t.Log.Warn("registration cannot be read", "error", err)
		return
	}
	t.look(r.Job)
}
