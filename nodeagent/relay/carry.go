package relay

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carme-hpc/carme/internal/sock"
)

const (
	// bufferSize is that of the largest TLS record.
	bufferSize = 16 << 10
	// recordSize is how much goes into one record while a stream is
	// interactive: the reader's crypto/tls keeps a buffer of the largest
	// record it ever got.
	recordSize = 4 << 10
	// bulk is after how many full buffers in a row a stream is a transfer,
	// which is faster in large records, and several of them at once.
	bulk     = 8
	bulkSize = sock.Most
	// lingerTime is how long a client may go on after its app has closed.
	lingerTime = 10 * time.Second
)

var (
	buffers     = sync.Pool{New: func() any { return new([bufferSize]byte) }} //nolint:gochecknoglobals // a pool is one
	bulkBuffers = sync.Pool{New: func() any { return new([bulkSize]byte) }}   //nolint:gochecknoglobals // the same
)

// carry copies both ways until both have ended, or one has failed. It returns
// at once: two new goroutines need less stack than one that made a handshake.
func (r *Relay) carry(conn *Conn, s *stream) {
	conn.lazy.lazy = true
	var ended atomic.Int32
	half := func(run func(*Conn, *stream) error) {
		if err := run(conn, s); err != nil {
			s.close()
		}
		if ended.Add(1) == 2 {
			s.close()
			r.unregister(s)
		}
	}
	go half(r.toApp)
	go half(r.fromApp)
}

// errClient is that the client has closed, not only its half.
var errClient = errors.New("client has gone")

// toApp copies until the client ends its half, and passes that on.
func (r *Relay) toApp(conn *Conn, s *stream) error {
	app, err := sock.New(s.app)
	if err != nil {
		return err
	}
	for {
		// First what crypto/tls holds already: the kernel knows nothing of it.
		err := r.drain(conn, s, app)
		if errors.Is(err, io.EOF) {
			// An app that has gone already cannot be told.
			_ = s.app.CloseWrite()
			if s.halves.Add(1) == 2 {
				return nil
			}
			return awaitEnd(conn)
		}
		if err != nil {
			return err
		}
		if err := conn.lazy.wait(); err != nil {
			return err
		}
	}
}

// awaitEnd returns when a client that ended its half closes the connection. An
// app that does not care for a half that ended would hold it for ever.
func awaitEnd(conn *Conn) error {
	for {
		if err := conn.lazy.wait(); err != nil {
			return err
		}
		// After the farewell nothing may come but the end.
		if _, err := conn.lazy.Read(make([]byte, 1)); !errors.Is(err, wouldBlockError{}) {
			return errClient
		}
	}
}

// drain copies what has come, nil when there is no more.
func (r *Relay) drain(conn *Conn, s *stream, app *sock.Conn) error {
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	for {
		n, err := conn.tls.Read(buf[:])
		if n > 0 && !s.deaf {
			r.ToApps.Add(int64(n))
			s.answered.Store(false)
			s.moves.Add(1)
			if _, err := app.Write(buf[:n]); err != nil {
				// The app has said all, and does not listen any more. To close
				// now could destroy what the client has not read of it.
				s.deaf = true
				if err := conn.tcp.SetReadDeadline(time.Now().Add(lingerTime)); err != nil {
					return err
				}
			}
		}
		if errors.Is(err, wouldBlockError{}) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// appReader reads from an app into a buffer that it holds only while there is
// something in it.
type appReader struct {
	raw    syscall.RawConn
	onRead func(uintptr) bool
	full   int // buffers of bufferSize in a row that data has filled
	buf    *[bufferSize]byte
	large  *[bulkSize]byte // in its place in a transfer
	data   []byte
	err    error
}

// transfer says that data comes faster than it is passed on.
func (r *appReader) transfer() bool { return r.full >= bulk }

func newAppReader(app *net.UnixConn) (*appReader, error) {
	raw, err := app.SyscallConn()
	if err != nil {
		return nil, err
	}
	r := &appReader{raw: raw}
	r.onRead = r.tryRead
	return r, nil
}

func (r *appReader) tryRead(fd uintptr) bool {
	r.data = r.take()
	n, err := tryRead(fd, r.data)
	r.data, r.err = r.data[:n], err
	if errors.Is(r.err, wouldBlockError{}) {
		r.release()
		return false
	}
	if r.full++; n < bufferSize {
		r.full = 0
	}
	return true
}

func (r *appReader) take() []byte {
	if r.transfer() {
		r.large = bulkBuffers.Get().(*[bulkSize]byte)
		return r.large[:]
	}
	r.buf = buffers.Get().(*[bufferSize]byte)
	return r.buf[:]
}

// next waits for data. It is valid until release.
func (r *appReader) next() ([]byte, error) {
	if err := r.raw.Read(r.onRead); err != nil {
		return nil, err
	}
	return r.data, r.err
}

func (r *appReader) release() {
	if r.buf != nil {
		buffers.Put(r.buf)
	}
	if r.large != nil {
		bulkBuffers.Put(r.large)
	}
	r.buf, r.large, r.data = nil, nil, nil
}

// fromApp copies until the app ends its half, and passes that on.
func (r *Relay) fromApp(conn *Conn, s *stream) error {
	app, err := newAppReader(s.app)
	if err != nil {
		return err
	}
	defer app.release()
	for {
		data, err := app.next()
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
			// A reset is that the app did not read all; what it said came first.
			err := conn.tls.CloseWrite()
			if s.halves.Add(1) == 2 {
				s.close() // toApp awaits the end
			}
			return err
		}
		if err != nil {
			return err
		}
		if err := write(conn, data, app.transfer()); err != nil {
			return err
		}
		r.FromApps.Add(int64(len(data)))
		s.answered.Store(true)
		s.moves.Add(1)
		app.release()
	}
}

// write encrypts data in records of the size that suits it, and sends them in one.
func write(conn *Conn, data []byte, transfer bool) error {
	if len(data) <= recordSize {
		_, err := conn.tls.Write(data)
		return err
	}
	size := recordSize
	if transfer {
		size = len(data) // crypto/tls divides it by the largest
	}
	conn.lazy.Cork()
	var failed error
	for len(data) > 0 && failed == nil {
		n := min(len(data), size)
		_, failed = conn.tls.Write(data[:n])
		data = data[n:]
	}
	return errors.Join(failed, conn.lazy.Uncork())
}
