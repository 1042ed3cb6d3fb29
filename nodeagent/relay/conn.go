package relay

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Conn is a TLS connection that can be read without waiting.
type Conn struct {
	tcp  *net.TCPConn
	tls  *tls.Conn
	lazy *lazyConn
}

// NewConn puts TLS on a connection. The handshake is the caller's.
func NewConn(tcp *net.TCPConn, cfg *tls.Config) (*Conn, error) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil, err
	}
	lazy := &lazyConn{TCPConn: tcp, raw: raw}
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
	*net.TCPConn

	raw  syscall.RawConn
	lazy bool // set before the goroutine that reads starts

	// Of that goroutine alone: what would be in closures, made anew each time.
	onRead, onWait func(uintptr) bool
	buf            []byte
	n              int
	err            error
	short          bool // the last read took all there was
	waited         bool

	mu     sync.Mutex
	corked bool
	held   *[]byte // what was written since
}

// corkSize is more than what is written at once between cork and uncork, with
// what TLS adds to each record.
const corkSize = bulkSize + bulkSize/16

var corks = sync.Pool{New: func() any { return new(make([]byte, 0, corkSize)) }} //nolint:gochecknoglobals // a pool is one

// Write implements net.Conn. crypto/tls writes record by record, each a system
// call and a reader that is woken.
func (c *lazyConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.corked {
		return c.TCPConn.Write(p)
	}
	*c.held = append(*c.held, p...)
	return len(p), nil
}

// cork holds back what is written until uncork.
func (c *lazyConn) cork() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.corked, c.held = true, corks.Get().(*[]byte)
}

// uncork sends what was held back.
func (c *lazyConn) uncork() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.TCPConn.Write(*c.held)
	*c.held = (*c.held)[:0]
	corks.Put(c.held)
	c.corked, c.held = false, nil
	return err
}

// Read reads what is there.
func (c *lazyConn) Read(p []byte) (int, error) {
	if !c.lazy {
		return c.TCPConn.Read(p)
	}
	if len(p) == 0 {
		return 0, nil
	}
	if c.short {
		return 0, wouldBlockError{} // wait looks whether more came since
	}
	c.buf = p
	err := c.raw.Read(c.onRead)
	c.buf = nil
	if err != nil {
		return 0, err
	}
	c.short = c.err == nil && c.n < len(p)
	return c.n, c.err
}

func (c *lazyConn) tryRead(fd uintptr) bool {
	c.n, c.err = tryRead(int(fd), c.buf)
	return true
}

// wait returns when there is something to read, or the connection has ended.
func (c *lazyConn) wait() error {
	c.short, c.waited = false, false
	return c.raw.Read(c.onWait)
}

// tryWait looks once whether something is there, and then believes the poller.
func (c *lazyConn) tryWait(fd uintptr) bool {
	if c.waited {
		return true
	}
	c.waited = true
	var one [1]byte
	for {
		_, _, err := unix.Recvfrom(int(fd), one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if !errors.Is(err, unix.EINTR) {
			return !errors.Is(err, unix.EAGAIN)
		}
	}
}

// tryRead reads without waiting; nothing there is wouldBlockError.
func tryRead(fd int, p []byte) (int, error) {
	for {
		n, err := unix.Read(fd, p)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return 0, wouldBlockError{}
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}
