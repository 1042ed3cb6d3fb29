package nodes

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/carme-hpc/carme/internal/mtls"
	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/backend/audit"
	"github.com/carme-hpc/carme/portal/backend/problem"
	"github.com/carme-hpc/carme/portal/backend/store"
)

const (
	enrolProtocol = "carme-enrol/1"
	enrolTimeout  = 20 * time.Second
	joinLife      = time.Hour
	nonceSize     = 32
	tokenSize     = 32
)

// Certifier signs certificates.
type Certifier interface {
	Certificate(ctx context.Context, role, name string, spki []byte) (cert, ca []byte, err error)
}

// Credential is a decoded MUNGE credential.
type Credential struct {
	UID uint32
	// For is the only uid that may decode it, -1 for anybody.
	For     int64
	Payload string
}

// Enrolment gives out certificates.
type Enrolment struct {
	DB     *store.DB
	Audit  *audit.Log
	Signer Certifier
	Now    func() time.Time
	// Addr returns where Slurm says that a node is, with the agent's port.
	Addr func(ctx context.Context, node string) (string, error)
	// Unmunge decodes a credential.
	Unmunge func(ctx context.Context, credential string) (Credential, error)
	// UID is this process's.
	UID       uint32
	RouteKeys map[string][]byte
}

// Enrol is for an agent without a certificate: the node is dialled at the
// address that Slurm has, and must prove by MUNGE that root there has the key.
func (e *Enrolment) Enrol(ctx context.Context, in api.Enrol) (api.Enrolled, error) {
	if in.Role != mtls.RoleNode {
		return api.Enrolled{}, problem.Invalid("Only nodes enrol this way; use a join token.", map[string]string{"role": "must be node"})
	}
	spki, err := publicKey(in)
	if err != nil {
		return api.Enrolled{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, enrolTimeout)
	defer cancel()
	addr, err := e.Addr(ctx, in.Name)
	if err != nil {
		return api.Enrolled{}, err
	}
	if err := e.challenge(ctx, addr, in.Name, spki); err != nil {
		e.Audit.Out.WarnContext(ctx, "node did not prove who it is", "node", in.Name, "addr", addr, "err", err.Error())
		return api.Enrolled{}, problem.Forbidden()
	}
	return e.issue(ctx, "node/"+in.Name, in.Role, in.Name, spki, "enrolled")
}

func publicKey(in api.Enrol) ([]byte, error) {
	if _, err := mtls.NewIdentity(in.Role, in.Name); err != nil {
		return nil, problem.Invalid("That is no role and name for a certificate.", map[string]string{"name": "letters, digits and ._- only"})
	}
	csr, err := x509.ParseCertificateRequest(in.CSR)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, problem.Invalid("The certificate request cannot be read.", map[string]string{"csr": "is no signed PKCS #10 request in DER"})
	}
	return csr.RawSubjectPublicKeyInfo, nil
}

// challenge dials the node and compares key and credential.
func (e *Enrolment) challenge(ctx context.Context, addr, node string, spki []byte) error {
	sum := sha256.Sum256(spki)
	conf := &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{enrolProtocol}, ServerName: node,
		InsecureSkipVerify: true, //nolint:gosec // G402: the certificate is self-signed; its key is compared below
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 || mtls.SPKIHash(cs.PeerCertificates[0]) != sum {
				return errors.New("the node's key is not that of the request")
			}
			return nil
		},
	}
	d := tls.Dialer{NetDialer: &net.Dialer{}, Config: conf}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("dial back: %w", err)
	}
	defer conn.Close() //nolint:errcheck // one question, one answer
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	raw := make([]byte, nonceSize)
	if _, err := rand.Read(raw); err != nil {
		return err
	}
	nonce := hex.EncodeToString(raw)
	// The node does not know for whom to make the credential.
	if err := json.NewEncoder(conn).Encode(map[string]any{"nonce": nonce, "uid": e.UID}); err != nil {
		return fmt.Errorf("send challenge: %w", err)
	}
	const lineMax = 16 << 10
	line, err := bufio.NewReader(io.LimitReader(conn, lineMax)).ReadBytes('\n')
	if err != nil && len(line) == 0 {
		return fmt.Errorf("read answer: %w", err)
	}
	var answer struct {
		Munge string `json:"munge"`
		Error string `json:"error"`
	}
	if err := json.Unmarshal(line, &answer); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if answer.Error != "" {
		return fmt.Errorf("the agent says: %s", clip(answer.Error))
	}
	cred, err := e.Unmunge(ctx, answer.Munge)
	if err != nil {
		return err
	}
	want := "carme-enrol|" + nonce + "|" + hex.EncodeToString(sum[:]) + "|" + node
	switch {
	case cred.UID != 0:
		return fmt.Errorf("the credential is of uid %d, not of root", cred.UID)
	case cred.For != int64(e.UID):
		return errors.New("the credential is not for this backend alone")
	case cred.Payload != want:
		return errors.New("the credential is about something else")
	}
	return nil
}

// Renew is for a node with a certificate that is still good.
func (e *Enrolment) Renew(ctx context.Context, peer mtls.Identity, in api.Enrol) (api.Enrolled, error) {
	if in.Role != peer.Role || in.Name != peer.Name {
		return api.Enrolled{}, problem.Forbidden()
	}
	spki, err := publicKey(in)
	if err != nil {
		return api.Enrolled{}, err
	}
	return e.issue(ctx, peer.Role+"/"+peer.Name, peer.Role, peer.Name, spki, "renewed")
}

