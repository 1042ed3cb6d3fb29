package signer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carme-hpc/carme/internal/logx"
)

const bodyMax = 16 << 10

// tokenRequest and its answer go over the signer's socket.
type tokenRequest struct {
	User string `json:"user"`
}

type tokenAnswer struct {
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
}

type certRequest struct {
	Role string `json:"role"`
	Name string `json:"name"`
	SPKI []byte `json:"spki"`
}

type certAnswer struct {
	Certificate []byte `json:"certificate"`
	CA          []byte `json:"ca"`
}

type refusal struct {
	Error string `json:"error"`
}

// PeerUID is the uid of the process that connected to a unix socket (unix(7)).
func PeerUID(c net.Conn) (uint32, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return 0, errors.New("peer is not on a unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var errCred error
	if err := raw.Control(func(fd uintptr) { cred, errCred = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if errCred != nil {
		return 0, fmt.Errorf("read peer's uid: %w", errCred)
	}
	return cred.Uid, nil
}

// peers lets only connections of some uids through.
type peers struct {
	net.Listener

	allowed func(uid uint32) bool
	log     *slog.Logger
	refused logx.Seldom
}

// Peers returns a listener that closes connections of other uids.
func Peers(l net.Listener, allowed func(uid uint32) bool, log *slog.Logger) net.Listener {
	return &peers{Listener: l, allowed: allowed, log: log}
}

// Accept returns the next connection of an allowed uid.
func (p *peers) Accept() (net.Conn, error) {
	for {
		c, err := p.Listener.Accept()
		if err != nil {
			return nil, err
		}
		uid, err := PeerUID(c)
		if err == nil && p.allowed(uid) {
			return c, nil
		}
		if left, ok := p.refused.Turn(time.Now()); ok {
			p.log.Warn("connection refused", "peer_uid", uid, "left_out", left)
		}
		_ = c.Close() // a stranger
	}
}

// Listen makes a unix socket, in place of one that a dead process left.
func Listen(ctx context.Context, path string, mode fs.FileMode) (net.Listener, error) {
	if info, err := os.Lstat(path); err == nil && info.Mode()&fs.ModeSocket != 0 {
		d := net.Dialer{Timeout: time.Second}
		if c, err := d.DialContext(ctx, "unix", path); err == nil {
			return nil, errors.Join(fmt.Errorf("listen on %s: another process does", path), c.Close())
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("listen on %s: %w", path, err)
		}
	}
	var conf net.ListenConfig
	l, err := conf.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if err := os.Chmod(path, mode); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Serve answers on the socket until ctx ends.
func (s *Signer) Serve(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /token", func(w http.ResponseWriter, r *http.Request) {
		var in tokenRequest
		if !s.read(w, r, &in) {
			return
		}
		tok, expires, err := s.Token(r.Context(), in.User)
		s.answer(w, tokenAnswer{Token: tok, Expires: expires}, err)
	})
	mux.HandleFunc("POST /certificate", func(w http.ResponseWriter, r *http.Request) {
		var in certRequest
		if !s.read(w, r, &in) {
			return
		}
		cert, err := s.Certificate(r.Context(), in.Role, in.Name, in.SPKI)
		s.answer(w, certAnswer{Certificate: cert, CA: s.CA()}, err)
	})
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { s.answer(w, struct{}{}, nil) })
	srv := &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 20 * time.Second,
		MaxHeaderBytes: bodyMax, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
	stop := context.AfterFunc(ctx, func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = srv.Shutdown(end) // Serve's error tells
	})
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve signer: %w", err)
	}
	return nil
}

func (s *Signer) read(w http.ResponseWriter, r *http.Request, v any) bool {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, bodyMax))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		s.reply(w, http.StatusBadRequest, refusal{Error: "the request cannot be read"})
		return false
	}
	return true
}

func (s *Signer) answer(w http.ResponseWriter, v any, err error) {
	var refused RefusedError
	switch {
	case errors.As(err, &refused):
		s.reply(w, http.StatusForbidden, refusal{Error: refused.Reason})
	case err != nil:
		s.log.Error("signature failed", "err", err.Error())
		s.reply(w, http.StatusInternalServerError, refusal{Error: "signing failed; see the signer's log"})
	default:
		s.reply(w, http.StatusOK, v)
	}
}

func (s *Signer) reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.log.Warn("answer not sent", "err", err.Error())
	}
}

// Client asks a signer over its socket.
type Client struct {
	http *http.Client
}

// NewClient returns a client of the signer at that socket.
func NewClient(socket string) *Client {
	var d net.Dialer
	return &Client{http: &http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			DialContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", socket) },
			MaxIdleConns:    4,
			IdleConnTimeout: time.Minute,
		},
	}}
}

// Token asks for a token of Slurm's.
func (c *Client) Token(ctx context.Context, user string) (string, time.Time, error) {
	var out tokenAnswer
	err := c.ask(ctx, "/token", tokenRequest{User: user}, &out)
	return out.Token, out.Expires, err
}

// Certificate asks for a certificate; spki is the public key in DER.
func (c *Client) Certificate(ctx context.Context, role, name string, spki []byte) (cert, ca []byte, err error) {
	var out certAnswer
	err = c.ask(ctx, "/certificate", certRequest{Role: role, Name: name, SPKI: spki}, &out)
	return out.Certificate, out.CA, err
}

func (c *Client) ask(ctx context.Context, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("ask signer: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://signer"+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("ask signer: %w", err)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("ask signer: %w", err)
	}
	defer res.Body.Close() //nolint:errcheck // nothing was written
	raw, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("ask signer: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		var no refusal
		if err := json.Unmarshal(raw, &no); err != nil || no.Error == "" {
			return fmt.Errorf("ask signer: status %d", res.StatusCode)
		}
		return RefusedError{no.Error}
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return fmt.Errorf("ask signer: %w", err)
	}
	return nil
}
