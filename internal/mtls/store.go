package mtls

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Files are where a daemon keeps its certificate.
type Files struct {
	// Cert is the PEM chain, Key its PEM key; both empty for a client that has
	// none yet.
	Cert string
	Key  string
	// CA has the PEM certificates of the CA that peers must have.
	CA string
}

// In are the usual names in a directory.
func In(dir string) Files {
	return Files{Cert: dir + "/cert.pem", Key: dir + "/key.pem", CA: dir + "/ca.pem"}
}

const (
	// lookEvery is how often the files are looked at, at most.
	lookEvery = time.Second
	// ticketLife is how long the key of session tickets is used.
	ticketLife = 12 * time.Hour
)

// Store holds a certificate and the CA, and reads them again when the files
// change. Files that cannot be used are reported, and the last good ones stay
// in force: cert.pem and key.pem are replaced one after the other.
type Store struct {
	files Files
	now   func() time.Time
	// problem is told of files that cannot be used.
	problem func(error)

	current atomic.Pointer[material]
	looked  atomic.Int64

	mu    sync.Mutex
	state [3]fileState
}

// material is what the files held at one time.
type material struct {
	cert *tls.Certificate // nil without one
	pool *x509.CertPool
	// made is when; it numbers generations of session tickets.
	made time.Time
}

type fileState struct {
	inode uint64
	size  int64
	mtime int64
}

// Open reads the files. Later problems with them go to problem, which may be
// nil.
func Open(files Files, problem func(error)) (*Store, error) {
	if problem == nil {
		problem = func(error) {}
	}
	s := &Store{files: files, now: time.Now, problem: problem}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.load(); err != nil {
		return nil, err
	}
	return s, nil
}

// Reload reads the files now; what was in force stays so if they cannot be used.
func (s *Store) Reload() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.load()
}

// Leaf is the own certificate in force, nil without one.
func (s *Store) Leaf() *x509.Certificate {
	if cert := s.get().cert; cert != nil {
		return cert.Leaf
	}
	return nil
}

// get returns the files' content, read again if they have changed.
func (s *Store) get() *material {
	now := s.now()
	last := s.looked.Load()
	if d := now.Sub(time.Unix(0, last)); d >= 0 && d < lookEvery || !s.looked.CompareAndSwap(last, now.UnixNano()) {
		return s.current.Load()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if state, err := s.stat(); err != nil || state != s.state {
		if err := s.load(); err != nil {
			s.problem(err)
		}
	}
	return s.current.Load()
}

func (s *Store) stat() (all [3]fileState, err error) {
	for i, name := range []string{s.files.Cert, s.files.Key, s.files.CA} {
		if name == "" {
			continue
		}
		info, err := os.Stat(name)
		if err != nil {
			return all, err
		}
		all[i] = fileState{size: info.Size(), mtime: info.ModTime().UnixNano()}
		if sys, ok := info.Sys().(*syscall.Stat_t); ok {
			all[i].inode = sys.Ino
		}
	}
	return all, nil
}

func (s *Store) load() error {
	// The state first: files that change while they are read are read again.
	state, err := s.stat()
	if err != nil {
		return fmt.Errorf("read certificate: %w", err)
	}
	m := &material{pool: x509.NewCertPool(), made: s.now()}
	ca, err := os.ReadFile(s.files.CA)
	if err != nil {
		return fmt.Errorf("read CA: %w", err)
	}
	if !m.pool.AppendCertsFromPEM(ca) {
		return fmt.Errorf("read CA: no certificate in %s", s.files.CA)
	}
	if s.files.Cert != "" {
		if m.cert, err = loadPair(s.files); err != nil {
			return err
		}
	}
	s.state = state
	s.current.Store(m)
	s.looked.Store(s.now().UnixNano())
	return nil
}

func loadPair(files Files) (*tls.Certificate, error) {
	info, err := os.Stat(files.Key)
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("read key: others can read %s; run: chmod o= %s", files.Key, files.Key)
	}
	cert, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		return nil, fmt.Errorf("read certificate %s: %w", files.Cert, err)
	}
	if _, err := CertIdentity(cert.Leaf); err != nil {
		return nil, fmt.Errorf("read certificate %s: %w", files.Cert, err)
	}
	return &cert, nil
}

