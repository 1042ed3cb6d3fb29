package mtls_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/carme-hpc/carme/internal/mtls"
	"github.com/carme-hpc/carme/internal/mtls/mtlstest"
)

const proto = "carme-test/1"

// serve answers each connection with one byte, after its handshake.
func serve(t *testing.T, cfg *tls.Config) string {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close() //nolint:errcheck // a test's connection
				if _, err := c.Write([]byte{1}); err != nil {
					return
				}
				_, _ = io.Copy(io.Discard, c)
			}()
		}
	}()
	return l.Addr().String()
}

// dial connects and reads the server's byte: with TLS 1.3 a client learns only
// then that it was refused.
func dial(t *testing.T, addr string, cfg *tls.Config) (tls.ConnectionState, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	d := tls.Dialer{NetDialer: &net.Dialer{}, Config: cfg}
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer c.Close() //nolint:errcheck // a test's connection
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		return tls.ConnectionState{}, err
	}
	return c.(*tls.Conn).ConnectionState(), nil
}

func portalsOnly(id mtls.Identity) error {
	if id.Role != mtls.RolePortal {
		return errors.New("not a portal")
	}
	return nil
}

func node(name string) mtls.Identity { return mtls.Identity{Role: mtls.RoleNode, Name: name} }

func TestServer_takes_only_the_roles_that_are_allowed(t *testing.T) {
	ca := mtlstest.New(t)
	addr := serve(t, ca.Open(t, mtls.RoleNode, "n1").Server([]string{proto}, portalsOnly))
	for role, want := range map[string]bool{mtls.RolePortal: true, mtls.RoleBackend: false, mtls.RoleNode: false} {
		_, err := dial(t, addr, ca.Open(t, role, "p").Client(node("n1"), proto))
		if (err == nil) != want {
			t.Errorf("%s: error is %v", role, err)
		}
	}
}

func TestServer_refuses(t *testing.T) {
	ca, other := mtlstest.New(t), mtlstest.New(t)
	addr := serve(t, ca.Open(t, mtls.RoleNode, "n1").Server([]string{proto}, portalsOnly))
	portal := mtls.Identity{Role: mtls.RolePortal, Name: "p"}
	open := func(change func(*x509.Certificate)) *tls.Config {
		dir := t.TempDir()
		template := mtlstest.Template(t, portal.URI())
		change(template)
		ca.Write(t, dir, template)
		s, err := mtls.Open(mtls.In(dir), nil)
		if err != nil {
			t.Fatal(err)
		}
		return s.Client(node("n1"), proto)
	}
	foreign := other.Issue(t, mtls.RolePortal, "p")
	if err := os.WriteFile(mtls.In(foreign).CA, ca.PEM, 0o600); err != nil {
		t.Fatal(err)
	}
	stranger, err := mtls.Open(mtls.In(foreign), nil)
	if err != nil {
		t.Fatal(err)
	}
	bare, err := mtls.Open(mtls.Files{CA: mtls.In(foreign).CA}, nil)
	if err != nil {
		t.Fatal(err)
	}
	old := ca.Open(t, mtls.RolePortal, "p").Client(node("n1"), proto)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	for name, cfg := range map[string]*tls.Config{
		"no certificate":         bare.Client(node("n1"), proto),
		"another CA":             stranger.Client(node("n1"), proto),
		"an expired certificate": open(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }),
		"a server's certificate": open(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }),
		"TLS 1.2":                old,
		"no protocol":            ca.Open(t, mtls.RolePortal, "p").Client(node("n1")),
		"another protocol":       ca.Open(t, mtls.RolePortal, "p").Client(node("n1"), "h2"),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := dial(t, addr, cfg); err == nil {
				t.Error("was taken")
			}
		})
	}
}

func TestServer_checks_the_role_of_a_resumed_session(t *testing.T) {
	ca := mtlstest.New(t)
	server := ca.Open(t, mtls.RoleNode, "n1")
	allowed := true
	addr := serve(t, server.Server([]string{proto}, func(mtls.Identity) error {
		if !allowed {
			return errors.New("not any more")
		}
		return nil
	}))
	cfg := ca.Open(t, mtls.RolePortal, "p").Client(node("n1"), proto)
	for i := range 3 {
		state, err := dial(t, addr, cfg)
		if err != nil || state.DidResume != (i > 0) {
			t.Fatalf("connection %d: resumed %v, error %v", i, state.DidResume, err)
		}
	}
	allowed = false
	if _, err := dial(t, addr, cfg); err == nil {
		t.Error("a resumed session was not asked for its role")
	}
}

