package enrol

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/carme-hpc/carme/internal/mtls"
	"github.com/carme-hpc/carme/internal/mtls/mtlstest"
	"github.com/carme-hpc/carme/internal/wire/api"
)

func newEnroller(t *testing.T, state string) *Enroller {
	t.Helper()
	keys, err := OpenKeys(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	e, err := New(Options{
		Node: "n1", State: state, CA: filepath.Join(state, "none.pem"), JoinToken: filepath.Join(state, "none"), Keys: keys,
		Now: time.Now, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestInstall_refuses_what_is_not_for_this_node_and_key(t *testing.T) {
	ca, other := mtlstest.New(t), mtlstest.New(t)
	key := newKey(t)
	sign := func(by *mtlstest.CA, role, name string, key *ecdsa.PrivateKey, life time.Duration) []byte {
		template := mtlstest.Template(t, mtls.Identity{Role: role, Name: name}.URI())
		template.NotAfter = time.Now().Add(life)
		return by.Sign(t, template, key.Public())
	}
	for name, c := range map[string]struct {
		answer api.Enrolled
		good   bool
	}{
		"nothing":            {api.Enrolled{CA: ca.PEM}, false},
		"noise":              {api.Enrolled{Certificate: []byte("x"), CA: ca.PEM}, false},
		"another node":       {api.Enrolled{Certificate: sign(ca, mtls.RoleNode, "n2", key, time.Hour), CA: ca.PEM}, false},
		"another role":       {api.Enrolled{Certificate: sign(ca, mtls.RolePortal, "n1", key, time.Hour), CA: ca.PEM}, false},
		"another key":        {api.Enrolled{Certificate: sign(ca, mtls.RoleNode, "n1", newKey(t), time.Hour), CA: ca.PEM}, false},
		"another CA":         {api.Enrolled{Certificate: sign(other, mtls.RoleNode, "n1", key, time.Hour), CA: ca.PEM}, false},
		"no CA":              {api.Enrolled{Certificate: sign(ca, mtls.RoleNode, "n1", key, time.Hour)}, false},
		"an old certificate": {api.Enrolled{Certificate: sign(ca, mtls.RoleNode, "n1", key, -time.Minute), CA: ca.PEM}, false},
		"a good certificate": {api.Enrolled{Certificate: sign(ca, mtls.RoleNode, "n1", key, time.Hour), CA: ca.PEM}, true},
	} {
		t.Run(name, func(t *testing.T) {
			state := t.TempDir()
			e := newEnroller(t, state)
			err := e.install(key, c.answer)
			if (err == nil) != c.good || (e.Store() != nil) != c.good {
				t.Errorf("error %v, store %v", err, e.Store())
			}
			// After a restart it is as before.
			if again := newEnroller(t, state); (again.Store() != nil) != c.good {
				t.Errorf("after a restart: store %v", again.Store())
			}
		})
	}
}

func TestNew_does_without_a_certificate_that_cannot_be_used(t *testing.T) {
	ca := mtlstest.New(t)
	install := func(t *testing.T, change func(dir string)) *Enroller {
		t.Helper()
		state := t.TempDir()
		key := newKey(t)
		e := newEnroller(t, state)
		template := mtlstest.Template(t, mtls.Identity{Role: mtls.RoleNode, Name: "n1"}.URI())
		if err := e.install(key, api.Enrolled{Certificate: ca.Sign(t, template, key.Public()), CA: ca.PEM}); err != nil {
			t.Fatal(err)
		}
		change(e.current())
		return newEnroller(t, state)
	}
	for name, change := range map[string]func(string){
		"key missing":         func(dir string) { _ = os.Remove(mtls.In(dir).Key) },
		"certificate cut off": func(dir string) { _ = os.Truncate(mtls.In(dir).Cert, 100) },
		"link to nowhere": func(dir string) {
			_ = os.Remove(dir)
			_ = os.Symlink("nowhere", dir)
		},
		"key readable by others": func(dir string) { _ = os.Chmod(mtls.In(dir).Key, 0o644) },
	} {
		t.Run(name, func(t *testing.T) {
			if install(t, change).Store() != nil {
				t.Error("it is used")
			}
		})
	}
	if install(t, func(string) {}).Store() == nil {
		t.Error("a good one is not used")
	}
}

func TestKeys_are_kept_and_never_empty(t *testing.T) {
	dir := t.TempDir()
	k, err := OpenKeys(dir)
	if err != nil || len(k.Get()) != 0 {
		t.Fatalf("%v, %v", k, err)
	}
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := k.Set(map[string][]byte{"a": public}); err != nil {
			t.Fatal(err)
		}
	}
	for name, bad := range map[string]map[string][]byte{"none": nil, "short": {"b": public[:31]}} {
		if err := k.Set(bad); err == nil || len(k.Get()) != 1 {
			t.Errorf("%s was taken (%v)", name, err)
		}
	}
	if k, err = OpenKeys(dir); err != nil || !k.Get()["a"].Equal(public) {
		t.Errorf("after a restart: %v, %v", k.Get(), err)
	}
	if err := os.WriteFile(filepath.Join(dir, "route_keys.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if k, err = OpenKeys(dir); err != nil || len(k.Get()) != 0 {
		t.Errorf("from a broken file: %v, %v", k.Get(), err)
	}
}

func TestProve_answers_nonces_only(t *testing.T) {
	e := newEnroller(t, t.TempDir())
	said := ""
	e.Munge = func(_ context.Context, payload string, uid uint32) (string, error) {
		said = payload
		if uid != 990 {
			t.Errorf("for uid %d", uid)
		}
		return "MUNGE:x", nil
	}
	nonce := strings.Repeat("0a", 16)
	if _, err := e.prove(t.Context(), []byte(`{"nonce":"`+nonce+`","uid":990}`)); err == nil {
		t.Error("answered though nobody asked")
	}
	key := newKey(t)
	self, err := selfSigned(key, mtls.Identity{Role: mtls.RoleNode, Name: "n1"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	e.setPending(self)
	for _, line := range []string{
		"", "{", `{"nonce":""}`, `{"nonce":"x|y"}`, `{"nonce":"` + strings.Repeat("a", 200) + `"}`, `{"nonce":"` + nonce + `|n2"}`, `{"nonce":"` + nonce + `\n"}`,
	} {
		if _, err := e.prove(t.Context(), []byte(line)); err == nil || said != "" {
			t.Errorf("%q was answered: %s", line, said)
		}
	}
	got, err := e.prove(t.Context(), []byte(`{"nonce":"`+nonce+`","uid":990}`))
	if err != nil || got != "MUNGE:x" || !strings.HasPrefix(said, "carme-enrol|"+nonce+"|") || !strings.HasSuffix(said, "|n1") || strings.Count(said, "|") != 3 {
		t.Errorf("%s over %s, %v", got, said, err)
	}
}

func TestMunge_reports_what_munge_says(t *testing.T) {
	dir := t.TempDir()
	for script, want := range map[string]string{
		"echo 'munge: Error: no daemon' >&2; exit 6": "no daemon", "echo hello": "no credential", "cat >/dev/null; echo MUNGE:abc": "",
	} {
		program := filepath.Join(dir, "munge")
		if err := os.WriteFile(program, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		got, err := Munge(program)(t.Context(), "x", 0)
		if want == "" && (err != nil || got != "MUNGE:abc") || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %q, %v", script, got, err)
		}
	}
}
