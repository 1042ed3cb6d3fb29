package web

import (
	"bufio"
	"context"
	"crypto/sha1" //nolint:gosec // RFC 6455 has it so
	"encoding/base64"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"
)

// Part runs one of the processes that a measurement needs besides the product:
// the app, or the check that nginx asks. It returns when it fails.
func Part(ctx context.Context, kind, socket string) error {
	_ = os.Remove(socket)
	l, err := new(net.ListenConfig).Listen(ctx, "unix", socket)
	if err != nil {
		return err
	}
	handler := http.HandlerFunc(serveApp)
	if kind == "check" {
		known := map[string]bool{}
		for i := range tokens {
			known[tokenOf(i)] = true
		}
		handler = func(w http.ResponseWriter, r *http.Request) {
			if c, err := r.Cookie(cookie); err != nil || !known[c.Value] {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			w.WriteHeader(http.StatusNoContent)
		}
	}
	return (&http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}).Serve(l)
}

// tokens is how many viewers there are.
const tokens = 10000

func tokenOf(i int) string { return "tok" + strconv.Itoa(1_000_000+i) + "abcdefghijklmnopqrstuv" }

var body = make([]byte, 1<<20)

// serveApp answers GET /SIZE with so many bytes, takes any POST, and echoes on
// websockets.
func serveApp(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != "" {
		echo(w, r)
		return
	}
	if r.Method == http.MethodPost {
		n, _ := io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, strconv.FormatInt(n, 10))
		return
	}
	size, _ := strconv.ParseInt(r.URL.Path[1:], 10, 64)
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	for size > 0 {
		n, err := w.Write(body[:min(size, int64(len(body)))])
		if err != nil {
			return
		}
		size -= int64(n)
	}
}

func echo(w http.ResponseWriter, r *http.Request) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()                                                                                  //nolint:errcheck // nobody asks how
	sum := sha1.Sum([]byte(r.Header.Get("Sec-Websocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")) //nolint:gosec // as above
	_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: "+
		base64.StdEncoding.EncodeToString(sum[:])+"\r\n\r\n")
	var buffer []byte
	for {
		payload, err := readFrame(rw.Reader, &buffer)
		if err != nil {
			return
		}
		if _, err := conn.Write(frame(payload, false)); err != nil {
			return
		}
	}
}

const (
	short16 = 126
	short64 = 127
)

// frame is one binary message of a websocket.
func frame(payload []byte, masked bool) []byte {
	out := []byte{0x82}
	bit := byte(0)
	if masked {
		bit = 0x80
	}
	switch n := len(payload); {
	case n < short16:
		out = append(out, bit|byte(n))
	case n < 1<<16:
		out = binary.BigEndian.AppendUint16(append(out, bit|short16), uint16(n))
	default:
		out = binary.BigEndian.AppendUint64(append(out, bit|short64), uint64(n))
	}
	if masked {
		out = append(out, 0, 0, 0, 0) // a mask that changes nothing
	}
	return append(out, payload...)
}

// readFrame reads one, into the buffer.
func readFrame(r *bufio.Reader, buffer *[]byte) ([]byte, error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:2]); err != nil {
		return nil, err
	}
	masked, n := head[1]&0x80 != 0, uint64(head[1]&0x7f)
	var err error
	switch n {
	case short16:
		_, err = io.ReadFull(r, head[:2])
		n = uint64(binary.BigEndian.Uint16(head[:]))
	case short64:
		_, err = io.ReadFull(r, head[:])
		n = binary.BigEndian.Uint64(head[:])
	}
	if err == nil && masked {
		_, err = r.Discard(4)
	}
	if err != nil {
		return nil, err
	}
	if uint64(cap(*buffer)) < n {
		*buffer = make([]byte, n)
	}
	_, err = io.ReadFull(r, (*buffer)[:n])
	return (*buffer)[:n], err
}
