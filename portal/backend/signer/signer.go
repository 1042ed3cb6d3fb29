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
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/carme-hpc/carme/internal/mtls"
)

const (
	// tokenLife is how long a token of Slurm's is good.
	tokenLife = 60 * time.Second
	certLife  = 30 * 24 * time.Hour
	caLife    = 10 * 365 * 24 * time.Hour
	// skew is by how much clocks of hosts may differ.
	skew   = 5 * time.Minute
	uidMin = 1000
	// rsaBits is the smallest key for RS256.
	rsaBits = 2048
)

// RefusedError says why nothing was signed.
type RefusedError struct{ Reason string }

// Error is the reason.
func (e RefusedError) Error() string { return "signer refuses: " + e.Reason }

func refuse(format string, args ...any) error { return RefusedError{fmt.Sprintf(format, args...)} }

// Account is a user as this host knows them (NSS).
type Account struct {
	Name   string
	UID    uint64
	Groups []string
}

// Lookup asks NSS for an account.
type Lookup func(ctx context.Context, name string) (Account, error)

// Rules are who may get a token.
type Rules struct {
	// MemberOf: only members of one of these groups; never empty.
	MemberOf []string
	// SlurmUser never gets one.
	SlurmUser string
	// ServiceUser gets one although it is a system user: it looks at Slurm for
	// everybody. Empty: nobody.
	ServiceUser string
}

// Signer signs.
type Signer struct {
	key    *rsa.PrivateKey
	keyID  string
	caKey  crypto.Signer
	caCert *x509.Certificate
	caPEM  []byte
	rules  Rules
	lookup Lookup
	now    func() time.Time
	log    *slog.Logger
}

