package enrol

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	mathrand "math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/carme-hpc/carme/internal/logx"
	"github.com/carme-hpc/carme/internal/mtls"
	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/nodeagent/upstream"
)

// Options are what an Enroller needs to know.
type Options struct {
	Node string
	// State is the directory of the certificate.
	State string
	// CA is the file with the CA for the first contact.
	CA string
	// Address is the backend's, Backend who it must be.
	Address string
	Backend mtls.Identity
	// JoinToken is a file that may have a join token.
	JoinToken string
	// BackendUID is who may read the credential; 0: whom the backend names.
	BackendUID uint32
	// Munge makes a credential over a payload that uid can read.
	Munge func(ctx context.Context, payload string, uid uint32) (string, error)
	Keys  *Keys
	Now   func() time.Time
	Log   *slog.Logger
}

// Enroller keeps the certificate.
type Enroller struct {
	Options

	store atomic.Pointer[mtls.Store]
	ready chan struct{}
	// Renewed, if set before Run, is called after the certificate changed.
	Renewed func()

	unanswered logx.Seldom

	mu      sync.Mutex
	pending *tls.Certificate // of the request that waits for its answer
}

const (
	// lookEvery is how often it is asked whether the certificate is due.
	lookEvery = time.Minute
	// enrolTime is how long the backend may take: it dials back.
	enrolTime = 30 * time.Second
	// Between two attempts.
	firstPause   = 2 * time.Second
	longestPause = time.Minute
)

// New opens the certificate that is there, if it can be used.
func New(o Options) (*Enroller, error) {
	e := &Enroller{Options: o, ready: make(chan struct{})}
	if err := os.MkdirAll(filepath.Join(o.State, "certs"), 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	if err := e.open(); err != nil && !mtls.Missing(err) {
		o.Log.Warn("certificate cannot be used; asking for another", "error", err)
	}
	return e, nil
}

// current is a link to the directory of the certificate in force, so that
// certificate, key and CA change at once.
func (e *Enroller) current() string { return filepath.Join(e.State, "certs", "current") }

func (e *Enroller) open() error {
	store, err := mtls.Open(mtls.In(e.current()), func(err error) { e.Log.Warn("certificate cannot be read again", "error", err) })
	if err != nil {
		return err
	}
	if err := e.usable(store.Leaf()); err != nil {
		return err
	}
	if e.store.Swap(store) == nil {
		close(e.ready)
	}
	return nil
}

func (e *Enroller) identity() mtls.Identity {
	return mtls.Identity{Role: mtls.RoleNode, Name: e.Node}
}

func (e *Enroller) usable(leaf *x509.Certificate) error {
	return mtls.Usable(leaf, e.identity(), e.Now())
}

// Store has the certificate, nil before there is one.
func (e *Enroller) Store() *mtls.Store { return e.store.Load() }

// Ready is closed when there is a certificate.
func (e *Enroller) Ready() <-chan struct{} { return e.ready }

// Run gets a certificate and renews it until ctx ends.
func (e *Enroller) Run(ctx context.Context) {
	wait := firstPause
	for {
		next := lookEvery
		if err := e.step(ctx); err != nil {
			if ctx.Err() != nil {
				return
			}
			e.Log.Warn("no certificate from the backend yet; trying again", "error", err, "seconds", int(wait.Seconds()))
			// Many nodes start at once.
			next = wait/2 + mathrand.N(wait) //nolint:gosec // G404: no secret
			wait = min(2*wait, longestPause)
		} else {
			wait = firstPause
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// step does what is due now.
func (e *Enroller) step(ctx context.Context) error {
	store := e.Store()
	if store == nil || e.usable(store.Leaf()) != nil {
		return e.enrol(ctx)
	}
	if !mtls.Due(store.Leaf(), e.Now()) {
		return nil
	}
	err := e.get(ctx, "/v1/agent/renew", store, "")
	if err != nil && e.Now().Before(store.Leaf().NotBefore) {
		// It was signed by a clock that was put back since: the backend takes it as
		// little as this node does.
		return e.enrol(ctx)
	}
	return err
}

func (e *Enroller) enrol(ctx context.Context) error {
	bare, err := mtls.Open(mtls.Files{CA: e.CA}, nil)
	if mtls.Missing(err) {
		return fmt.Errorf("%s is missing; copy the head node's /etc/carme/ca.pem there", e.CA)
	}
	if err != nil {
		return err
	}
	joinToken, err := os.ReadFile(e.JoinToken)
	if err == nil {
		err := e.get(ctx, "/v1/join", bare, logx.Secret(strings.TrimSpace(string(joinToken))))
		if status := (*upstream.StatusError)(nil); !errors.As(err, &status) {
			return err
		}
		// It is good once, for an hour. MUNGE may do.
		e.Log.Warn("join token was refused; trying MUNGE", "file", e.JoinToken, "error", err)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read join token: %w", err)
	}
	return e.get(ctx, "/v1/agent/enrol", bare, "")
}

// get asks for a certificate for a new key, and takes it.
func (e *Enroller) get(ctx context.Context, path string, store *mtls.Store, joinToken logx.Secret) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make key: %w", err)
	}
	id := e.identity()
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{id.URI()}, DNSNames: []string{e.Node}}, key)
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	self, err := selfSigned(key, id, e.Now())
	if err != nil {
		return err
	}
	e.setPending(self)
	defer e.setPending(nil)
	client := upstream.New(e.Address, store, e.Backend)
	defer client.Close()
	var answer api.Enrolled
	if err := client.Post(ctx, enrolTime, path, api.Enrol{
		Role: mtls.RoleNode, Name: e.Node, CSR: csr, JoinToken: string(joinToken),
	}, &answer); err != nil {
		return err
	}
	if err := e.install(key, answer); err != nil {
		return fmt.Errorf("take certificate: %w", err)
	}
	if err := e.Keys.Set(answer.RouteKeys); err != nil {
		e.Log.Warn("route keys of the backend cannot be used", "error", err)
	}
	leaf := e.Store().Leaf()
	e.Log.Info("certificate taken", "serial", leaf.SerialNumber.Text(16), "expires", leaf.NotAfter)
	if e.Renewed != nil {
		e.Renewed()
	}
	return nil
}

