package daemon

import (
	"context"
	"errors"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestRun_ends_at_SIGTERM_and_tells_systemd(t *testing.T) {
	name := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.Close() })
	t.Setenv("NOTIFY_SOCKET", name)
	why := errors.New("ended")
	err = Run(t.Context(), func(ctx context.Context) error {
		Notify(Ready)
		if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
			return err
		}
		<-ctx.Done()
		return why
	})
	if !errors.Is(err, why) {
		t.Errorf("error is %v", err)
	}
	for _, want := range []string{Ready, Stopping} {
		buf := make([]byte, 100)
		if err := socket.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := socket.Read(buf)
		if err != nil || string(buf[:n]) != want {
			t.Errorf("systemd was told %q, want %q (%v)", buf[:n], want, err)
		}
	}
}

func TestOnHangup_reloads_until_the_end(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	// Before OnHangup listens, the signal would end this process.
	guard := make(chan os.Signal, 1)
	signal.Notify(guard, syscall.SIGHUP)
	t.Cleanup(func() { signal.Stop(guard) })
	done := make(chan struct{})
	go func() {
		defer close(done)
		OnHangup(ctx, cancel)
	}()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
			if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
		}
	}
}
