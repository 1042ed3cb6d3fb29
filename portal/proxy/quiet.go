package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/carme-hpc/carme/internal/sock"
)

// quietConn is a TCP connection below TLS. Once it is quiet, a read with
// nothing there returns at once, so that no buffer is held while a websocket
// says nothing for hours; wait then waits without one. crypto/tls keeps its
// state over such an error, because it is temporary.
type quietConn struct {
	*sock.Conn
	quiet atomic.Bool

	// Of the one goroutine that reads: what would be in closures, made anew for
	// each message.
	onRead, onWait  func(uintptr) bool
	onFill, onAhead func(uintptr) bool
	buffer          []byte
	n               int
	errno           syscall.Errno
	// While it is quiet.
	short  bool // the last read took all there was
	waited bool
	// While it is not.
	full  int // large reads in a row that filled what they were given
	ahead []byte
	store *[aheadSize]byte // of ahead
}

const (
	// aheadSize is how much is read at once in a transfer: several of the
	// largest TLS records.
	aheadSize = 64 << 10
	// fullRead is how much a read must bring to count as one of a transfer, and
	// transferAfter how many of them in a row make one.
	fullRead      = 4 << 10
	transferAfter = 8
)

var aheads = sync.Pool{New: func() any { return new([aheadSize]byte) }}

func newQuiet(conn net.Conn) (*quietConn, error) {
	c, err := sock.New(conn)
	if err != nil {
		return nil, err
	}
	q := &quietConn{Conn: c}
	q.onRead, q.onFill, q.onWait, q.onAhead = q.tryRead, q.tryFill, q.tryWait, q.tryAhead
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
	if len(q.ahead) > 0 {
		return q.takeAhead(p), nil
	}
	if !q.quiet.Load() {
		return q.readOn(p)
	}
	if len(p) == 0 {
		return 0, nil
	}
	if q.short {
		return 0, blockError{} // wait looks whether more has come since
	}
	q.buffer = p
	failed := q.Raw().Read(q.onRead)
	q.buffer = nil
	if failed != nil {
		return 0, failed
	}
	if q.errno == syscall.EAGAIN {
		return 0, blockError{}
	}
	err := q.ended()
	q.short = err == nil && q.n < len(p)
	return q.n, err
}

// ended says what a read has found instead of data, nil if it has found some.
func (q *quietConn) ended() error {
	switch {
	case q.errno != 0:
		q.n = 0
		return q.Failed(q.errno)
	case q.n == 0:
		return errEOF
	}
	return nil
}

// readOn waits for data. In a transfer it reads more than was asked for.
func (q *quietConn) readOn(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if q.full < transferAfter || len(p) >= aheadSize {
		q.buffer = p
		failed := q.Raw().Read(q.onFill)
		q.buffer = nil
		if failed != nil {
			return 0, failed
		}
		if q.full++; q.n < len(p) || q.n < fullRead {
			q.full = 0
		}
		err := q.ended()
		return q.n, err
	}
	if err := q.Raw().Read(q.onAhead); err != nil {
		return 0, err
	}
	if q.n < fullRead {
		q.full = 0
	}
	if err := q.ended(); err != nil {
		return 0, err
	}
	return q.takeAhead(p), nil
}

// tryAhead reads into a buffer that is held only while there is something in it.
func (q *quietConn) tryAhead(fd uintptr) bool {
	q.store = aheads.Get().(*[aheadSize]byte)
	q.buffer = q.store[:]
	q.tryRead(fd)
	q.buffer = nil
	if q.errno == 0 && q.n > 0 {
		q.ahead = q.store[:q.n]
		return true
	}
	aheads.Put(q.store)
	q.store = nil
	return q.errno != syscall.EAGAIN
}

// takeAhead takes of what was read before, and gives the buffer back with the
// last of it.
func (q *quietConn) takeAhead(p []byte) int {
	n := copy(p, q.ahead)
	if q.ahead = q.ahead[n:]; len(q.ahead) == 0 {
		aheads.Put(q.store)
		q.ahead, q.store = nil, nil
	}
	return n
}

func (q *quietConn) tryRead(fd uintptr) bool {
	q.n, q.errno = sock.Read(fd, q.buffer)
	return true
}

func (q *quietConn) tryFill(fd uintptr) bool {
	q.n, q.errno = sock.Read(fd, q.buffer)
	return q.errno != syscall.EAGAIN
}

// wait returns when something can be read, the connection is closed, or its
// read deadline has passed. What crypto/tls has read already must be drained
// before, or it waits for ever.
func (q *quietConn) wait() error {
	q.short, q.waited = false, false
	return q.Raw().Read(q.onWait)
}

// tryWait looks once whether something is there, and then believes the poller.
func (q *quietConn) tryWait(fd uintptr) bool {
	if q.waited {
		return true
	}
	q.waited = true
	return !sock.Empty(fd)
}

// readable says whether something is there to read now, be it the end.
func (q *quietConn) readable() bool {
	if len(q.ahead) > 0 {
		return true
	}
	there := true
	if q.Raw().Control(func(fd uintptr) { there = !sock.Empty(fd) }) != nil {
		return true
	}
	return there
}

type connKey struct{}

// withConn is http.Server.ConnContext: requests know the connection below TLS.
func withConn(ctx context.Context, conn net.Conn) context.Context {
	if secure, ok := conn.(*tls.Conn); ok {
		if quiet, ok := secure.NetConn().(*quietConn); ok {
			return context.WithValue(ctx, connKey{}, quiet)
		}
	}
	return ctx
}

// connOf is the connection of a request that has it for itself, or nil.
func connOf(r *http.Request) *quietConn {
	if r.ProtoMajor != 1 {
		return nil
	}
	quiet, _ := r.Context().Value(connKey{}).(*quietConn)
	return quiet
}
