package core

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/carme-hpc/carme/internal/wire"
)

// messageMax is MSG_MAX of spank/cshim/common/msg.h, in bytes.
const messageMax = 160 << 10

// anchorConn is the core's end of a socket to the anchor. The records it takes
// are listed in spank/cshim/anchor/anchor.c.
type anchorConn struct{ fd int }

// send sends one record and descriptors, which stay the caller's.
func (c anchorConn) send(rec *wire.Record, fds ...int) error {
	body, err := rec.MarshalBinary()
	if err != nil {
		return fmt.Errorf("encode a request to the anchor: %w", err)
	}
	if len(body) > messageMax {
		return fmt.Errorf("a request to the anchor has %d bytes, more than %d", len(body), messageMax)
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if err := unix.Sendmsg(c.fd, body, rights, nil, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("send to the anchor: %w", err)
	}
	return nil
}

// receive waits for one record. An answer of type "error" is an error.
func (c anchorConn) receive() (*wire.Record, error) {
	body := make([]byte, messageMax)
	for {
		// Descriptors in answers are for the plugin; without a control buffer
		// the kernel drops them.
		n, _, flags, _, err := unix.Recvmsg(c.fd, body, nil, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("receive from the anchor: %w", err)
		}
		if n == 0 {
			return nil, errors.New("the anchor has ended")
		}
		if flags&unix.MSG_TRUNC != 0 {
			return nil, errors.New("an answer of the anchor is too long")
		}
		return readAnswer(body[:n])
	}
}

func readAnswer(body []byte) (*wire.Record, error) {
	rec := new(wire.Record)
	if _, err := rec.ReadFrom(bytes.NewReader(body)); err != nil {
		return nil, fmt.Errorf("read the anchor's answer: %w", err)
	}
	if kind, _ := rec.Get("type"); kind == "error" {
		message, _ := rec.Get("message")
		return nil, fmt.Errorf("the anchor: %s", message)
	}
	return rec, nil
}

// call sends a record and waits for the answer of type want.
func (c anchorConn) call(want string, rec *wire.Record, fds ...int) (*wire.Record, error) {
	if err := c.send(rec, fds...); err != nil {
		return nil, err
	}
	answer, err := c.receive()
	if err != nil {
		return nil, err
	}
	if kind, _ := answer.Get("type"); kind != want {
		return nil, fmt.Errorf("the anchor answered %q, not %q", kind, want)
	}
	return answer, nil
}

// ofType starts a record for the anchor.
func ofType(kind string) *wire.Record {
	rec := new(wire.Record)
	rec.Add("type", kind)
	return rec
}
