package backend

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/carme-hpc/carme/internal/config"
	"github.com/carme-hpc/carme/internal/mtls"
)

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// site makes the files of a head node below a directory.
func site(t *testing.T) (root string, src config.Source) {
	t.Helper()
	root = t.TempDir()
	if len(root) > 60 { // a unix socket's path is short
		var err error
		if root, err = os.MkdirTemp("", "carme"); err != nil { //nolint:usetesting // see above
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(root) })
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	write(t, root+"/signer/jwt.key", string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})))
	write(t, root+"/etc/carme/signer.yaml", fmt.Sprintf("socket: %[1]s/s.sock\nstate: %[1]s/signer\nslurm_key: %[1]s/signer/jwt.key\nbackend_user: %[2]s\nmember_of: [carme-users]\n", root, me.Username))
	write(t, root+"/etc/carme/backend.yaml", fmt.Sprintf(`
cluster: c
name: localhost
listen: 127.0.0.1:0
state: %[1]s/backend
admin_socket: %[1]s/a.sock
signer_socket: %[1]s/s.sock
slurm: {url: "unix:%[1]s/slurm.sock"}
ldap: {urls: ["ldaps://127.0.0.1:1"], people: {base: dc=c}, groups: {base: dc=c}}
`, root))
	return root, config.Source{Root: root, TrustOwner: true}
}

// early makes the certificate one of tomorrow.
func early(t *testing.T, files mtls.Files) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		t.Fatal(err)
	}
	template := *pair.Leaf
	template.NotBefore, template.NotAfter = time.Now().Add(24*time.Hour), time.Now().Add(31*24*time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, pair.Leaf.PublicKey, pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(files.Cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func mustConfig(t *testing.T, src config.Source) *Config {
	t.Helper()
	cfg, err := LoadConfig(src, defaultFile)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func start(t *testing.T, src config.Source, socket string, args ...string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- command(ctx, src, args, io.Discard, io.Discard) }()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		var d net.Dialer
		if c, err := d.DialContext(ctx, "unix", socket); err == nil {
			_ = c.Close()
			break
		}
		select {
		case err := <-done:
			t.Fatalf("%v ended: %v", args, err)
		case <-deadline:
			t.Fatalf("%v does not listen", args)
		case <-tick.C:
		}
	}
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("%v: %v", args, err)
		}
	}
}