func TestClient_talks_to_the_expected_server_only(t *testing.T) {
	ca, other := mtlstest.New(t), mtlstest.New(t)
	all := func(mtls.Identity) error { return nil }
	addr := serve(t, ca.Open(t, mtls.RoleNode, "n1").Server([]string{proto}, all))
	fake := serve(t, other.Open(t, mtls.RoleNode, "n1").Server([]string{proto}, all))
	client := ca.Open(t, mtls.RolePortal, "p")
	for name, c := range map[string]struct {
		addr   string
		expect mtls.Identity
		want   bool
	}{
		"the right one":         {addr, node("n1"), true},
		"any node":              {addr, mtls.Identity{Role: mtls.RoleNode}, true},
		"another node":          {addr, node("n2"), false},
		"another role":          {addr, mtls.Identity{Role: mtls.RoleBackend, Name: "n1"}, false},
		"the name, another CA":  {fake, node("n1"), false},
		"any node, another CA ": {fake, mtls.Identity{Role: mtls.RoleNode}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := dial(t, c.addr, client.Client(c.expect, proto)); (err == nil) != c.want {
				t.Errorf("error is %v", err)
			}
		})
	}
}

func TestOptionalServer_says_who_the_client_is(t *testing.T) {
	ca := mtlstest.New(t)
	seen := make(chan string, 1)
	cfg := ca.Open(t, mtls.RoleBackend, "b").OptionalServer([]string{proto})
	l, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if err := c.(*tls.Conn).HandshakeContext(context.Background()); err != nil {
				seen <- "refused"
			} else {
				state := c.(*tls.Conn).ConnectionState()
				id, ok := mtls.PeerIdentity(&state)
				if _, err := c.Write([]byte{1}); err != nil || !ok {
					seen <- "nobody"
				} else {
					seen <- id.String()
				}
			}
			_ = c.Close()
		}
	}()
	b := mtls.Identity{Role: mtls.RoleBackend, Name: "b"}
	bare, err := mtls.Open(mtls.Files{CA: mtls.In(ca.Issue(t, mtls.RoleNode, "x")).CA}, nil)
	if err != nil {
		t.Fatal(err)
	}
	nodeCfg := ca.Open(t, mtls.RoleNode, "n1").Client(b, proto)
	for _, c := range []struct {
		cfg  *tls.Config
		want string
	}{{bare.Client(b, proto), "nobody"}, {nodeCfg, "carme://node/n1"}, {nodeCfg, "carme://node/n1"}} {
		if _, err := dial(t, l.Addr().String(), c.cfg); err != nil {
			t.Error(err)
		}
		if got := <-seen; got != c.want {
			t.Errorf("client is %s, want %s", got, c.want)
		}
	}
}

func TestStore_takes_new_files_and_keeps_the_last_good_ones(t *testing.T) {
	ca := mtlstest.New(t)
	dir := ca.Issue(t, mtls.RoleNode, "n1")
	var problem error
	s, err := mtls.Open(mtls.In(dir), func(err error) { problem = err })
	if err != nil {
		t.Fatal(err)
	}
	clock := time.Now()
	s.SetNow(func() time.Time { return clock })
	addr := serve(t, s.Server([]string{proto}, portalsOnly))
	client := ca.Open(t, mtls.RolePortal, "p").Client(node("n1"), proto)
	client.ClientSessionCache = nil
	serial := func() string {
		t.Helper()
		clock = clock.Add(2 * time.Second)
		state, err := dial(t, addr, client)
		if err != nil {
			t.Fatal(err)
		}
		return state.PeerCertificates[0].SerialNumber.String()
	}
	first := serial()
	if serial() != first || problem != nil {
		t.Errorf("changed without a change (%v)", problem)
	}
	// Between the two renames of a rotation the key is not that of the certificate.
	kept, err := os.ReadFile(mtls.In(dir).Cert)
	if err != nil {
		t.Fatal(err)
	}
	ca.Write(t, dir, mtlstest.Template(t, node("n1").URI()))
	renewed, err := os.ReadFile(mtls.In(dir).Cert)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(mtls.In(dir).Cert, kept, 0o600); err != nil {
		t.Fatal(err)
	}
	if serial() != first || problem == nil {
		t.Errorf("a certificate without its key was taken, or nobody told (%v)", problem)
	}
	if err := os.WriteFile(mtls.In(dir).Cert, renewed, 0o600); err != nil {
		t.Fatal(err)
	}
	if serial() == first {
		t.Error("the new certificate was not taken")
	}
	if err := os.Remove(mtls.In(dir).CA); err != nil {
		t.Fatal(err)
	}
	if serial() == first {
		t.Error("the old certificate came back")
	}
}

