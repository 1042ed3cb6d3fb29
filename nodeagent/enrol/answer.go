package enrol

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/carme-hpc/carme/nodeagent/relay"
)

// ALPN is the protocol in which the backend dials back.
const ALPN = "carme-enrol/1"

// answerTime is how long one dial-back may take.
const answerTime = 10 * time.Second

// Server is the TLS configuration for a dial-back: the key of the request that
// waits, no certificate of the client. An error when no request waits.
func (e *Enroller) Server() (*tls.Config, error) {
	cert := e.getPending()
	if cert == nil {
		return nil, errors.New("nobody asked to enrol")
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{ALPN},
		Certificates: []tls.Certificate{*cert}, SessionTicketsDisabled: true,
	}, nil
}

// challenge is what the backend sends.
type challenge struct {
	Nonce string `json:"nonce"`
	// UID is the backend's: only that user will be able to read the credential.
	UID uint32 `json:"uid"`
}

// proof is what it gets.
type proof struct {
	Munge string `json:"munge,omitempty"`
	Error string `json:"error,omitempty"`
}

// The nonce goes into the payload between bars.
var noncePattern = regexp.MustCompile(`^[0-9a-f]{16,128}$`)

// Answer answers one dial-back. Whoever asks learns that root of this node has
// this key: that is no secret, and good for nobody else's key.
func (e *Enroller) Answer(ctx context.Context, conn *relay.Conn) {
	defer conn.TLS().Close() //nolint:errcheck // it ends either way
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	if err := conn.TCP().SetDeadline(time.Now().Add(answerTime)); err != nil {
		return
	}
	line, err := bufio.NewReader(io.LimitReader(conn.TLS(), 1024)).ReadBytes('\n')
	if err != nil {
		return
	}
	munge, err := e.prove(ctx, line)
	answer := proof{Munge: munge}
	if err != nil {
		if left, ok := e.unanswered.Turn(e.Now()); ok {
			e.Log.Warn("enrolment challenge cannot be answered", "error", err, "left_out", left)
		}
		answer.Error = err.Error()
	}
	if err := json.NewEncoder(conn.TLS()).Encode(answer); err != nil {
		e.Log.Debug("enrolment answer not sent", "error", err)
	}
}

func (e *Enroller) prove(ctx context.Context, line []byte) (string, error) {
	var c challenge
	if err := json.Unmarshal(line, &c); err != nil || !noncePattern.MatchString(c.Nonce) {
		return "", errors.New("the challenge has no nonce")
	}
	cert := e.getPending()
	if cert == nil {
		return "", errors.New("nobody asked to enrol")
	}
	uid := e.BackendUID
	if uid == 0 {
		uid = c.UID
	}
	return e.Munge(ctx, payload(c.Nonce, cert.Leaf, e.Node), uid)
}

// Munge returns a function that makes credentials by munge(1). Only uid can
// read them, unless it is 0 for not known. Whoever asks may name it: a
// credential is about this key and the asker's own nonce, and good for no other.
func Munge(program string) func(ctx context.Context, payload string, uid uint32) (string, error) {
	return func(ctx context.Context, text string, uid uint32) (string, error) {
		var args []string // the payload comes by standard input
		if uid != 0 {
			args = append(args, "--restrict-uid="+strconv.FormatUint(uint64(uid), 10))
		}
		cmd := exec.CommandContext(ctx, program, args...) //nolint:gosec // G204: the admin's setting
		cmd.Env = []string{}
		cmd.Dir = "/"
		cmd.Stdin = strings.NewReader(text)
		cmd.WaitDelay = time.Second
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("run munge: %w: %s", err, firstLine(stderr.Bytes()))
		}
		credential := strings.TrimSpace(string(out))
		if !strings.HasPrefix(credential, "MUNGE:") {
			return "", errors.New("munge printed no credential")
		}
		return credential, nil
	}
}
