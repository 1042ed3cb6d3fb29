package mtls

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"regexp"
)

// Roles.
const (
	RolePortal  = "portal"
	RoleNode    = "node"
	RoleBackend = "backend"
)

const scheme = "carme"

// Identity is who the owner of a certificate is.
type Identity struct {
	// Role is RolePortal, RoleNode or RoleBackend.
	Role string
	// Name is the node's in Slurm, or the daemon's.
	Name string
}

var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,252}$`)

// NewIdentity checks role and name.
func NewIdentity(role, name string) (Identity, error) {
	switch role {
	case RolePortal, RoleNode, RoleBackend:
	default:
		return Identity{}, fmt.Errorf("%q is not a role of Carme's certificates", role)
	}
	if !namePattern.MatchString(name) {
		return Identity{}, fmt.Errorf("%q is not a name: letters, digits, '.', '_' and '-' only", name)
	}
	return Identity{Role: role, Name: name}, nil
}

// String is the URI.
func (id Identity) String() string { return scheme + "://" + id.Role + "/" + id.Name }

// URI is what a certificate of this identity has as its one URI.
func (id Identity) URI() *url.URL {
	return &url.URL{Scheme: scheme, Host: id.Role, Path: "/" + id.Name}
}

// CertIdentity reads the identity out of a certificate: exactly one URI of
// Carme's, written as String writes it. It does not check who signed it.
func CertIdentity(cert *x509.Certificate) (Identity, error) {
	var found []*url.URL
	for _, uri := range cert.URIs {
		if uri.Scheme == scheme {
			found = append(found, uri)
		}
	}
	if len(found) != 1 {
		return Identity{}, fmt.Errorf("certificate has %d carme:// names; it must have one", len(found))
	}
	uri := found[0]
	if len(uri.Path) < 2 {
		return Identity{}, fmt.Errorf("certificate has no name in %q", uri)
	}
	id, err := NewIdentity(uri.Host, uri.Path[1:])
	if err != nil {
		return Identity{}, fmt.Errorf("certificate for %q: %w", uri, err)
	}
	if uri.String() != id.String() {
		return Identity{}, fmt.Errorf("certificate for %q, which is not written as %q", uri, id)
	}
	return id, nil
}

// PeerIdentity is who the client of a connection is that Server or
// OptionalServer took; false if it showed no certificate.
func PeerIdentity(state *tls.ConnectionState) (Identity, bool) {
	if state == nil || len(state.PeerCertificates) == 0 || len(state.VerifiedChains) == 0 {
		return Identity{}, false
	}
	id, err := CertIdentity(state.PeerCertificates[0])
	return id, err == nil
}

var errNoPeer = errors.New("peer shows no certificate; only Carme's own daemons may connect")

// SPKIHash is the SHA-256 of the certificate's public key with its algorithm
// (SubjectPublicKeyInfo of RFC 5280). It stays when a certificate is renewed with
// the same key.
func SPKIHash(cert *x509.Certificate) [32]byte {
	return sha256.Sum256(cert.RawSubjectPublicKeyInfo)
}