func TestServer_forgets_sessions_of_a_CA_that_is_gone(t *testing.T) {
	old, fresh := mtlstest.New(t), mtlstest.New(t)
	dir := old.Issue(t, mtls.RoleNode, "n1")
	s, err := mtls.Open(mtls.In(dir), nil)
	if err != nil {
		t.Fatal(err)
	}
	addr := serve(t, s.Server([]string{proto}, portalsOnly))
	clientDir := old.Issue(t, mtls.RolePortal, "p")
	if err := os.WriteFile(mtls.In(clientDir).CA, append(append([]byte{}, old.PEM...), fresh.PEM...), 0o600); err != nil {
		t.Fatal(err)
	}
	client, err := mtls.Open(mtls.In(clientDir), nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg := client.Client(node("n1"), proto)
	if _, err := dial(t, addr, cfg); err != nil {
		t.Fatal(err)
	}
	fresh.Write(t, dir, mtlstest.Template(t, node("n1").URI()))
	if err := s.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, err := dial(t, addr, cfg); err == nil {
		t.Error("a session of the old CA was resumed")
	}
}

func TestOpen_refuses(t *testing.T) {
	ca := mtlstest.New(t)
	for name, c := range map[string]struct {
		change func(files mtls.Files) error
		says   string
	}{
		"a key that others can read": {func(f mtls.Files) error { return os.Chmod(f.Key, 0o644) }, "chmod"},
		"no CA":                      {func(f mtls.Files) error { return os.WriteFile(f.CA, nil, 0o600) }, "no certificate"},
		"a missing key":              {func(f mtls.Files) error { return os.Remove(f.Key) }, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := ca.Issue(t, mtls.RoleNode, "n1")
			if err := c.change(mtls.In(dir)); err != nil {
				t.Fatal(err)
			}
			_, err := mtls.Open(mtls.In(dir), nil)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error is %v", err)
			}
		})
	}
}

func TestCertIdentity_wants_exactly_one_name_in_its_one_form(t *testing.T) {
	for text, want := range map[string]bool{
		"carme://node/n1":                          true,
		"carme://portal/login-1.uni.edu":           true,
		"":                                         false,
		"https://node/n1":                          false,
		"carme://node/":                            false,
		"carme://node":                             false,
		"carme://admin/n1":                         false,
		"carme://node/a/b":                         false,
		"carme://node/a%2Fb":                       false,
		"carme://node/../x":                        false,
		"carme://x@node/n1":                        false,
		"carme://node:1/n1":                        false,
		"carme://node/n1?x":                        false,
		"carme://node/n1#x":                        false,
		"carme:node/n1":                            false,
		"carme://NODE/n1":                          false,
		"carme://node/n1 carme://node/n2":          false,
		"carme://node/n1 carme://portal/n1":        false,
		"carme://node/n1 spiffe://x/y":             true,
		"carme://node/" + strings.Repeat("a", 254): false,
	} {
		cert := &x509.Certificate{}
		for word := range strings.FieldsSeq(text) {
			uri, err := url.Parse(word)
			if err != nil {
				t.Fatal(err)
			}
			cert.URIs = append(cert.URIs, uri)
		}
		if id, err := mtls.CertIdentity(cert); (err == nil) != want {
			t.Errorf("%q: %v, %v", text, id, err)
		}
	}
}

func TestDue_after_two_thirds_of_its_life_or_when_a_clock_was_put_back(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	leaf := &x509.Certificate{NotBefore: begin, NotAfter: begin.Add(30 * 24 * time.Hour)}
	for after, want := range map[time.Duration]bool{
		-400 * 24 * time.Hour: true, -time.Second: true, 0: false, 19 * 24 * time.Hour: false, 20 * 24 * time.Hour: true, 400 * 24 * time.Hour: true,
	} {
		if mtls.Due(leaf, begin.Add(after)) != want {
			t.Errorf("%v after its begin: %v", after, !want)
		}
	}
}