var userName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.@-]{0,255}$`)

// Token is a token of Slurm's for the user (RFC 7519; auth/jwt of Slurm).
func (s *Signer) Token(ctx context.Context, user string) (string, time.Time, error) {
	account, err := s.check(ctx, user)
	if err != nil {
		s.log.LogAttrs(ctx, slog.LevelWarn, "token refused", slog.String("user", user), slog.String("reason", err.Error()))
		return "", time.Time{}, err
	}
	now := s.now()
	expires := now.Add(tokenLife).Truncate(time.Second)
	head, err := json.Marshal(map[string]string{"alg": "RS256", "typ": "JWT", "kid": s.keyID})
	if err != nil {
		return "", time.Time{}, fmt.Errorf("sign token: %w", err)
	}
	body, err := json.Marshal(map[string]any{"iat": now.Unix(), "exp": expires.Unix(), "sun": account.Name})
	if err != nil {
		return "", time.Time{}, fmt.Errorf("sign token: %w", err)
	}
	text := base64.RawURLEncoding.EncodeToString(head) + "." + base64.RawURLEncoding.EncodeToString(body)
	sum := sha256.Sum256([]byte(text))
	signature, err := rsa.SignPKCS1v15(rand.Reader, s.key, crypto.SHA256, sum[:])
	if err != nil {
		return "", time.Time{}, fmt.Errorf("sign token: %w", err)
	}
	// The record comes before the token leaves.
	s.log.LogAttrs(ctx, slog.LevelInfo, "token signed", slog.String("user", account.Name), slog.Uint64("uid", account.UID),
		slog.Time("expires", expires), slog.String("sha256", hex.EncodeToString(sum[:8])))
	return text + "." + base64.RawURLEncoding.EncodeToString(signature), expires, nil
}

// check decides by what this host's NSS says, not by what the backend says.
func (s *Signer) check(ctx context.Context, user string) (Account, error) {
	if !userName.MatchString(user) {
		return Account{}, refuse("that is no name of a user")
	}
	account, err := s.lookup(ctx, user)
	if err != nil {
		return Account{}, err
	}
	switch {
	case account.Name != user:
		return Account{}, refuse("NSS knows %q under another name", user)
	case account.UID == 0 || user == "root":
		return Account{}, refuse("root gets no token")
	case user == s.rules.SlurmUser:
		return Account{}, refuse("SlurmUser gets no token")
	case s.rules.ServiceUser != "" && user == s.rules.ServiceUser:
		return account, nil
	case account.UID < uidMin || account.UID >= 1<<32-2:
		return Account{}, refuse("uid %d is a system user's", account.UID)
	case !slices.ContainsFunc(s.rules.MemberOf, func(g string) bool { return slices.Contains(account.Groups, g) }):
		return Account{}, refuse("%s is in none of the groups %s", user, strings.Join(s.rules.MemberOf, ", "))
	}
	return account, nil
}

// Certificate signs a public key for a part of Carme. Nothing else of a request
// counts.
func (s *Signer) Certificate(ctx context.Context, role, name string, spki []byte) ([]byte, error) {
	id, err := mtls.NewIdentity(role, name)
	if err != nil {
		return nil, refuse("%v", err)
	}
	public, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, refuse("the public key cannot be read")
	}
	if k, ok := public.(*ecdsa.PublicKey); !ok || k.Curve != elliptic.P256() {
		return nil, refuse("the public key is not one of ECDSA P-256")
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	now := s.now()
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, URIs: nil, DNSNames: []string{name},
		NotBefore: now.Add(-skew), NotAfter: now.Add(certLife), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	template.URIs = append(template.URIs, id.URI())
	der, err := x509.CreateCertificate(rand.Reader, template, s.caCert, public, s.caKey)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	sum := sha256.Sum256(spki)
	s.log.LogAttrs(ctx, slog.LevelInfo, "certificate signed", slog.String("identity", id.String()),
		slog.String("serial", serial.Text(16)), slog.Time("expires", template.NotAfter), slog.String("spki", hex.EncodeToString(sum[:])))
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// CA is the certificate to trust, in PEM.
func (s *Signer) CA() []byte { return s.caPEM }

// Files of the signer's state directory.
func caFiles(dir string) (key, cert string) {
	return filepath.Join(dir, "ca.key"), filepath.Join(dir, "ca.pem")
}

// Init makes a new CA in the state directory; one that is there is kept.
func Init(dir string, now time.Time) error {
	keyFile, certFile := caFiles(dir)
	if _, err := os.Stat(keyFile); err == nil {
		return fmt.Errorf("make CA: %s exists; move it away if you want a new CA (every certificate must be made again then)", keyFile)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make CA: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return fmt.Errorf("make CA: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "Carme CA"}, NotBefore: now.Add(-skew), NotAfter: now.Add(caLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return fmt.Errorf("make CA: %w", err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("make CA: %w", err)
	}
	if err := os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil { //nolint:gosec // G306: it is public
		return fmt.Errorf("make CA: %w", err)
	}
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600); err != nil {
		return fmt.Errorf("make CA: %w", err)
	}
	return nil
}

// Load reads the keys.
func Load(dir, slurmKey, keyID string, rules Rules, lookup Lookup, now func() time.Time, log *slog.Logger) (*Signer, error) {
	s := &Signer{keyID: keyID, rules: rules, lookup: lookup, now: now, log: log}
	raw, err := secretFile(slurmKey)
	if err != nil {
		return nil, err
	}
	parsed, err := privateKey(raw)
	if err != nil {
		return nil, fmt.Errorf("read Slurm's key %s: %w", slurmKey, err)
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if !ok || key.N.BitLen() < rsaBits {
		return nil, fmt.Errorf("read Slurm's key %s: it is no RSA key of at least %d bits", slurmKey, rsaBits)
	}
	s.key = key
	keyFile, certFile := caFiles(dir)
	if raw, err = secretFile(keyFile); err != nil {
		return nil, fmt.Errorf("%w; run: carme-backend signer init", err)
	}
	if s.caKey, err = privateKey(raw); err != nil {
		return nil, fmt.Errorf("read key of the CA: %w", err)
	}
	if s.caPEM, err = os.ReadFile(certFile); err != nil { //nolint:gosec // G304: the admin's own setting
		return nil, fmt.Errorf("read certificate of the CA: %w", err)
	}
	block, _ := pem.Decode(s.caPEM)
	if block == nil {
		return nil, fmt.Errorf("read certificate of the CA: there is none in %s", certFile)
	}
	if s.caCert, err = x509.ParseCertificate(block.Bytes); err != nil {
		return nil, fmt.Errorf("read certificate of the CA: %w", err)
	}
	return s, nil
}

// secretFile reads a file that nobody else can read.
func secretFile(name string) ([]byte, error) {
	f, err := os.Open(name) //nolint:gosec // G304: the admin's own setting
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	defer f.Close() //nolint:errcheck // nothing was written
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	if info.Mode().Perm()&0o037 != 0 {
		return nil, fmt.Errorf("read key: others can use %s (mode %04o); run: chmod 600 %s", name, info.Mode().Perm(), name)
	}
	const most = 64 << 10
	return io.ReadAll(io.LimitReader(f, most))
}

func privateKey(raw []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(raw)
	if block == nil {
		return nil, errors.New("there is no PEM block")
	}
	if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("the key cannot sign")
	}
	return signer, nil
}

// Getent looks accounts up with getent(1), so that every source of NSS counts.
func Getent(run func(ctx context.Context, name string, args ...string) ([]byte, error)) Lookup {
	const program = "/usr/bin/getent"
	return func(ctx context.Context, name string) (Account, error) {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		out, err := run(ctx, program, "passwd", "--", name)
		if err != nil {
			return Account{}, refuse("NSS has no user %q", name)
		}
		fields := strings.Split(strings.TrimSpace(string(out)), ":")
		if len(fields) != 7 {
			return Account{}, refuse("NSS has no single user %q", name)
		}
		uid, err := strconv.ParseUint(fields[2], 10, 32)
		if err != nil {
			return Account{}, refuse("user %q has no uid", name)
		}
		a := Account{Name: fields[0], UID: uid}
		out, err = run(ctx, "/usr/bin/id", "-Gn", "--", name)
		if err != nil {
			return Account{}, fmt.Errorf("look up groups of %s: %w", name, err)
		}
		a.Groups = strings.Fields(string(out))
		return a, nil
	}
}
