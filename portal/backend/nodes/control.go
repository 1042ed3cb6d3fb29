package nodes

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/carme-hpc/carme/internal/mtls"
)

const (
	// controlProtocol is the ALPN name; nodeagent has the other end.
	controlProtocol = "carme-control/1"
	controlTimeout  = 8 * time.Second
	answerMax       = 1 << 20
)

// As is who a file is opened as.
type As struct {
	UID  uint32   `json:"uid"`
	GID  uint32   `json:"gid"`
	GIDs []uint32 `json:"gids"`
}

// Tail is a part of a file on a node.
type Tail struct {
	Offset int64  `json:"offset"`
	Size   int64  `json:"size"`
	Data   []byte `json:"data"`
}

// HomeState is what a node says of a home directory.
type HomeState struct {
	FreeMB  int64  `json:"free_mb"`
	TotalMB int64  `json:"total_mb"`
	Problem string `json:"problem"`
	Code    string `json:"-"` // of Problem (nodeagent/control)
}

// Control asks agents.
type Control struct {
	Certs *mtls.Store
	// Addr returns where a node's agent listens.
	Addr func(ctx context.Context, node string) (string, error)
}

// RefusedError is an agent's no.
type RefusedError struct {
	Text string
	Code string // of Text (nodeagent/control), or empty
}

// Error is the agent's reason.
func (e RefusedError) Error() string { return e.Text }

// Tail reads up to most bytes at offset; a negative one counts from the end.
func (c *Control) Tail(ctx context.Context, node string, as As, path string, offset, most int64) (Tail, error) {
	var out struct {
		status
		Tail
	}
	err := c.ask(ctx, node, struct {
		Op string `json:"op"`
		As
		Path   string `json:"path"`
		Offset int64  `json:"offset"`
		Max    int64  `json:"max"`
	}{"tail", as, path, offset, most}, &out, &out.status)
	return out.Tail, err
}

// Home looks at a home directory as its owner.
func (c *Control) Home(ctx context.Context, node string, as As, path string) (HomeState, error) {
	var out struct {
		status
		HomeState
	}
	err := c.ask(ctx, node, struct {
		Op string `json:"op"`
		As
		Path string `json:"path"`
	}{"home", as, path}, &out, &out.status)
	out.HomeState.Code = out.status.Code
	return out.HomeState, err
}

type status struct {
	OK    bool   `json:"ok"`
	Error string `json:"error"`
	Code  string `json:"code"`
}

// ask sends one line and reads one.
func (c *Control) ask(ctx context.Context, node string, in, out any, st *status) error {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	addr, err := c.Addr(ctx, node)
	if err != nil {
		return err
	}
	d := tls.Dialer{NetDialer: &net.Dialer{}, Config: c.Certs.Client(mtls.Identity{Role: mtls.RoleNode, Name: node}, controlProtocol)}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("reach agent of %s: %w", node, err)
	}
	defer conn.Close() //nolint:errcheck // one question, one answer
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	if err := json.NewEncoder(conn).Encode(in); err != nil {
		return fmt.Errorf("ask agent of %s: %w", node, err)
	}
	line, err := bufio.NewReader(io.LimitReader(conn, answerMax)).ReadBytes('\n')
	if err != nil && (!errors.Is(err, io.EOF) || len(line) == 0) {
		return fmt.Errorf("ask agent of %s: %w", node, err)
	}
	if err := json.Unmarshal(line, out); err != nil {
		return fmt.Errorf("read answer of %s: %w", node, err)
	}
	if !st.OK {
		return RefusedError{clip(st.Error), st.Code}
	}
	return nil
}
