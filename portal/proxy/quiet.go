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
	onAhead        func(uintptr) bool
	buffer         []byte
	n              int
	err            error
	short          bool // the last read took all there was
	waited         bool

	// Of the goroutine that reads while it is not quiet.
	full  int // large reads in a row that filled what they were given
	ahead []byte
	store *[aheadSize]byte // of ahead

	mu     sync.Mutex
	corked bool
	held   *[]byte // what was written since
}

const (
	// aheadSize is how much is read at once in a transfer: several of the
	// largest TLS records.
	aheadSize = 64 << 10
	// fullRead is how much a read must bring to count as one of a transfer, and
	// transferAfter how many of them in a row make one.
	fullRead      = 4 << 10
	transferAfter = 8
	// corkSize is more than what is written at once between cork and uncork,
	// with what TLS adds to each record.
	corkSize = copySize + copySize/16
)

var (
	aheads = sync.Pool{New: func() any { return new([aheadSize]byte) }}
	corks  = sync.Pool{New: func() any { return new(make([]byte, 0, corkSize)) }}
)

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
	q.raw, q.onRead, q.onWait, q.onAhead = raw, q.tryRead, q.tryWait, q.tryAhead
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

// readOn waits for data. In a transfer it reads more than was asked for.
func (q *quietConn) readOn(p []byte) (int, error) {
	if q.full < transferAfter || len(p) >= aheadSize {
		n, err := q.Conn.Read(p)
		if q.full++; n < len(p) || n < fullRead {
			q.full = 0
		}
		return n, err
	}
	if err := q.raw.Read(q.onAhead); err != nil {
		return 0, err
	}
	if q.n < fullRead {
		q.full = 0
	}
	switch {
	case q.err != nil:
		return 0, q.err
	case q.n == 0:
		return 0, errEOF
	}
	return q.takeAhead(p), nil
}

// tryAhead reads into a buffer that is held only while there is something in it.
func (q *quietConn) tryAhead(fd uintptr) bool {
	q.store = aheads.Get().(*[aheadSize]byte)
	q.buffer = q.store[:]
	q.tryRead(fd)
	q.buffer = nil
	if q.err == nil && q.n > 0 {
		q.ahead = q.store[:q.n]
		return true
	}
	aheads.Put(q.store)
	q.store = nil
	return !errors.Is(q.err, syscall.EAGAIN)
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

// Write implements net.Conn. crypto/tls writes record by record, each a system
// call and a reader that is woken.
func (q *quietConn) Write(p []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.corked {
		return q.Conn.Write(p)
	}
	*q.held = append(*q.held, p...)
	return len(p), nil
}

// cork holds back what is written until uncork.
func (q *quietConn) cork() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.corked, q.held = true, corks.Get().(*[]byte)
}

// uncork sends what was held back.
func (q *quietConn) uncork() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	_, err := q.Conn.Write(*q.held)
	*q.held = (*q.held)[:0]
	corks.Put(q.held)
	q.corked, q.held = false, nil
	return err
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
	if len(q.ahead) > 0 {
		return true
	}
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
