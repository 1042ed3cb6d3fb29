package mtlstest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/carme-hpc/carme/internal/mtls"
)

// CA signs certificates.
type CA struct {
	// PEM is its own certificate.
	PEM  []byte
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// New makes a CA.
func New(tb testing.TB) *CA {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial(tb), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return &CA{PEM: pemBlock("CERTIFICATE", der), cert: cert, key: key}
}

// Template is what Issue signs for an identity; a test may change it and give
// it to Sign.
func Template(tb testing.TB, uris ...*url.URL) *x509.Certificate {
	tb.Helper()
	return &x509.Certificate{
		SerialNumber: serial(tb), URIs: uris,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
}

// Issue returns a directory with cert.pem, key.pem and ca.pem of that role and
// name.
func (ca *CA) Issue(tb testing.TB, role, name string) string {
	tb.Helper()
	dir := tb.TempDir()
	id, err := mtls.NewIdentity(role, name)
	if err != nil {
		tb.Fatal(err)
	}
	ca.Write(tb, dir, Template(tb, id.URI()))
	return dir
}

// Open is Issue, and opens the store.
func (ca *CA) Open(tb testing.TB, role, name string) *mtls.Store {
	tb.Helper()
	s, err := mtls.Open(mtls.In(ca.Issue(tb, role, name)), nil)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// Write signs a certificate for a new key and puts the three files into dir, in
// the place of what is there.
func (ca *CA) Write(tb testing.TB, dir string, template *x509.Certificate) {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	files := mtls.In(dir)
	for name, data := range map[string][]byte{
		files.Cert: ca.Sign(tb, template, key.Public()), files.Key: pemBlock("PRIVATE KEY", secret), files.CA: ca.PEM,
	} {
		if err := os.WriteFile(name+".new", data, 0o600); err != nil {
			tb.Fatal(err)
		}
		if err := os.Rename(name+".new", name); err != nil {
			tb.Fatal(err)
		}
	}
}

// Sign returns the PEM certificate for a public key.
func (ca *CA) Sign(tb testing.TB, template *x509.Certificate, public any) []byte {
	tb.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, public, ca.key)
	if err != nil {
		tb.Fatal(err)
	}
	return pemBlock("CERTIFICATE", der)
}

func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func serial(tb testing.TB) *big.Int {
	tb.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		tb.Fatal(err)
	}
	return n
}
