package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/carme-hpc/carme/internal/logx"
	"github.com/carme-hpc/carme/nodeagent/relay"
)

// ALPN is the protocol's name.
const ALPN = "carme-control/1"

// Request is what the backend asks, one line of JSON per connection.
type Request struct {
	// Op is ping, tail or home.
	Op   string   `json:"op"`
	UID  uint32   `json:"uid,omitempty"`
	GID  uint32   `json:"gid,omitempty"`
	GIDs []uint32 `json:"gids,omitempty"`
	Path string   `json:"path,omitempty"`
	// Offset is where to read; below 0 that many bytes before the end.
	Offset int64 `json:"offset,omitempty"`
	// Max is how much to read, in bytes.
	Max int `json:"max,omitempty"`
}

// Answer is one line of JSON.
type Answer struct {
	OK bool `json:"ok"`
	// Error says why not, for people.
	Error string `json:"error,omitempty"`
	// Code is what Error or Problem is about, for clients with words of their own:
	// missing, denied, quota, space, readonly, server, or empty.
	Code string `json:"code,omitempty"`
	// Of tail: where Data begins, and the size of the file.
	Offset int64  `json:"offset,omitempty"`
	Size   int64  `json:"size,omitempty"`
	Data   []byte `json:"data,omitempty"`
	// Of home. Problem is empty for a home that can be written to.
	FreeMB  int64  `json:"free_mb,omitempty"`
	TotalMB int64  `json:"total_mb,omitempty"`
	Problem string `json:"problem,omitempty"`
}

const (
	// dataMax is how much of a file one answer has at most, in bytes.
	dataMax = 64 << 10
	// pathMax is PATH_MAX of Linux.
	pathMax = 4096
	// groupsMax is NGROUPS_MAX of Linux, less than what a request may hold.
	groupsMax = 4096
	// lineMax is the size of the longest line, in bytes.
	lineMax = 256 << 10
	// minUID is the first uid that may be a person's.
	minUID = 1000
	// unchanged is what setresuid(2) and setresgid(2) take for the id of before.
	unchanged = 1<<32 - 1
	// children is how many may run at once, and childrenPerUser of one user.
	children        = 32
	childrenPerUser = 4
)

// Control answers.
type Control struct {
	// Program is this program's file, Args what makes it the child.
	Program string
	Args    []string
	// Own leaves the ids as they are: for tests, which are not root.
	Own bool
	// Limit is how long a child may take.
	Limit time.Duration
	Log   *slog.Logger

	refused, unanswered logx.Seldom

	mu    sync.Mutex
	total int
	users map[uint32]int
}

// Serve answers one connection whose handshake is done, and closes it. The
// handshake must have been made with a configuration that allows the backend
// alone.
func (c *Control) Serve(ctx context.Context, conn *relay.Conn) {
	defer conn.TLS().Close() //nolint:errcheck // it ends either way
	if err := conn.TCP().SetDeadline(time.Now().Add(c.Limit + 5*time.Second)); err != nil {
		return
	}
	line, err := bufio.NewReader(io.LimitReader(conn.TLS(), lineMax)).ReadBytes('\n')
	if err != nil {
		return
	}
	answer := Answer{}
	var req Request
	if err := json.Unmarshal(line, &req); err != nil {
		answer.Error = "the request cannot be read"
	} else {
		answer = c.Do(ctx, req)
	}
	if err := json.NewEncoder(conn.TLS()).Encode(answer); err != nil {
		c.Log.Debug("answer not sent", "op", req.Op, "error", err)
	}
}

// Do answers one request.
func (c *Control) Do(ctx context.Context, req Request) Answer {
	if req.Op == "ping" {
		return Answer{OK: true}
	}
	err := check(req)
	code := ""
	if err == nil && !c.enter(req.UID) {
		code, err = codeServer, errors.New("too many files of this user are being waited for; is its file server there?")
	}
	if err != nil {
		if left, ok := c.refused.Turn(time.Now()); ok {
			c.Log.Warn("request refused", "op", req.Op, "uid", req.UID, "reason", err.Error(), "left_out", left)
		}
		return Answer{Error: err.Error(), Code: code}
	}
	answer, err := c.child(ctx, req)
	if err != nil {
		if left, ok := c.unanswered.Turn(time.Now()); ok {
			c.Log.Warn("request not answered", "op", req.Op, "uid", req.UID, "path", req.Path, "error", err, "left_out", left)
		}
		code := ""
		if errors.Is(err, errTime) {
			code = codeServer
		}
		if req.Op == "home" {
			return Answer{OK: true, Problem: "your home directory cannot be looked at: " + err.Error(), Code: code}
		}
		return Answer{Error: err.Error(), Code: code}
	}
	return answer
}

func check(req Request) error {
	switch {
	case req.Op != "tail" && req.Op != "home":
		return fmt.Errorf("%q is not a request", req.Op)
	case req.UID < minUID:
		return fmt.Errorf("user %d is not a person", req.UID)
	case req.UID == unchanged, req.GID == unchanged:
		return errors.New("the ids are nobody's")
	case req.GID == 0 || slices.Contains(req.GIDs, 0):
		return errors.New("root's group is refused")
	case len(req.GIDs) > groupsMax:
		return errors.New("too many groups")
	case len(req.Path) == 0 || len(req.Path) >= pathMax || req.Path[0] != '/' || bytes.IndexByte([]byte(req.Path), 0) >= 0:
		return errors.New("the path is not absolute")
	}
	return nil
}

func (c *Control) enter(uid uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.users == nil {
		c.users = map[uint32]int{}
	}
	if c.total >= children || c.users[uid] >= childrenPerUser {
		return false
	}
	c.total++
	c.users[uid]++
	return true
}

func (c *Control) leave(uid uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.total--
	if c.users[uid]--; c.users[uid] == 0 {
		delete(c.users, uid)
	}
}

var errTime = errors.New("the file system does not answer")

// child runs the request as its user.
func (c *Control) child(ctx context.Context, req Request) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, c.Limit)
	input, err := json.Marshal(order{Request: req, Own: c.Own})
	if err != nil {
		cancel()
		c.leave(req.UID)
		return Answer{}, fmt.Errorf("encode request: %w", err)
	}
	cmd := exec.CommandContext(ctx, c.Program, c.Args...) //nolint:gosec // G204: this program itself
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.Stdin = bytes.NewReader(input)
	out := &limitedBuffer{left: lineMax}
	cmd.Stdout = out
	// Pipes that a stuck child holds are given up.
	cmd.WaitDelay = time.Second
	// It becomes the user by itself: a program that is started as the user is one
	// that the user may trace.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	done := make(chan error, 1)
	go func() {
		defer c.leave(req.UID)
		defer cancel()
		done <- cmd.Run()
	}()
	select {
	case err = <-done:
	case <-ctx.Done():
		// Not even SIGKILL ends a process that waits for a dead file server.
		return Answer{}, errTime
	}
	var answer Answer
	if jsonErr := json.Unmarshal(out.data, &answer); jsonErr == nil && err == nil {
		return answer, nil
	}
	if ctx.Err() != nil {
		return Answer{}, errTime
	}
	return Answer{}, fmt.Errorf("the user's process has ended without an answer: %w", errors.Join(err))
}

// limitedBuffer takes what a user's process says, up to a size.
type limitedBuffer struct {
	data []byte
	left int
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if len(p) > b.left {
		return 0, errors.New("too long")
	}
	b.left -= len(p)
	b.data = append(b.data, p...)
	return len(p), nil
}
