package web

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// target is one way to the app.
type target struct {
	name    string
	address string
	host    string // with the port
	tls     *tls.Config
	cpu     func() time.Duration // processor time of the programs on the way
}

// conn is a browser's connection, as cheap as can be: it shares the machine
// with what is measured.
type conn struct {
	tls     *tls.Conn
	in      *bufio.Reader
	request []byte
	buffer  []byte
}

func (t target) head(method, path string, viewer int) string {
	return method + " " + path + " HTTP/1.1\r\nHost: " + t.host + "\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n" +
		"Accept: */*\r\nAccept-Language: en\r\nAccept-Encoding: gzip, deflate, br\r\nSec-Fetch-Dest: empty\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Site: same-origin\r\n" +
		"Cookie: _xsrf=2|0123456789abcdef; " + cookie + "=" + tokenOf(viewer) + "\r\n"
}

func (t target) dial(ctx context.Context, buffer int) (*conn, error) {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: t.tls}
	c, err := d.DialContext(ctx, "tcp", t.address)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", t.name, err)
	}
	return &conn{tls: c.(*tls.Conn), in: bufio.NewReaderSize(c, buffer)}, nil
}

// answer reads an answer and throws its body away.
func (c *conn) answer() (status, size int64, err error) {
	size = -1
	for first := true; ; first = false {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return 0, 0, err
		}
		line = bytes.TrimRight(line, "\r\n")
		switch {
		case len(line) == 0:
			if size < 0 {
				return status, 0, errors.New("the answer has no length")
			}
			_, err := io.CopyN(io.Discard, c.in, size)
			return status, size, err
		case first && len(line) > 12:
			status, err = strconv.ParseInt(string(line[9:12]), 10, 64)
			if err != nil {
				return 0, 0, err
			}
		case len(line) > 15 && bytes.EqualFold(line[:15], []byte("content-length:")):
			size, err = strconv.ParseInt(string(bytes.TrimSpace(line[15:])), 10, 64)
			if err != nil {
				return 0, 0, err
			}
		}
	}
}

func (c *conn) get() (int64, error) {
	if _, err := c.tls.Write(c.request); err != nil {
		return 0, err
	}
	status, size, err := c.answer()
	if err == nil && status != 200 {
		err = fmt.Errorf("answer %d", status)
	}
	return size, err
}

// load is what many clients got done.
type load struct {
	perSecond float64 // requests
	bytes     float64 // per second
	p50       time.Duration
	cpu       time.Duration // that the programs on the way took for one
}

// requests lets clients ask for a path one request after another.
func (t target) requests(ctx context.Context, clients int, path string, lasting time.Duration) (load, error) {
	return t.drive(ctx, clients, lasting, func(viewer int) (func() (int64, error), func(), error) {
		c, err := t.dial(ctx, 64<<10)
		if err != nil {
			return nil, nil, err
		}
		c.request = []byte(t.head("GET", path, viewer) + "\r\n")
		return c.get, func() { _ = c.tls.Close() }, nil
	})
}

// echoes sends messages over websockets and waits for each to come back.
func (t target) echoes(ctx context.Context, clients int, lasting time.Duration) (load, error) {
	message := frame(make([]byte, 64), true)
	return t.drive(ctx, clients, lasting, func(viewer int) (func() (int64, error), func(), error) {
		c, err := t.open(ctx, viewer, 4<<10)
		if err != nil {
			return nil, nil, err
		}
		return func() (int64, error) { return c.echo(message) }, func() { _ = c.tls.Close() }, nil
	})
}

func (c *conn) echo(message []byte) (int64, error) {
	if _, err := c.tls.Write(message); err != nil {
		return 0, err
	}
	got, err := readFrame(c.in, &c.buffer)
	return int64(len(got)), err
}

// open opens a websocket.
func (t target) open(ctx context.Context, viewer, buffer int) (*conn, error) {
	c, err := t.dial(ctx, buffer)
	if err != nil {
		return nil, err
	}
	_, err = io.WriteString(c.tls, t.head("GET", "/ws", viewer)+"Origin: https://"+t.host+
		"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	for first := true; err == nil; first = false {
		var line []byte
		line, err = c.in.ReadSlice('\n')
		if err == nil && first && !bytes.Contains(line, []byte(" 101 ")) {
			err = fmt.Errorf("%s opens no websocket: %s", t.name, line)
		}
		if len(bytes.TrimSpace(line)) == 0 {
			break
		}
	}
	if err != nil {
		_ = c.tls.Close()
		return nil, err
	}
	return c, nil
}

// drive runs one step after another in each of several clients.
func (t target) drive(_ context.Context, clients int, lasting time.Duration, begin func(viewer int) (step func() (int64, error), end func(), err error)) (load, error) {
	steps := make([]func() (int64, error), clients)
	var ends []func()
	defer func() {
		for _, end := range ends {
			end()
		}
	}()
	for i := range steps {
		step, end, err := begin(i)
		if err != nil {
			return load{}, err
		}
		ends = append(ends, end)
		if _, err := step(); err != nil { // the way is open now
			return load{}, fmt.Errorf("%s: %w", t.name, err)
		}
		steps[i] = step
	}
	var (
		all    sync.WaitGroup
		stop   atomic.Bool
		moved  atomic.Int64
		failed = make(chan error, clients)
		took   = make([][]time.Duration, clients)
	)
	began, used := time.Now(), t.cpu()
	for i, step := range steps {
		all.Go(func() {
			before := time.Now()
			for !stop.Load() {
				n, err := step()
				if err != nil {
					failed <- fmt.Errorf("%s: %w", t.name, err)
					return
				}
				now := time.Now()
				took[i] = append(took[i], now.Sub(before))
				before = now
				moved.Add(n)
			}
		})
	}
	<-time.After(lasting)
	stop.Store(true)
	all.Wait()
	seconds, used := time.Since(began).Seconds(), t.cpu()-used
	select {
	case err := <-failed:
		return load{}, err
	default:
	}
	every := slices.Concat(took...)
	slices.Sort(every)
	if len(every) == 0 {
		return load{}, fmt.Errorf("%s: nothing was done", t.name)
	}
	return load{float64(len(every)) / seconds, float64(moved.Load()) / seconds, every[len(every)/2], used / time.Duration(len(every))}, nil
}
