package proxy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httputil"
	"strconv"
	"sync"
	"time"

	"github.com/carme-hpc/carme/internal/sock"
)

const (
	copySize = sock.Most
	// smallAnswer is what goes out in one TLS record, and into the kernel's
	// buffers without waiting for the browser.
	smallAnswer = 16 << 10
)

var (
	copyBuffers = sync.Pool{New: func() any { return new([copySize]byte) }}
	writers     = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, 4<<10) }}
)

// forward sends a request to the app and its answer to the browser.
func (p *Proxy) forward(w http.ResponseWriter, r *http.Request, rt *route) {
	for attempt := 0; ; attempt++ {
		up, err := p.stream(r.Context(), rt, attempt > 0)
		if err != nil {
			p.noStream(w, r, rt, err)
			return
		}
		if p.exchange(w, r, rt, up, attempt == 0) {
			return
		}
		// The connection ended before anything of the answer came: it had waited
		// and was closed by the app, or the agent was killed. Only what can be
		// sent twice comes here, and only once.
	}
}

// stream is an idle connection or a new one.
func (p *Proxy) stream(ctx context.Context, rt *route, fresh bool) (*upstream, error) {
	if !fresh {
		if up, err := rt.take(); up != nil || err != nil {
			return up, err
		}
	}
	up, err := p.dial(ctx, rt, fresh)
	if refusal, ok := errors.AsType[relayError](err); ok && refusal.status == statusToken {
		// The token ran out on its way, or the agent has new keys.
		if _, err := p.table.ask(ctx, rt.key); err != nil {
			return nil, err
		}
		return p.dial(ctx, rt, fresh)
	}
	return up, err
}

// exchange carries one request and its answer. It returns false if no answer
// came and the request can be sent again.
func (p *Proxy) exchange(w http.ResponseWriter, r *http.Request, rt *route, up *upstream, first bool) (done bool) {
	stop := context.AfterFunc(r.Context(), up.close)
	defer stop()
	again := first && safe(r.Method) && r.ContentLength == 0
	load, err := p.send(w, r, rt, up)
	var answer *http.Response
	if err == nil {
		answer, err = readAnswer(up, r)
	}
	if err != nil {
		up.end()
		load.settle()
		abortIfGone(r)
		cut := cutOff(err)
		if again && (cut || startsAnew(err)) {
			return false
		}
		if left, ok := p.silent.Turn(p.now()); ok {
			p.log.InfoContext(r.Context(), "app: no answer", "job", rt.grant.Load().Job, "error", err, "left_out", left)
		}
		if cut {
			p.problem(w, r, pageNode)
			return true
		}
		p.problem(w, r, pageBroken)
		return true
	}
	copyAnswer(w.Header(), answer.Header, r.Host)
	w.WriteHeader(answer.StatusCode)
	if answer.Body != http.NoBody && up.reader.Buffered() == 0 {
		_ = http.NewResponseController(w).Flush() // the head of a stream whose first word takes its time
	}
	err = copyBody(w, r, answer, up)
	_ = answer.Body.Close() // it was read, or the connection goes
	whole := false
	select {
	case sendErr := <-load.sent:
		whole = sendErr == nil
	default: // the app has answered before it had everything
		up.close()
		load.settle()
	}
	if err == nil && whole && !answer.Close && up.reader.Buffered() == 0 && stop() {
		rt.put(up, p.now())
		return true
	}
	up.end()
	if err != nil {
		panic(http.ErrAbortHandler) // the browser must see that the answer is cut
	}
	return true
}

// upload is the sending of a request's body, in a goroutine of its own.
type upload struct {
	control *http.ResponseController
	sent    chan error // yields once: all is sent, or cannot be

	mu   sync.Mutex
	over bool
}

// more gives the next piece of the body its time, false once nobody waits for it.
func (u *upload) more() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.over {
		_ = u.control.SetReadDeadline(time.Now().Add(writePatience)) // a body that drips does not hold a stream for ever
	}
	return !u.over
}

// done takes the time limit away: the connection's next request has its own.
func (u *upload) done() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.over {
		_ = u.control.SetReadDeadline(time.Time{})
	}
}

// settle ends the sending of a body that nobody waits for any more.
func (u *upload) settle() {
	select {
	case <-u.sent: //nolint:errcheck // nobody waits for it
		return
	default:
	}
	u.mu.Lock()
	u.over = true
	_ = u.control.SetReadDeadline(time.Now()) // wakes the reader of the body
	u.mu.Unlock()
	<-u.sent //nolint:errcheck // nobody waits for it
}