// Server is the configuration of a server that takes clients with a certificate
// whose identity allow does not refuse, and one of the protocols alpn if there
// are any. allow is called for resumed connections too, and must not block.
func (s *Store) Server(alpn []string, allow func(Identity) error) *tls.Config {
	return s.server(alpn, tls.RequireAndVerifyClientCert, func(state tls.ConnectionState) error {
		id, err := clientIdentity(state)
		if err != nil {
			return err
		}
		if len(alpn) > 0 && state.NegotiatedProtocol == "" {
			return errors.New("peer does not name its protocol")
		}
		return allow(id)
	})
}

// OptionalServer is the configuration of a server that takes clients without a
// certificate too. One that is shown must be Carme's. Who the client is says
// PeerIdentity.
func (s *Store) OptionalServer(alpn []string) *tls.Config {
	return s.server(alpn, tls.VerifyClientCertIfGiven, func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 {
			return nil
		}
		_, err := clientIdentity(state)
		return err
	})
}

func clientIdentity(state tls.ConnectionState) (Identity, error) {
	if len(state.PeerCertificates) == 0 || len(state.VerifiedChains) == 0 {
		return Identity{}, errNoPeer
	}
	return CertIdentity(state.PeerCertificates[0])
}

func (s *Store) server(alpn []string, auth tls.ClientAuthType, verify func(tls.ConnectionState) error) *tls.Config {
	type made struct {
		from *material
		cfg  *tls.Config
	}
	var last atomic.Pointer[made]
	outer := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: alpn, ClientAuth: auth, VerifyConnection: verify}
	outer.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		m := s.get()
		if m.cert == nil {
			return nil, errors.New("no certificate yet")
		}
		// Tickets die with what they were issued under, so a session of a CA
		// that is no longer trusted is not resumed.
		if l := last.Load(); l != nil && l.from == m && s.now().Sub(m.made) < ticketLife {
			return l.cfg, nil
		}
		if s.now().Sub(m.made) >= ticketLife {
			fresh := *m
			fresh.made = s.now()
			s.current.CompareAndSwap(m, &fresh)
			m = s.current.Load()
		}
		cfg := &tls.Config{
			MinVersion: tls.VersionTLS13, NextProtos: alpn, ClientAuth: auth, VerifyConnection: verify,
			Certificates: []tls.Certificate{*m.cert}, ClientCAs: m.pool,
		}
		var key [32]byte
		_, _ = rand.Read(key[:]) // never fails (crypto/rand)
		cfg.SetSessionTicketKeys([][32]byte{key})
		last.Store(&made{from: m, cfg: cfg})
		return cfg, nil
	}
	return outer
}

// Client is the configuration of a client that talks only to the server expect;
// without a Name, to any of that role. It shows the own certificate if there is
// one, and resumes sessions.
func (s *Store) Client(expect Identity, alpn ...string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: alpn,
		// It names the cached session; the server's name is its URI.
		ServerName:         expect.Role + "." + expect.Name,
		ClientSessionCache: tls.NewLRUClientSessionCache(64),
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if m := s.get(); m.cert != nil {
				return m.cert, nil
			}
			return &tls.Certificate{}, nil
		},
		// crypto/tls would look for a DNS name. VerifyConnection below checks the
		// chain against the CA in force, and the identity, on each connection.
		InsecureSkipVerify: true, //nolint:gosec // G402: see above
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 {
				return errNoPeer
			}
			id, err := s.verify(state.PeerCertificates, x509.ExtKeyUsageServerAuth)
			if err != nil {
				return err
			}
			if id.Role != expect.Role || expect.Name != "" && id.Name != expect.Name {
				return fmt.Errorf("server is %s, not %s", id, expect)
			}
			if len(alpn) > 0 && state.NegotiatedProtocol == "" {
				return fmt.Errorf("server %s does not speak %s", id, alpn[0])
			}
			return nil
		},
	}
}

func (s *Store) verify(chain []*x509.Certificate, usage x509.ExtKeyUsage) (Identity, error) {
	between := x509.NewCertPool()
	for _, cert := range chain[1:] {
		between.AddCert(cert)
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{
		Roots: s.get().pool, Intermediates: between, CurrentTime: s.now(), KeyUsages: []x509.ExtKeyUsage{usage},
	}); err != nil {
		return Identity{}, fmt.Errorf("verify peer: %w", err)
	}
	return CertIdentity(chain[0])
}

// Missing reports whether an error of Open is that there is no certificate yet.
func Missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
