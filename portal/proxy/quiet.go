package proxy

import (
	"errors"
	"net"
	"sync/atomic"
	"syscall"
)

// quietConn is a TCP connection below TLS. Once it is quiet, a read with
// nothing there returns at once, so that no buffer is held while a websocket
// says nothing for hours; wait then waits without one. crypto/tls keeps its
// state over such an error, because it is temporary.
type quietConn struct {
	net.Conn
	raw   syscall.RawConn
	quiet atomic.Bool

	// Of the one goroutine that reads while it is quiet: what would be in
	// closures, made anew for each message.
	onRead, onWait func(uintptr) bool
	buffer         []byte
	n              int
	err            error
	short          bool // the last read took all there was
	waited         bool
}

func newQuiet(conn net.Conn) (*quietConn, error) {
	q := &quietConn{Conn: conn}
	sys, ok := conn.(syscall.Conn)
	if !ok {
		return nil, errors.New("connection has no descriptor")
	}
	raw, err := sys.SyscallConn()
	if err != nil {
		return nil, err
	}
	q.raw, q.onRead, q.onWait = raw, q.tryRead, q.tryWait
	return q, nil
}

// blockError is what a quiet read returns when nothing is there.
type blockError struct{}

func (blockError) Error() string   { return "nothing to read" }
func (blockError) Timeout() bool   { return false }
func (blockError) Temporary() bool { return true }

func wouldBlock(err error) bool {
	_, ok := errors.AsType[blockError](err)
	return ok
}

// Read implements net.Conn.
func (q *quietConn) Read(p []byte) (int, error) {
	if !q.quiet.Load() {
		return q.Conn.Read(p)
	}
	if len(p) == 0 {
		return 0, nil
	}
	if q.short {
		return 0, blockError{} // wait looks whether more has come since
	}
	q.buffer = p
	failed := q.raw.Read(q.onRead)
	q.buffer = nil
	switch {
	case failed != nil:
		return 0, failed
	case errors.Is(q.err, syscall.EAGAIN):
		return 0, blockError{}
	case q.err != nil:
		return 0, q.err
	case q.n == 0:
		return 0, errEOF
	}
	q.short = q.n < len(p)
	return q.n, nil
}

func (q *quietConn) tryRead(fd uintptr) bool {
	for {
		q.n, q.err = syscall.Read(int(fd), q.buffer)
		if !errors.Is(q.err, syscall.EINTR) {
			return true
		}
	}
}

// wait returns when something can be read, the connection is closed, or its
// read deadline has passed. What crypto/tls has read already must be drained
// before, or it waits for ever.
func (q *quietConn) wait() error {
	q.short, q.waited = false, false
	return q.raw.Read(q.onWait)
}

// tryWait looks once whether something is there, and then believes the poller.
func (q *quietConn) tryWait(fd uintptr) bool {
	if q.waited {
		return true
	}
	q.waited = true
	var one [1]byte
	return !empty(fd, one[:])
}

// readable says whether something is there to read now, be it the end.
func (q *quietConn) readable() bool {
	var one [1]byte
	there := true
	if q.raw.Control(func(fd uintptr) { there = !empty(fd, one[:]) }) != nil {
		return true
	}
	return there
}

func empty(fd uintptr, one []byte) bool {
	for {
		_, _, err := syscall.Recvfrom(int(fd), one, syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		if !errors.Is(err, syscall.EINTR) {
			return errors.Is(err, syscall.EAGAIN)
		}
	}
}
