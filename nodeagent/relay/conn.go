package relay

import (
	"crypto/tls"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/carme-hpc/carme/internal/sock"
)

// Conn is a TLS connection that can be read without waiting.
type Conn struct {
	tcp  *net.TCPConn
	tls  *tls.Conn
	lazy *lazyConn
}

// NewConn puts TLS on a connection. The handshake is the caller's.
func NewConn(tcp *net.TCPConn, cfg *tls.Config) (*Conn, error) {
	below, err := sock.New(tcp)
	if err != nil {
		return nil, err
	}
	lazy := &lazyConn{Conn: below}
	lazy.onRead, lazy.onWait = lazy.tryRead, lazy.tryWait
	return &Conn{tcp: tcp, tls: tls.Server(lazy, cfg), lazy: lazy}, nil
}

// TLS is the connection with TLS.
func (c *Conn) TLS() *tls.Conn { return c.tls }

// TCP is the connection below it.
func (c *Conn) TCP() *net.TCPConn { return c.tcp }

// wouldBlockError is what a read without data returns. It is temporary, so that
// crypto/tls keeps its state and goes on with the next call.
type wouldBlockError struct{}

func (wouldBlockError) Error() string   { return "nothing to read now" }
func (wouldBlockError) Timeout() bool   { return true }
func (wouldBlockError) Temporary() bool { return true }

// lazyConn is a TCP connection whose Read does not wait once lazy is set. So
// no buffer of ours or of crypto/tls is held while nothing comes.
type lazyConn struct {
	*sock.Conn

	lazy bool // set before the goroutine that reads starts

	// Of that goroutine alone: what would be in closures, made anew each time.
	onRead, onWait func(uintptr) bool
	buf            []byte
	n              int
	err            error
	short          bool // the last read took all there was
	waited         bool
}

// Read reads what is there.
func (c *lazyConn) Read(p []byte) (int, error) {
	if !c.lazy {
		return c.Conn.Read(p)
	}
	if len(p) == 0 {
		return 0, nil
	}
	if c.short {
		return 0, wouldBlockError{} // wait looks whether more came since
	}
	c.buf = p
	err := c.Raw().Read(c.onRead)
	c.buf = nil
	if err != nil {
		return 0, err
	}
	c.short = c.err == nil && c.n < len(p)
	return c.n, c.err
}

func (c *lazyConn) tryRead(fd uintptr) bool {
	c.n, c.err = tryRead(fd, c.buf)
	return true
}

// wait returns when there is something to read, or the connection has ended.
func (c *lazyConn) wait() error {
	c.short, c.waited = false, false
	return c.Raw().Read(c.onWait)
}

// tryWait looks once whether something is there, and then believes the poller.
func (c *lazyConn) tryWait(fd uintptr) bool {
	if c.waited {
		return true
	}
	c.waited = true
	return !sock.Empty(fd)
}

// tryRead reads without waiting; nothing there is wouldBlockError.
func tryRead(fd uintptr, p []byte) (int, error) {
	n, errno := sock.Read(fd, p)
	switch {
	case errno == syscall.EAGAIN:
		return 0, wouldBlockError{}
	case errno != 0:
		return 0, os.NewSyscallError("read", errno)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}
