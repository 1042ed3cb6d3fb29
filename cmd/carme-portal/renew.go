package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"github.com/carme-hpc/carme/internal/mtls"
	"github.com/carme-hpc/carme/internal/wire/api"
)

// dueEvery is how often it is asked whether the certificate is due.
const dueEvery = 15 * time.Second

// renewer keeps the certificate for backend and agents good. The key stays: what
// the backend has granted is bound to it, and a new one would end every session
// for as long as its grant is good. Joining anew makes a new key.
type renewer struct {
	own   *mtls.Store
	files mtls.Files
	ask   func(context.Context, api.Enrol) (api.Enrolled, error)
	now   func() time.Time
	log   *slog.Logger
}

// run looks until ctx ends. A failure is tried again: the backend may be away.
func (r *renewer) run(ctx context.Context) {
	tick := time.NewTicker(dueEvery)
	defer tick.Stop()
	told := ""
	for {
		switch err := r.step(ctx); {
		case err == nil || ctx.Err() != nil:
			told = ""
		case err.Error() != told:
			told = err.Error()
			r.log.ErrorContext(ctx, "certificate: cannot be renewed; trying again", "error", err, "expires", r.own.Leaf().NotAfter)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// step renews the certificate if it is due.
func (r *renewer) step(ctx context.Context) error {
	if !mtls.Due(r.own.Leaf(), r.now()) {
		return nil
	}
	id, err := mtls.CertIdentity(r.own.Leaf())
	if err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(r.files.Cert, r.files.Key)
	if err != nil {
		return fmt.Errorf("read key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, pair.PrivateKey)
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	answer, err := r.ask(ctx, api.Enrol{Role: id.Role, Name: id.Name, CSR: csr})
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(r.files.CA) // not the answer's: it is what agents and backend are checked against
	if err != nil {
		return fmt.Errorf("read CA: %w", err)
	}
	leaf, err := mtls.Accept(pair.Leaf.PublicKey, answer.Certificate, ca, id, r.now())
	if err != nil {
		return fmt.Errorf("take certificate: %w", err)
	}
	if err := replace(r.files.Cert, answer.Certificate); err != nil {
		return fmt.Errorf("keep certificate: %w", err)
	}
	if err := r.own.Reload(); err != nil {
		return err
	}
	r.log.InfoContext(ctx, "certificate: renewed", "serial", leaf.SerialNumber.Text(16), "expires", leaf.NotAfter)
	return nil
}

// replace puts a file in the place of another at once; after a crash it is the
// old or the new one.
func replace(name string, data []byte) (err error) {
	fresh := name + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644) //nolint:gosec // it is public
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(fresh, name)
}
