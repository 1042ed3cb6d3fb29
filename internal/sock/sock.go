package sock

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
)

// Most is what may be written between Cork and Uncork without a larger buffer
// being made, with what TLS adds to each record.
const Most = 64 << 10

var corks = sync.Pool{New: func() any { return new(make([]byte, 0, Most+Most/16)) }} //nolint:gochecknoglobals // a pool is one

// Conn is a connection that can hold back what is written. It is read as any
// other, or by Raw and Read.
type Conn struct {
	net.Conn
	raw     syscall.RawConn
	onWrite func(uintptr) bool // what would be a closure, made anew each time

	mu   sync.Mutex
	left []byte // of what is being written
	err  error
	held *[]byte // what was written since Cork, nil without one
}

// New returns a Conn for a connection of package net.
func New(conn net.Conn) (*Conn, error) {
	sys, ok := conn.(syscall.Conn)
	if !ok {
		return nil, errors.New("connection has no descriptor")
	}
	raw, err := sys.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("find descriptor: %w", err)
	}
	c := &Conn{Conn: conn, raw: raw}
	c.onWrite = c.tryWrite
	return c, nil
}

// Raw leads to the descriptor.
func (c *Conn) Raw() syscall.RawConn { return c.raw }

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held != nil {
		*c.held = append(*c.held, p...)
		return len(p), nil
	}
	return c.write(p)
}

// Cork holds back what is written until Uncork: crypto/tls writes record by
// record, each a system call and a reader that is woken.
func (c *Conn) Cork() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = corks.Get().(*[]byte)
}

// Uncork sends what was held back.
func (c *Conn) Uncork() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	held := c.held
	c.held = nil
	_, err := c.write(*held)
	*held = (*held)[:0]
	corks.Put(held)
	return err
}

// write waits as net.Conn's Write does, under the same deadline.
func (c *Conn) write(p []byte) (int, error) {
	c.left, c.err = p, nil
	err := c.raw.Write(c.onWrite)
	if err == nil {
		err = c.err
	}
	n := len(p) - len(c.left)
	c.left = nil
	return n, err
}

func (c *Conn) tryWrite(fd uintptr) bool {
	for len(c.left) > 0 {
		n, errno := write(fd, c.left)
		switch errno {
		case 0:
			c.left = c.left[n:]
		case syscall.EINTR:
		case syscall.EAGAIN:
			return false
		default:
			c.err = c.failed("write", errno)
			return true
		}
	}
	return true
}

// failed is an error as package net has it, which net/http knows.
func (c *Conn) failed(op string, errno syscall.Errno) error {
	return &net.OpError{Op: op, Net: c.LocalAddr().Network(), Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: os.NewSyscallError(op, errno)}
}

// Failed is the error of a Read that failed, as package net has it.
func (c *Conn) Failed(errno syscall.Errno) error { return c.failed("read", errno) }

// Read reads what is there, without waiting: EAGAIN says that nothing is, and
// nothing read without an error that nothing will come.
func Read(fd uintptr, p []byte) (int, syscall.Errno) {
	for {
		if n, errno := read(fd, p); errno != syscall.EINTR {
			return n, errno
		}
	}
}

// Empty says whether a Read now would return EAGAIN.
func Empty(fd uintptr) bool {
	for {
		if errno := peek(fd); errno != syscall.EINTR {
			return errno == syscall.EAGAIN
		}
	}
}
