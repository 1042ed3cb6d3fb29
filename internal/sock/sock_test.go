package sock_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/carme-hpc/carme/internal/sock"
)

// pair is a connection and its other end.
func pair(t *testing.T) (*sock.Conn, *net.TCPConn) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // it was used
	near, err := new(net.Dialer).DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	c, err := sock.New(near)
	if err != nil {
		t.Fatal(err)
	}
	return c, far.(*net.TCPConn)
}

func readNow(t *testing.T, c *net.TCPConn) (n int, errno syscall.Errno) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 100)
	if err := raw.Control(func(fd uintptr) { n, errno = sock.Read(fd, buffer) }); err != nil {
		t.Fatal(err)
	}
	return n, errno
}

func TestCork_holds_back_and_uncork_sends_all_in_order(t *testing.T) {
	t.Parallel()
	c, far := pair(t)
	c.Cork()
	for _, part := range []string{"one ", "two ", "three"} {
		if n, err := io.WriteString(c, part); n != len(part) || err != nil {
			t.Fatalf("Write(%q) = %d, %v", part, n, err)
		}
	}
	if _, errno := readNow(t, far); errno != syscall.EAGAIN {
		t.Fatalf("what was corked has arrived (errno %d)", errno)
	}
	if err := c.Uncork(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, ", and four"); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if got, err := io.ReadAll(far); string(got) != "one two three, and four" || err != nil {
		t.Fatalf("arrived: %q, %v", got, err)
	}
	if n, errno := readNow(t, far); n != 0 || errno != 0 {
		t.Fatalf("Read at the end = %d, errno %d", n, errno)
	}
}

func TestWrite_of_more_than_the_socket_takes_waits_for_the_reader(t *testing.T) {
	t.Parallel()
	c, far := pair(t)
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	wrote := make(chan error, 1)
	go func() {
		n, err := c.Write(sent)
		if n != len(sent) {
			err = errors.Join(err, io.ErrShortWrite)
		}
		wrote <- errors.Join(err, c.Close())
	}()
	got, err := io.ReadAll(far)
	if err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("arrived: %d bytes of %d, %v", len(got), len(sent), err)
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
}

func TestWrite_to_a_reader_that_is_stuck_ends_with_the_deadline_or_the_connection(t *testing.T) {
	t.Parallel()
	c, _ := pair(t)
	big := make([]byte, 16<<20)
	if err := c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	n, err := c.Write(big)
	if late := net.Error(nil); !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &late) || !late.Timeout() {
		t.Fatalf("Write = %d, %v", n, err)
	}
	if n == 0 || n == len(big) {
		t.Errorf("%d bytes are said to be written", n)
	}
	if err := c.SetWriteDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := c.Write(big)
		ended <- err
	}()
	_ = c.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Fatalf("Write on a connection that was closed meanwhile: %v", err)
	}
}

func TestWrite_to_who_has_gone_fails_as_net_says_it(t *testing.T) {
	t.Parallel()
	c, far := pair(t)
	if err := errors.Join(far.SetLinger(0), far.Close()); err != nil {
		t.Fatal(err)
	}
	var err error
	for err == nil { // the first ones may be on their way when the reset comes
		_, err = io.WriteString(c, "x")
	}
	if op := (*net.OpError)(nil); !errors.As(err, &op) || !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("Write: %v", err)
	}
}
