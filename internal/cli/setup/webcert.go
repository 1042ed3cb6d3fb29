package setup

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Lives of the certificates that browsers see. Browsers take none from a public
// CA that lives longer than 398 days; our own keeps to that too.
const (
	webCALife   = 10 * 365 * 24 * time.Hour
	webCertLife = 397 * 24 * time.Hour
	// renewBefore is how much of its life a certificate must have left.
	renewBefore = 30 * 24 * time.Hour
	// clockSkew is by how much the clock of a browser may be slow.
	clockSkew = 5 * time.Minute
)

// webNames are the names of the portal's certificate.
func (o *Options) webNames() []string { return []string{o.PortalHost, "*." + o.AppsDomain} }

// webCertificate makes the certificate that browsers see, signed by a CA of the
// site's own that can sign for no other names. The CA stays as it is from run to
// run, so that who trusts it once need not do it again. A certificate of another
// CA is the admin's, and stays.
func (s *setup) webCertificate() error {
	dir := s.path(webCADir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	if kept, err := s.foreign(); kept || err != nil {
		return err
	}
	if s.webCertIsGood() {
		s.say("kept", webCertFile, "")
		return nil
	}
	ca, caKey, err := s.webCA(dir)
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	now := s.now()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: s.PortalHost}, DNSNames: s.webNames(),
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(webCertLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca, key.Public(), caKey)
	if err != nil {
		return fmt.Errorf("sign the portal's certificate: %w", err)
	}
	chain := append(pemOf("CERTIFICATE", der), pemOf("CERTIFICATE", ca.Raw)...)
	keyPEM, err := keyPEM(key)
	if err != nil {
		return err
	}
	if err := s.place(webKeyFile, keyPEM, 0o600, portalUser); err != nil {
		return err
	}
	return s.place(webCertFile, chain, 0o644, portalUser)
}

// foreign reports whether the certificate that is there is of another CA, and
// says what is wrong with it.
func (s *setup) foreign() (bool, error) {
	text, err := os.ReadFile(s.path(webCertFile))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the portal's certificate: %w", err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return false, fmt.Errorf("%s is no certificate in PEM; mend it, or remove it to have one made", webCertFile)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return false, fmt.Errorf("read %s: %w; mend it, or remove it to have one made", webCertFile, err)
	}
	if strings.HasPrefix(cert.Issuer.CommonName, webCAName) {
		return false, nil
	}
	for _, name := range []string{s.PortalHost, "s-example." + s.AppsDomain} {
		if err := cert.VerifyHostname(name); err != nil {
			return false, fmt.Errorf("%s, of %q, is not for %s: %w; put one for %s there, or remove it to have one made",
				webCertFile, cert.Issuer.CommonName, name, err, strings.Join(s.webNames(), " and "))
		}
	}
	if err := s.own(webKeyFile, portalUser); err != nil {
		return false, err
	}
	s.say("kept", webCertFile, fmt.Sprintf("of %q, until %s", cert.Issuer.CommonName, cert.NotAfter.Format(time.DateOnly)))
	return true, s.own(webCertFile, portalUser)
}

// webCA reads the site's CA, or makes it.
func (s *setup) webCA(dir string) (*x509.Certificate, crypto.Signer, error) {
	certFile, keyFile := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key")
	cert, key, err := readPair(certFile, keyFile)
	switch {
	case err == nil && permits(cert, s.webNames()):
		return cert, key, nil
	case err == nil:
		return nil, nil, fmt.Errorf("the CA in %s signs for %s only; move it away to have a new one for %s, which browsers must be made to trust",
			webCADir, strings.Join(cert.PermittedDNSDomains, " and "), strings.Join(s.webNames(), " and "))
	case !errors.Is(err, os.ErrNotExist):
		return nil, nil, fmt.Errorf("read the CA in %s: %w; restore it, or move it away to have a new one", webCADir, err)
	}
	for _, file := range []string{certFile, keyFile} {
		if _, err := os.Lstat(file); err == nil { // and the other one is not
			return nil, nil, fmt.Errorf("the CA in %s is incomplete: ca.pem and ca.key belong together; restore what is missing, or move the rest away to have a new one", webCADir)
		}
	}
	made, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	now := s.now()
	template := s.caTemplate(now)
	der, err := x509.CreateCertificate(rand.Reader, template, template, made.Public(), made)
	if err != nil {
		return nil, nil, fmt.Errorf("sign the CA: %w", err)
	}
	if cert, err = x509.ParseCertificate(der); err != nil {
		return nil, nil, fmt.Errorf("read the CA: %w", err)
	}
	keyPEM, err := keyPEM(made)
	if err != nil {
		return nil, nil, err
	}
	if err := writeFile(keyFile, keyPEM, 0o600); err != nil {
		return nil, nil, err
	}
	if err := writeFile(certFile, pemOf("CERTIFICATE", der), 0o644); err != nil {
		return nil, nil, err
	}
	s.say("made", webCADir+"/ca.pem", "for browsers; it can sign for these two names alone")
	return cert, made, nil
}

// webCAName is how the name of the site's own CA begins.
const webCAName = "Carme of "

func (o *Options) caTemplate(now time.Time) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: webCAName + o.PortalHost},
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(webCALife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage:                    x509.KeyUsageCertSign,
		PermittedDNSDomainsCritical: true, PermittedDNSDomains: []string{o.PortalHost, o.AppsDomain},
	}
}

// permits reports whether the CA may sign for all the names.
func permits(ca *x509.Certificate, names []string) bool {
	for _, name := range names {
		ok := false
		for _, domain := range ca.PermittedDNSDomains {
			ok = ok || name == domain || name == "*."+domain
		}
		if !ok {
			return false
		}
	}
	return true
}

// webCertIsGood reports whether the certificate that is there can stay.
func (s *setup) webCertIsGood() bool {
	cert, _, err := readPair(s.path(webCertFile), s.path(webKeyFile))
	if err != nil || !s.ofOurCA(cert) || cert.NotAfter.Before(s.now().Add(renewBefore)) {
		return false
	}
	for _, name := range s.webNames() {
		if !slices.Contains(cert.DNSNames, name) {
			return false
		}
	}
	return true
}

// ofOurCA reports whether the CA that browsers are told to trust has signed it.
func (s *setup) ofOurCA(cert *x509.Certificate) bool {
	text, err := os.ReadFile(s.path(webCADir + "/ca.pem"))
	if err != nil {
		return false
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return false
	}
	ca, err := x509.ParseCertificate(block.Bytes)
	return err == nil && cert.CheckSignatureFrom(ca) == nil
}

// readPair reads the first certificate of a file, and its key.
func readPair(certFile, keyFile string) (*x509.Certificate, crypto.Signer, error) {
	certText, err := os.ReadFile(certFile) //nolint:gosec // our own files
	if err != nil {
		return nil, nil, err
	}
	keyText, err := os.ReadFile(keyFile) //nolint:gosec // our own files
	if err != nil {
		return nil, nil, err
	}
	certBlock, _ := pem.Decode(certText)
	keyBlock, _ := pem.Decode(keyText)
	if certBlock == nil || keyBlock == nil {
		return nil, nil, errors.New("no PEM in it")
	}
	cert, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		return nil, nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, nil, err
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(cert.PublicKey) {
		return nil, nil, errors.New("key and certificate do not belong together")
	}
	return cert, key, nil
}

// serial is 127 random bits: positive, and never the same twice (RFC 5280).
func serial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it never fails (crypto/rand)
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func keyPEM(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a key: %w", err)
	}
	return pemOf("PRIVATE KEY", der), nil
}