// install puts key and certificate beside the ones in force and switches the
// link.
func (e *Enroller) install(key *ecdsa.PrivateKey, answer api.Enrolled) error {
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	leaf, err := mtls.Accept(&key.PublicKey, answer.Certificate, answer.CA, e.identity(), e.Now())
	if err != nil {
		return err
	}
	name := leaf.SerialNumber.Text(16)
	dir := filepath.Join(e.State, "certs", name)
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	files := mtls.In(dir)
	for file, data := range map[string][]byte{
		files.Cert: answer.Certificate, files.CA: answer.CA,
		files.Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}),
	} {
		if err := WriteFile(file, data, true); err != nil {
			return err
		}
	}
	link := e.current() + ".new"
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(name, link); err != nil {
		return err
	}
	if err := os.Rename(link, e.current()); err != nil {
		return err
	}
	e.removeOthers(name)
	// The same store goes on, so that those who hold it go on too.
	if store := e.Store(); store != nil {
		return store.Reload()
	}
	return e.open()
}

// removeOthers removes certificates that are not in force any more.
func (e *Enroller) removeOthers(name string) {
	entries, err := os.ReadDir(filepath.Join(e.State, "certs"))
	if err != nil {
		return
	}
	for _, entry := range entries {
		if entry.IsDir() && entry.Name() != name {
			_ = os.RemoveAll(filepath.Join(e.State, "certs", entry.Name()))
		}
	}
}

func selfSigned(key *ecdsa.PrivateKey, id mtls.Identity, now time.Time) (*tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), URIs: []*url.URL{id.URI()}, DNSNames: []string{id.Name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

func (e *Enroller) setPending(cert *tls.Certificate) {
	e.mu.Lock()
	e.pending = cert
	e.mu.Unlock()
}

func (e *Enroller) getPending() *tls.Certificate {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.pending
}

// payload is what the credential is made over. The backend builds the same.
func payload(nonce string, leaf *x509.Certificate, node string) string {
	spki := mtls.SPKIHash(leaf)
	return strings.Join([]string{"carme-enrol", nonce, hex.EncodeToString(spki[:]), node}, "|")
}

// firstLine cuts one line out of a program's output.
func firstLine(out []byte) string {
	line, _, _ := bytes.Cut(bytes.TrimSpace(out), []byte{'\n'})
	return string(line)
}
