package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/carme-hpc/carme/internal/mtls"
	"github.com/carme-hpc/carme/internal/mtls/mtlstest"
	"github.com/carme-hpc/carme/internal/wire/api"
)

// old is a portal's renewer whose certificate has a third of its life left, and
// a backend that signs whatever it is asked for.
func old(t *testing.T, sign func(ca *mtlstest.CA, in api.Enrol) (api.Enrolled, error)) (*renewer, *int) {
	t.Helper()
	ca := mtlstest.New(t)
	files := mtls.In(ca.Issue(t, mtls.RolePortal, "web"))
	store, err := mtls.Open(files, nil)
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	return &renewer{own: store, files: files, now: time.Now, log: slog.New(slog.DiscardHandler), ask: func(_ context.Context, in api.Enrol) (api.Enrolled, error) {
		asked++
		return sign(ca, in)
	}}, &asked
}

// signed answers for the key that asks.
func signed(t *testing.T, role, name string) func(ca *mtlstest.CA, in api.Enrol) (api.Enrolled, error) {
	t.Helper()
	return func(ca *mtlstest.CA, in api.Enrol) (api.Enrolled, error) {
		if in.Role != mtls.RolePortal || in.Name != "web" {
			t.Errorf("asks for %s/%s", in.Role, in.Name)
		}
		csr, err := x509.ParseCertificateRequest(in.CSR)
		if err != nil || csr.CheckSignature() != nil {
			t.Fatal("the request is not signed", err)
		}
		id, err := mtls.NewIdentity(role, name)
		if err != nil {
			t.Fatal(err)
		}
		template := mtlstest.Template(t, id.URI())
		template.NotAfter = time.Now().Add(30 * 24 * time.Hour)
		return api.Enrolled{Certificate: ca.Sign(t, template, csr.PublicKey), CA: ca.PEM}, nil
	}
}

func TestRenewer_leaves_a_certificate_alone_that_is_good_for_long(t *testing.T) {
	r, asked := old(t, signed(t, mtls.RolePortal, "web"))
	if err := r.step(t.Context()); err != nil || *asked != 0 {
		t.Errorf("asked %d times, %v", *asked, err)
	}
}

func TestRenewer_gets_another_certificate_for_the_same_key(t *testing.T) {
	r, asked := old(t, signed(t, mtls.RolePortal, "web"))
	before := r.own.Leaf()
	r.now = func() time.Time { return time.Now().Add(17 * time.Hour) } // of 25
	if err := r.step(t.Context()); err != nil || *asked != 1 {
		t.Fatalf("asked %d times, %v", *asked, err)
	}
	after := r.own.Leaf()
	if !after.NotAfter.After(before.NotAfter) || mtls.SPKIHash(after) != mtls.SPKIHash(before) {
		t.Errorf("good until %s, with another key: %v", after.NotAfter, mtls.SPKIHash(after) != mtls.SPKIHash(before))
	}
	again, err := mtls.Open(r.files, nil)
	if err != nil || !again.Leaf().Equal(after) {
		t.Errorf("on disk: %v", err)
	}
	if err := r.step(t.Context()); err != nil || *asked != 1 {
		t.Errorf("then asked %d times, %v", *asked, err)
	}
}

func TestRenewer_keeps_what_it_has_when_the_answer_is_not_for_it(t *testing.T) {
	foreign := mtlstest.New(t)
	for what, sign := range map[string]func(ca *mtlstest.CA, in api.Enrol) (api.Enrolled, error){
		"backend away": func(*mtlstest.CA, api.Enrol) (api.Enrolled, error) { return api.Enrolled{}, errors.New("away") },
		"other name":   signed(t, mtls.RolePortal, "other"),
		"other role":   signed(t, mtls.RoleNode, "web"),
		"nothing":      func(ca *mtlstest.CA, _ api.Enrol) (api.Enrolled, error) { return api.Enrolled{CA: ca.PEM}, nil },
		"other CA": func(_ *mtlstest.CA, in api.Enrol) (api.Enrolled, error) {
			return signed(t, mtls.RolePortal, "web")(foreign, in)
		},
		"other key": func(ca *mtlstest.CA, _ api.Enrol) (api.Enrolled, error) {
			data, err := os.ReadFile(mtls.In(ca.Issue(t, mtls.RolePortal, "web")).Cert)
			return api.Enrolled{Certificate: data, CA: ca.PEM}, err
		},
	} {
		t.Run(what, func(t *testing.T) {
			r, _ := old(t, sign)
			r.now = func() time.Time { return time.Now().Add(17 * time.Hour) }
			before, err := os.ReadFile(r.files.Cert)
			if err != nil {
				t.Fatal(err)
			}
			if err := r.step(t.Context()); err == nil {
				t.Error("no error")
			}
			if after, err := os.ReadFile(r.files.Cert); err != nil || !bytes.Equal(before, after) {
				t.Errorf("the file changed, %v", err)
			}
			if block, _ := pem.Decode(before); block == nil || !bytes.Equal(r.own.Leaf().Raw, block.Bytes) {
				t.Error("another certificate is in force")
			}
		})
	}
}
