package backend

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/carme-hpc/carme/internal/mtls"
	"github.com/carme-hpc/carme/portal/backend/auth/totp"
	"github.com/carme-hpc/carme/portal/backend/signer"
	"github.com/carme-hpc/carme/portal/backend/store"
)

// renewBefore is how long before its end the own certificate is made anew.
const renewBefore = 20 * 24 * time.Hour

func (c *Config) file(name string) string { return filepath.Join(c.State, name) }

func (c *Config) database() string { return c.file("carme.db") }

// writeSecret writes a file that nobody else can read, and that is whole.
func writeSecret(name string, data []byte, mode fs.FileMode) error {
	tmp := name + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode) //nolint:gosec // G304: the admin's own setting
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := os.Rename(tmp, name); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// randomFile makes a key of so many bytes unless it is there.
func randomFile(name string, size int) error {
	if _, err := os.Stat(name); err == nil {
		return nil
	}
	key := make([]byte, size)
	if _, err := rand.Read(key); err != nil {
		return err
	}
	return writeSecret(name, key, 0o600)
}

func readSecret(name string, size int) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, fmt.Errorf("read key: %w; run: carme-backend init", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("read key: others can use %s; run: chmod 600 %s", name, name)
	}
	key, err := os.ReadFile(name) //nolint:gosec // G304: the admin's own setting
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	if len(key) != size {
		return nil, fmt.Errorf("read key: %s has %d bytes, not %d; restore it from a backup", name, len(key), size)
	}
	return key, nil
}

const (
	factorKey = "factor.key"
	routeKey  = "route.key"
	tlsDir    = "tls"
)

// initState makes database, keys and certificate. What is there already stays.
func initState(ctx context.Context, c *Config) error {
	const private = 0o700
	for _, dir := range []string{c.State, c.file(tlsDir)} {
		if err := os.MkdirAll(dir, private); err != nil {
			return fmt.Errorf("make state directory: %w", err)
		}
	}
	if err := randomFile(c.file(factorKey), totp.KeySize); err != nil {
		return err
	}
	if err := randomFile(c.file(routeKey), ed25519.SeedSize); err != nil {
		return err
	}
	if _, err := os.Stat(c.database()); errors.Is(err, fs.ErrNotExist) {
		if err := store.Create(ctx, c.database()); err != nil {
			return err
		}
	}
	return renewOwn(ctx, c, time.Now())
}

// renewOwn asks the signer for a certificate if there is none, it ends soon, is for
// another name than the one that is set now, or is not good yet: the clock was put
// back.
func renewOwn(ctx context.Context, c *Config, now time.Time) error {
	files := mtls.In(c.file(tlsDir))
	if raw, err := os.ReadFile(files.Cert); err == nil {
		if block, _ := pem.Decode(raw); block != nil {
			cert, err := x509.ParseCertificate(block.Bytes)
			if err == nil && cert.NotAfter.Sub(now) > renewBefore && !now.Before(cert.NotBefore) && named(cert, c.Name) {
				return nil
			}
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make key: %w", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("make key: %w", err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("make key: %w", err)
	}
	cert, ca, err := signer.NewClient(c.SignerSocket).Certificate(ctx, mtls.RoleBackend, c.Name, spki)
	if err != nil {
		return fmt.Errorf("get certificate: %w; is carme-signer running?", err)
	}
	if err := writeSecret(files.CA, ca, 0o644); err != nil {
		return err
	}
	if err := writeSecret(files.Key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600); err != nil {
		return err
	}
	return writeSecret(files.Cert, cert, 0o644)
}

func named(cert *x509.Certificate, name string) bool {
	id, err := mtls.CertIdentity(cert)
	return err == nil && id.Role == mtls.RoleBackend && id.Name == name
}

// routeKeys reads the key that signs route tokens; its id is made of it.
func routeKeys(c *Config) (ed25519.PrivateKey, string, map[string][]byte, error) {
	seed, err := readSecret(c.file(routeKey), ed25519.SeedSize)
	if err != nil {
		return nil, "", nil, err
	}
	key := ed25519.NewKeyFromSeed(seed)
	public, ok := key.Public().(ed25519.PublicKey)
	if !ok {
		return nil, "", nil, errors.New("read key: it is no Ed25519 key")
	}
	sum := sha256.Sum256(public)
	id := hex.EncodeToString(sum[:8])
	return key, id, map[string][]byte{id: public}, nil
}
