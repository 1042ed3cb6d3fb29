package mtls

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// Accept checks a certificate that the CA has sent: it must be for the key, of
// that identity, good now, and signed by the CA. Both texts are PEM.
func Accept(key crypto.PublicKey, certificate, ca []byte, want Identity, now time.Time) (*x509.Certificate, error) {
	block, rest := pem.Decode(certificate)
	if block == nil {
		return nil, errors.New("the answer has no certificate")
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	public, ok := key.(interface {
		Equal(other crypto.PublicKey) bool
	})
	if !ok || !public.Equal(leaf.PublicKey) {
		return nil, errors.New("the certificate is for another key")
	}
	if err := Usable(leaf, want, now); err != nil {
		return nil, err
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	between.AppendCertsFromPEM(rest)
	if !roots.AppendCertsFromPEM(ca) {
		return nil, errors.New("the answer has no CA")
	}
	_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return leaf, err
}

// Usable says what is wrong with the own certificate at that time.
func Usable(leaf *x509.Certificate, want Identity, now time.Time) error {
	id, err := CertIdentity(leaf)
	if err != nil {
		return err
	}
	if id != want {
		return fmt.Errorf("certificate is of %s, not %s", id, want)
	}
	if !now.Before(leaf.NotAfter) {
		return fmt.Errorf("certificate has expired at %s", leaf.NotAfter)
	}
	return nil
}

// Due says whether a certificate should be renewed: two thirds of its life are
// over, and the last third is there to try again in. One that is not good yet was
// signed before a clock was put back, and nobody takes it.
func Due(leaf *x509.Certificate, now time.Time) bool {
	return now.Before(leaf.NotBefore) || !now.Before(leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore)*2/3))
}