// issue has the record before the certificate.
func (e *Enrolment) issue(ctx context.Context, actor, role, name string, spki []byte, how string) (api.Enrolled, error) {
	sum := sha256.Sum256(spki)
	err := e.DB.Write(ctx, func(tx store.Tx) error {
		return e.Audit.Write(ctx, tx, actor, "certificate "+how, role+"/"+name, map[string]string{"spki": hex.EncodeToString(sum[:])})
	})
	if err != nil {
		return api.Enrolled{}, err
	}
	cert, ca, err := e.Signer.Certificate(ctx, role, name, spki)
	if err != nil {
		return api.Enrolled{}, fmt.Errorf("sign certificate of %s/%s: %w", role, name, err)
	}
	return api.Enrolled{Certificate: cert, CA: ca, RouteKeys: e.RouteKeys}, nil
}

// JoinToken makes a token with which one daemon may get one certificate.
func (e *Enrolment) JoinToken(ctx context.Context, actor, role, name string) (string, error) {
	if _, err := mtls.NewIdentity(role, name); err != nil || role == mtls.RoleBackend {
		return "", problem.Invalid("That is no role and name for a certificate.", map[string]string{"role": "node or portal", "name": "letters, digits and ._- only"})
	}
	raw := make([]byte, tokenSize)
	if _, err := rand.Read(raw); err != nil {
		return "", err
	}
	tok := base64.RawURLEncoding.EncodeToString(raw)
	err := e.DB.Write(ctx, func(tx store.Tx) error {
		if _, err := store.Exec(ctx, tx, "DELETE FROM join_tokens WHERE expires <= ?", e.Now().UnixMicro()); err != nil {
			return err
		}
		if _, err := store.Exec(ctx, tx, "INSERT INTO join_tokens (hash, role, name, expires) VALUES (?, ?, ?, ?)",
			tokenHash(tok), role, name, e.Now().Add(joinLife).UnixMicro()); err != nil {
			return fmt.Errorf("store join token: %w", err)
		}
		return e.Audit.Write(ctx, tx, actor, "join token made", role+"/"+name, nil)
	})
	return tok, err
}

func tokenHash(tok string) string {
	sum := sha256.Sum256([]byte(tok))
	return hex.EncodeToString(sum[:])
}

// Join is for a daemon with a join token, which is spent.
func (e *Enrolment) Join(ctx context.Context, in api.Enrol) (api.Enrolled, error) {
	spki, err := publicKey(in)
	if err != nil {
		return api.Enrolled{}, err
	}
	err = e.DB.Write(ctx, func(tx store.Tx) error {
		var role string
		// One that is good for longer than any was made before the clock was put back.
		err := store.One(ctx, tx, &role, "DELETE FROM join_tokens WHERE hash = ? AND role = ? AND name = ? AND expires > ? AND expires <= ? RETURNING role",
			tokenHash(in.JoinToken), in.Role, in.Name, e.Now().UnixMicro(), e.Now().Add(joinLife).UnixMicro())
		if errors.Is(err, sql.ErrNoRows) {
			return problem.Forbidden()
		}
		return err
	})
	if err != nil {
		return api.Enrolled{}, err
	}
	return e.issue(ctx, in.Role+"/"+in.Name, in.Role, in.Name, spki, "joined")
}

var inBrackets = regexp.MustCompile(`\((\d+)\)$`)

// Unmunge decodes a credential with unmunge(1), which refuses what was decoded
// before, is too old, or is for another uid.
func Unmunge(ctx context.Context, credential string) (Credential, error) {
	if !strings.HasPrefix(credential, "MUNGE:") || strings.ContainsAny(credential, "\r\n") {
		return Credential{}, errors.New("the answer has no MUNGE credential")
	}
	cmd := exec.CommandContext(ctx, "/usr/bin/unmunge", "--keys=STATUS,UID,UID_RESTRICTION")
	cmd.Env = []string{"PATH=/usr/bin", "LC_ALL=C"}
	cmd.Stdin = strings.NewReader(credential)
	out, err := cmd.Output()
	if err != nil {
		line, _, _ := bytes.Cut(out, []byte("\n"))
		return Credential{}, fmt.Errorf("unmunge: %w: %s", err, line)
	}
	return parseCredential(string(out))
}

func parseCredential(out string) (Credential, error) {
	head, payload, ok := strings.Cut(out, "\n\n")
	if !ok {
		return Credential{}, errors.New("unmunge: its answer has no payload")
	}
	c := Credential{For: -1, Payload: strings.TrimSuffix(payload, "\n")}
	good, owned := false, false
	for line := range strings.Lines(head) {
		key, text, _ := strings.Cut(strings.TrimSpace(line), ":")
		m := inBrackets.FindStringSubmatch(strings.TrimSpace(text))
		if m == nil {
			continue
		}
		n, err := strconv.ParseUint(m[1], 10, 32)
		if err != nil {
			return Credential{}, fmt.Errorf("unmunge: %w", err)
		}
		switch key {
		case "STATUS":
			good = n == 0
		case "UID":
			c.UID, owned = uint32(n), true
		case "UID_RESTRICTION":
			c.For = int64(n)
		}
	}
	if !good || !owned {
		return Credential{}, errors.New("unmunge: the credential is no good")
	}
	return c, nil
}
