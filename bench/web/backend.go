package web

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"net"
	"net/http"
	"sync"
	"time"
)

// Names that all parts agree on.
const (
	cluster  = "bench"
	node     = "n1"
	label    = "s-aaaaaaaaaaaaaaaaaaaaaaaaaa"
	apps     = "apps.bench.test"
	instance = "0123456789abcdef0123456789abcdef"
	appName  = "bench"
	job      = 7
	keyID    = "k"
	cookie   = "__Host-carme-app"
)

// backend answers what portal and agent ask, without a database behind it.
type backend struct {
	key   ed25519.PrivateKey
	agent string // address
	stop  func()

	mu      sync.Mutex
	seq     int64
	changed chan struct{}
	lines   []*revocation
}

type revocation struct {
	Seq   int64  `json:"seq"`
	Kind  string `json:"kind"`
	Value string `json:"value,omitempty"`
}

func startBackend(config *tls.Config, address, agent string) (*backend, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	b := &backend{key: key, agent: agent, changed: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/grants", b.grant)
	mux.HandleFunc("GET /v1/revocations", b.revocations)
	mux.HandleFunc("POST /v1/agent/report", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, map[string]any{"route_keys": map[string][]byte{keyID: key.Public().(ed25519.PublicKey)}, "every_seconds": 5})
	})
	config = config.Clone()
	config.NextProtos = []string{"h2", "http/1.1"}
	l, err := tls.Listen("tcp", address, config)
	if err != nil {
		return nil, err
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute, TLSConfig: config}
	go server.Serve(l) //nolint:errcheck // it ends with the run
	b.stop = func() { _ = server.Close() }
	return b, nil
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	_, _ = w.Write(data) // the client notices
}

func (b *backend) grant(w http.ResponseWriter, r *http.Request) {
	var in struct{ Host, Token string }
	if json.NewDecoder(r.Body).Decode(&in) != nil || len(r.TLS.PeerCertificates) == 0 || in.Host != label {
		http.Error(w, "no", http.StatusForbidden)
		return
	}
	now := time.Now()
	expires := now.Add(110 * time.Second)
	reply(w, map[string]any{
		"id": "g", "session": in.Token, "user": "alice", "viewer": "alice", "mode": "full", "job": "7", "app": appName, "addr": b.agent, "node": node,
		"token":   routeToken(b.key, sha256.Sum256(r.TLS.PeerCertificates[0].RawSubjectPublicKeyInfo), now.Add(-5*time.Second), expires),
		"expires": expires, "end": now.Add(24 * time.Hour),
	})
}

// routeToken is the token that agents take (internal/token).
func routeToken(key ed25519.PrivateKey, portal [32]byte, from, to time.Time) []byte {
	t := []byte{1}
	for _, s := range []string{keyID, cluster, node, instance, appName, "alice", "full", "g"} {
		t = binary.BigEndian.AppendUint16(t, uint16(len(s))) //nolint:gosec // short
		t = append(t, s...)
	}
	t = binary.BigEndian.AppendUint32(t, job)
	t = binary.BigEndian.AppendUint32(t, 0)
	t = append(t, portal[:]...)
	t = binary.BigEndian.AppendUint64(t, uint64(from.UnixMilli()))
	t = binary.BigEndian.AppendUint64(t, uint64(to.UnixMilli()))
	return append(t, ed25519.Sign(key, append([]byte("carme route token 1\x00"), t...))...)
}

// revoke ends login sessions.
func (b *backend) revoke(sessions []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range sessions {
		b.seq++
		b.lines = append(b.lines, &revocation{b.seq, "session", s})
	}
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *backend) revocations(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	next := len(b.lines)
	b.mu.Unlock()
	flush := http.NewResponseController(w)
	beat := time.NewTicker(2 * time.Second)
	defer beat.Stop()
	out := json.NewEncoder(w)
	for {
		b.mu.Lock()
		lines, seq, changed := b.lines[next:], b.seq, b.changed
		next = len(b.lines)
		b.mu.Unlock()
		for _, line := range lines {
			if err := out.Encode(line); err != nil {
				return
			}
		}
		if len(lines) == 0 {
			if err := out.Encode(&revocation{Seq: seq, Kind: "heartbeat"}); err != nil {
				return
			}
		}
		if flush.Flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-changed:
		case <-beat.C:
		}
	}
}

// freePort is a port of loopback that nobody has now.
func freePort(ctx context.Context) (string, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	_ = l.Close()
	return port, err
}
