package proxy

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	socketSize = 16 << 10
	// farewell is how long the other side may take once one has ended.
	farewell = 10 * time.Second
)

var socketBuffers = sync.Pool{New: func() any { return new([socketSize]byte) }}

// websocket opens a websocket to the app and returns when it is open; from then
// on it lives without the server's request, goroutine and buffers.
func (p *Proxy) websocket(w http.ResponseWriter, r *http.Request, rt *route) {
	up, err := p.stream(r.Context(), rt, true)
	if err != nil {
		p.noStream(w, r, rt, err)
		return
	}
	answer, err := p.upgrade(r, rt, up)
	if err != nil {
		up.end()
		if left, ok := p.mute.Turn(p.now()); ok {
			p.log.InfoContext(r.Context(), "app: no answer to a websocket", "job", rt.grant.Load().Job, "error", err, "left_out", left)
		}
		p.problem(w, r, pageBroken)
		return
	}
	if answer.StatusCode != http.StatusSwitchingProtocols {
		defer up.end()
		copyAnswer(w.Header(), answer.Header, r.Host)
		w.WriteHeader(answer.StatusCode)
		_ = copyBody(w, r, answer, up) // a refusal that is cut is still one
		return
	}
	if err := p.join(w, r, up, answer); err != nil {
		up.end()
		if left, ok := p.unopened.Turn(p.now()); ok {
			p.log.InfoContext(r.Context(), "websocket: not opened", "error", err, "left_out", left)
		}
	}
}

func (p *Proxy) upgrade(r *http.Request, rt *route, up *upstream) (*http.Response, error) {
	_ = up.conn.SetDeadline(time.Now().Add(writePatience)) // if it fails, so does the write
	out := writers.Get().(*bufio.Writer)
	defer writers.Put(out)
	out.Reset(up.conn)
	writeHead(out, r, rt.grant.Load())
	out.WriteString("Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	if err := out.Flush(); err != nil {
		return nil, err
	}
	answer, err := readAnswer(up, r)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode == http.StatusSwitchingProtocols && !strings.EqualFold(answer.Header.Get("Upgrade"), "websocket") {
		return nil, errors.New("the app switched to another protocol")
	}
	return answer, up.conn.SetDeadline(time.Time{})
}

// join takes the browser's connection over and lets bytes pass both ways.
func (p *Proxy) join(w http.ResponseWriter, r *http.Request, up *upstream, answer *http.Response) error {
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return err
	}
	secure, ok := conn.(*tls.Conn)
	var quiet *quietConn
	if ok {
		quiet, ok = secure.NetConn().(*quietConn)
	}
	if !ok {
		_ = conn.Close() // there is no such listener outside of mistakes
		return errors.New("the connection did not come from our listener")
	}
	if err := up.hold(quiet); err != nil {
		return err
	}
	head := http.Header{}
	copyAnswer(head, answer.Header, r.Host)
	head["Connection"], head["Upgrade"] = []string{"Upgrade"}, []string{"websocket"}
	_ = secure.SetDeadline(time.Now().Add(writePatience)) // if it fails, so does the write
	out := buffered.Writer
	out.WriteString("HTTP/1.1 101 Switching Protocols\r\n")
	if err := head.Write(out); err != nil {
		return err
	}
	out.WriteString("\r\n")
	if err := out.Flush(); err != nil {
		return err
	}
	early, err := pending(buffered.Reader)
	if err == nil && len(early) > 0 {
		_, err = up.conn.Write(early)
	}
	if err != nil {
		return err
	}
	early, err = pending(up.reader)
	if err == nil && len(early) > 0 {
		_, err = secure.Write(early)
	}
	if err != nil {
		return err
	}
	_ = secure.SetDeadline(time.Time{}) // a failure shows in the first write
	up.reader, up.meter = nil, nil
	p.counts.websockets.Add(1)
	p.counts.open.Add(1)
	s := &socket{up: up, open: &p.counts.open}
	quiet.quiet.Store(true)
	up.quiet.quiet.Store(true)
	go s.pump(up.conn, secure, quiet)
	go s.pump(secure, up.conn, up.quiet)
	return nil
}

// pending is what a reader has read beyond what was wanted of it.
func pending(r *bufio.Reader) ([]byte, error) {
	n := r.Buffered()
	if n == 0 {
		return nil, nil
	}
	early := make([]byte, n)
	_, err := io.ReadFull(r, early)
	return early, err
}

// socket is an open websocket: two connections and who of them has ended.
type socket struct {
	up    *upstream
	open  *atomic.Int64
	ended atomic.Int32
}

// pump passes bytes from one side to the other, and holds no buffer while there
// are none.
func (s *socket) pump(dst, src *tls.Conn, quiet *quietConn) {
	err := drain(dst, src)
	for wouldBlock(err) {
		if err = quiet.wait(); err == nil {
			err = drain(dst, src)
		}
	}
	if s.ended.Add(1) == 2 {
		s.up.end()
		s.open.Add(-1)
		return
	}
	if !errors.Is(err, io.EOF) || dst.CloseWrite() != nil {
		s.up.close()
		return
	}
	late := time.Now().Add(farewell)
	_ = dst.SetReadDeadline(late) // if it fails, the connection is gone
}

// drain passes on what is there, down to the last byte that crypto/tls holds,
// and returns why it stopped.
func drain(dst net.Conn, src *tls.Conn) error {
	buffer := socketBuffers.Get().(*[socketSize]byte)
	defer socketBuffers.Put(buffer)
	for {
		n, err := src.Read(buffer[:])
		if n > 0 {
			if err := dst.SetWriteDeadline(time.Now().Add(writePatience)); err != nil {
				return err
			}
			if _, err := dst.Write(buffer[:n]); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
	}
}