func TestA_head_node_is_set_up_and_runs(t *testing.T) {
	root, src := site(t)
	run := func(args ...string) (string, error) {
		t.Helper()
		var out bytes.Buffer
		err := command(t.Context(), src, args, &out, io.Discard)
		return out.String(), err
	}
	must := func(args ...string) string {
		t.Helper()
		out, err := run(args...)
		if err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		return out
	}
	if _, err := run(); err == nil || !strings.Contains(err.Error(), "carme-backend init") {
		t.Errorf("without init: %v", err)
	}
	must("signer", "init")
	if _, err := run("signer", "init"); err == nil {
		t.Error("a CA was replaced")
	}
	stopSigner := start(t, src, root+"/s.sock", "signer")
	defer stopSigner()
	must("init")
	must("init") // once more changes nothing
	cert, err := mtls.Open(mtls.In(root+"/backend/tls"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if id, err := mtls.CertIdentity(cert.Leaf()); err != nil || id.String() != "carme://backend/localhost" {
		t.Errorf("certificate is %v, %v", id, err)
	}
	// One that has run out while the head node was off, or that was signed before
	// its clock was put back, is replaced, and at the start too.
	cfg, err := LoadConfig(src, "/etc/carme/backend.yaml")
	if err != nil {
		t.Fatal(err)
	}
	leaf := func() string { return cert.Leaf().SerialNumber.String() }
	for _, now := range []time.Duration{0, 29 * 24 * time.Hour, -24 * time.Hour} {
		before := leaf()
		if err := renewOwn(t.Context(), cfg, time.Now().Add(now)); err != nil {
			t.Fatal(err)
		}
		if err := cert.Reload(); err != nil {
			t.Fatal(err)
		}
		if (leaf() != before) != (now != 0) {
			t.Errorf("with a clock that is wrong by %v: another certificate: %v", now, leaf() != before)
		}
	}
	settings, err := os.ReadFile(root + "/etc/carme/backend.yaml")
	if err != nil {
		t.Fatal(err)
	}
	write(t, root+"/etc/carme/backend.yaml", strings.Replace(string(settings), "name: localhost", "name: head", 1))
	must("init")
	if cert, err = mtls.Open(mtls.In(root+"/backend/tls"), nil); err != nil {
		t.Fatal(err)
	}
	if id, err := mtls.CertIdentity(cert.Leaf()); err != nil || id.String() != "carme://backend/head" {
		t.Errorf("with another name the certificate is %v, %v", id, err)
	}
	early(t, mtls.In(root+"/backend/tls"))
	stop := start(t, src, root+"/a.sock")
	for late := time.After(10 * time.Second); !cert.Leaf().NotBefore.Before(time.Now()); {
		select {
		case <-late:
			t.Fatal("it goes on with a certificate that nobody takes")
		case <-time.After(20 * time.Millisecond):
		}
		if err := cert.Reload(); err != nil {
			t.Log(err) // it is being written
		}
	}
	if tok := must("token", "--role", "portal", "--name", "p1"); len(strings.TrimSpace(tok)) != 43 {
		t.Errorf("token is %q", tok)
	}
	if _, err := run("token", "--role", "backend", "--name", "x"); err == nil {
		t.Error("a token for a backend")
	}
	var parts map[string]string
	if err := ask(t.Context(), mustConfig(t, src), http.MethodGet, "/v1/health", nil, &parts); err != nil {
		t.Fatal(err)
	}
	if parts["database"] != "" || !strings.Contains(parts["directory"], "reach directory") {
		t.Errorf("health is %q", parts)
	}
	if out := must("audit", "verify"); !strings.HasPrefix(out, "1 records, unbroken") {
		t.Errorf("audit says %q", out)
	}
	if _, err := run(); err == nil || !strings.Contains(err.Error(), "another carme-backend") {
		t.Errorf("a second backend: %v", err)
	}
	stop()
	if err := os.Truncate(root+"/backend/carme.db", 0); err != nil {
		t.Fatal(err)
	}
	if _, err := run(); err == nil || !strings.Contains(err.Error(), "restore it") {
		t.Errorf("with an empty database: %v", err)
	}
}

func TestCheck_names_everything_that_is_wrong(t *testing.T) {
	root, src := site(t)
	write(t, root+"/etc/carme/backend.yaml", "cluster: a b\nldap: {urls: [http://x]}\nsesions: {}\n")
	err := command(t.Context(), src, []string{"--check"}, io.Discard, io.Discard)
	var p config.ProblemsError
	if !errors.As(err, &p) || len(p) != 1 || !strings.Contains(p[0].Text, "sesions") {
		t.Errorf("an unknown setting: %v", err)
	}
	write(t, root+"/etc/carme/backend.yaml", "cluster: a b\nname: x\nldap: {urls: [http://x]}\nlimits: {boss: {}}\n")
	err = command(t.Context(), src, []string{"--check"}, io.Discard, io.Discard)
	if !errors.As(err, &p) || len(p) < 4 {
		t.Errorf("wrong values: %v", err)
	}
	write(t, root+"/etc/carme/signer.yaml", "service_user: root\n")
	err = command(t.Context(), src, []string{"--check", "signer"}, io.Discard, io.Discard)
	if !errors.As(err, &p) || len(p) != 2 {
		t.Errorf("the signer's: %v", err)
	}
}

func TestAttack_tokens_cross_no_network_in_the_clear(t *testing.T) {
	for address, good := range map[string]bool{
		"unix:/run/slurmrestd.sock": true, "https://ctl:6820": true, "http://localhost:6820": true, "http://127.0.0.1:6820": true, "http://[::1]:6820": true,
		"http://ctl:6820": false, "http://10.0.0.1:6820": false, "http://localhost.evil.example": false, "ftp://localhost": false, "unix:x": false, "": false,
	} {
		if private(address) != good {
			t.Errorf("%q: %v", address, !good)
		}
	}
}

func TestExamples_are_good(t *testing.T) {
	root, src := site(t)
	for _, name := range []string{"backend.yaml", "signer.yaml"} {
		text, err := os.ReadFile("../../contrib/carme/" + name)
		if err != nil {
			t.Fatal(err)
		}
		write(t, root+"/etc/carme/"+name, string(text))
	}
	for _, args := range [][]string{{"--check"}, {"--check", "signer"}} {
		if err := command(t.Context(), src, args, io.Discard, io.Discard); err != nil {
			t.Error(err)
		}
	}
}

func TestWrong_command_lines_are_refused(t *testing.T) {
	_, src := site(t)
	for _, args := range [][]string{{"--nonsense"}, {"start"}, {"audit"}, {"token"}, {"token", "--role", "portal"}, {"signer", "x"}} {
		if err := command(t.Context(), src, args, io.Discard, io.Discard); !errors.Is(err, errUsage) {
			t.Errorf("%v: %v", args, err)
		}
	}
}

func TestBackend_stops_at_once_when_nothing_is_open(t *testing.T) {
	root, src := site(t)
	for _, args := range [][]string{{"signer", "init"}} {
		if err := command(t.Context(), src, args, io.Discard, io.Discard); err != nil {
			t.Fatal(err)
		}
	}
	stopSigner := start(t, src, root+"/s.sock", "signer")
	defer stopSigner()
	if err := command(t.Context(), src, []string{"init"}, io.Discard, io.Discard); err != nil {
		t.Fatal(err)
	}
	stop := start(t, src, root+"/a.sock")
	begin := time.Now()
	stop()
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("stopping took %v", took)
	}
}
