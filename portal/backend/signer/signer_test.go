package signer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/carme-hpc/carme/internal/mtls"
)

func accounts(_ context.Context, name string) (Account, error) {
	all := map[string]Account{
		"alice": {"alice", 10001, []string{"alice", "carme-users"}}, "dave": {"dave", 10004, []string{"dave"}}, "root": {"root", 0, []string{"carme-users"}},
		"toor": {"toor", 0, []string{"carme-users"}}, "slurm": {"slurm", 2000, []string{"carme-users"}}, "daemon": {"daemon", 99, []string{"carme-users"}},
		"carme-backend": {"carme-backend", 998, nil}, "ALICE": {"alice", 10001, []string{"carme-users"}},
	}
	a, ok := all[name]
	if !ok {
		return a, refuse("NSS has no user %q", name)
	}
	return a, nil
}

func made(t *testing.T) (*Signer, *rsa.PrivateKey, *strings.Builder, string) {
	t.Helper()
	dir := t.TempDir()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "jwt.key")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Init(dir, time.Now()); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	s, err := Load(dir, file, "k1", Rules{MemberOf: []string{"carme-users"}, SlurmUser: "slurm", ServiceUser: "carme-backend"}, accounts, time.Now,
		slog.New(slog.NewJSONHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return s, key, &log, dir
}

func TestToken_is_for_a_minute_and_logged(t *testing.T) {
	s, key, log, _ := made(t)
	for _, user := range []string{"alice", "carme-backend"} {
		tok, expires, err := s.Token(t.Context(), user)
		if err != nil {
			t.Fatal(err)
		}
		parts := strings.Split(tok, ".")
		sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
		signature, _ := base64.RawURLEncoding.DecodeString(parts[2])
		if err := rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, sum[:], signature); err != nil {
			t.Error(err)
		}
		var head, body map[string]any
		for i, v := range []*map[string]any{&head, &body} {
			raw, _ := base64.RawURLEncoding.DecodeString(parts[i])
			if err := json.Unmarshal(raw, v); err != nil {
				t.Error(err)
			}
		}
		life := body["exp"].(float64) - body["iat"].(float64)
		if head["kid"] != "k1" || head["alg"] != "RS256" || body["sun"] != user || life > 60 || time.Until(expires) > time.Minute {
			t.Errorf("token says %v %v", head, body)
		}
		if !strings.Contains(log.String(), `"msg":"token signed","user":"`+user) || strings.Contains(log.String(), parts[2]) {
			t.Errorf("log is %s", log)
		}
	}
}

func TestToken_is_refused_for(t *testing.T) {
	s, _, log, _ := made(t)
	for _, user := range []string{"root", "toor", "slurm", "daemon", "dave", "nobody-here", "", "alice\n", "-r", "ALICE", "../x", strings.Repeat("a", 300)} {
		t.Run(fmt.Sprintf("%.20q", user), func(t *testing.T) {
			if tok, _, err := s.Token(t.Context(), user); !errors.As(err, new(RefusedError)) || tok != "" {
				t.Errorf("token %q, %v", tok, err)
			}
		})
	}
	if n := strings.Count(log.String(), "token refused"); n != 12 {
		t.Errorf("%d refusals are logged", n)
	}
}

func TestCertificate_has_the_identity_and_nothing_else(t *testing.T) {
	s, _, _, _ := made(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := s.Certificate(t.Context(), mtls.RoleNode, "n1", spki)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(raw)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.CA())
	if _, err := cert.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
		t.Error(err)
	}
	if id, err := mtls.CertIdentity(cert); err != nil || id.String() != "carme://node/n1" || cert.IsCA || time.Until(cert.NotAfter) > 31*24*time.Hour {
		t.Errorf("identity %v, %v", id, err)
	}
	small, err := rsa.GenerateKey(rand.Reader, 1024) //nolint:gosec // G403: it is to be refused
	if err != nil {
		t.Fatal(err)
	}
	weak, err := x509.MarshalPKIXPublicKey(small.Public())
	if err != nil {
		t.Fatal(err)
	}
	for name, try := range map[string]func() error{
		"an unknown role": func() error { _, err := s.Certificate(t.Context(), "root", "n1", spki); return err },
		"a name as path":  func() error { _, err := s.Certificate(t.Context(), mtls.RoleNode, "a/../b", spki); return err },
		"no name":         func() error { _, err := s.Certificate(t.Context(), mtls.RoleNode, "", spki); return err },
		"no key":          func() error { _, err := s.Certificate(t.Context(), mtls.RoleNode, "n1", nil); return err },
		"a weak key":      func() error { _, err := s.Certificate(t.Context(), mtls.RoleNode, "n1", weak); return err },
	} {
		if err := try(); !errors.As(err, new(RefusedError)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSocket_answers_one_uid_only(t *testing.T) {
	s, _, log, dir := made(t)
	for name, allowed := range map[string]bool{"the backend": true, "a stranger": false} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			socket := filepath.Join(dir, strings.ReplaceAll(name, " ", ""))
			l, err := Listen(ctx, socket, 0o666)
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() {
				done <- s.Serve(ctx, Peers(l, func(uid uint32) bool { return allowed && int(uid) == os.Geteuid() }, s.log))
			}()
			tok, _, err := NewClient(socket).Token(ctx, "alice")
			if (err == nil) != allowed || allowed && tok == "" {
				t.Errorf("token %q, %v", tok, err)
			}
			if _, _, err := NewClient(socket).Token(ctx, "root"); err == nil {
				t.Error("root got a token")
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	if !strings.Contains(log.String(), "connection refused") {
		t.Error("the stranger is not in the log")
	}
}

func TestLoad_refuses_a_key_that_others_can_read(t *testing.T) {
	_, _, _, dir := made(t)
	file := filepath.Join(dir, "jwt.key")
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir, file, "k", Rules{}, accounts, time.Now, slog.Default()); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("got %v", err)
	}
}