// send writes the request, and begins to send its body.
func (p *Proxy) send(w http.ResponseWriter, r *http.Request, rt *route, up *upstream) (*upload, error) {
	load := &upload{control: http.NewResponseController(w), sent: make(chan error, 1)}
	out := writers.Get().(*bufio.Writer)
	out.Reset(up.conn)
	release := func(err error) {
		out.Reset(nil)
		writers.Put(out)
		load.sent <- err
	}
	_ = up.conn.SetWriteDeadline(time.Now().Add(writePatience)) // if it fails, so does the write
	writeHead(out, r, rt.grant.Load())
	if r.ContentLength == 0 || r.Body == nil || r.Body == http.NoBody {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			field(out, "Content-Length", "0")
		}
		out.WriteString("\r\n")
		err := out.Flush()
		release(err)
		return load, err
	}
	_ = load.control.EnableFullDuplex() // HTTP/2 always is
	var to io.Writer = out
	if r.ContentLength > 0 {
		field(out, "Content-Length", strconv.FormatInt(r.ContentLength, 10))
	} else {
		field(out, "Transfer-Encoding", "chunked")
		to = httputil.NewChunkedWriter(out)
	}
	out.WriteString("\r\n")
	go func() {
		err := sendBody(load, to, out, r, up)
		if err != nil {
			up.close() // or the app would wait for the rest
		}
		release(err)
	}()
	return load, nil
}

var errSettled = errors.New("nobody waits for the rest of the body")

func sendBody(load *upload, to io.Writer, out *bufio.Writer, r *http.Request, up *upstream) error {
	buffer := copyBuffers.Get().(*[copySize]byte)
	defer copyBuffers.Put(buffer)
	for {
		if !load.more() {
			return errSettled
		}
		n, err := r.Body.Read(buffer[:])
		if n > 0 {
			_ = up.conn.SetWriteDeadline(time.Now().Add(writePatience)) // if it fails, so does the write
			if _, err := to.Write(buffer[:n]); err != nil {
				return err
			}
			if err := out.Flush(); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	load.done()
	if chunks, ok := to.(io.Closer); ok {
		if err := chunks.Close(); err != nil {
			return err
		}
		out.WriteString("\r\n") // no trailers
	}
	return out.Flush()
}

// readAnswer reads the head of the app's answer, past provisional ones.
func readAnswer(up *upstream, r *http.Request) (*http.Response, error) {
	up.meter.bound()
	for range 8 {
		answer, err := http.ReadResponse(up.reader, r)
		if err != nil {
			return nil, err
		}
		if answer.StatusCode >= 200 || answer.StatusCode == http.StatusSwitchingProtocols && isUpgrade(r) {
			up.meter.unbound()
			return answer, nil
		}
		if answer.StatusCode == http.StatusSwitchingProtocols {
			break
		}
	}
	return nil, errors.New("the app's answer is none")
}

// copyBody passes an answer on as it comes.
func copyBody(w http.ResponseWriter, r *http.Request, answer *http.Response, up *upstream) error {
	if answer.Body == http.NoBody {
		return nil
	}
	buffer := copyBuffers.Get().(*[copySize]byte)
	defer copyBuffers.Put(buffer)
	control := http.NewResponseController(w)
	left := answer.ContentLength
	timed := false
	defer func() {
		if timed {
			_ = control.SetWriteDeadline(time.Time{}) // for the connection's next request
		}
	}()
	for {
		n, err := readMuch(answer, up, buffer[:])
		if n > 0 {
			if n != int(left) || n > smallAnswer {
				timed = true
				_ = control.SetWriteDeadline(time.Now().Add(writePatience)) // if it fails, so does the write
			}
			left -= int64(n)
			if err := writeMuch(w, r, control, buffer[:n], left != 0); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// readMuch reads what has come of a body. Chunks are passed on one by one: behind
// a chunk may be half of the next one's head, and nothing for a long time.
func readMuch(answer *http.Response, up *upstream, p []byte) (int, error) {
	n, err := answer.Body.Read(p)
	for err == nil && n < len(p) && answer.ContentLength > 0 && len(up.quiet.ahead) > 0 {
		var more int
		more, err = answer.Body.Read(p[n:])
		n += more
	}
	return n, err
}

// writeMuch writes a piece of a body, in one system call if it can, and sees that
// it arrives if more may take its time.
func writeMuch(w http.ResponseWriter, r *http.Request, control *http.ResponseController, p []byte, flush bool) (err error) {
	if conn := connOf(r); conn != nil && len(p) > smallAnswer {
		conn.Cork()
		defer func() { err = errors.Join(err, conn.Uncork()) }()
	}
	if _, err := w.Write(p); err != nil {
		return err
	}
	if flush {
		return control.Flush()
	}
	return nil
}
