package token

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

const (
	// MaxSize is the size of the largest token, in bytes.
	MaxSize = 2048
	// MaxLife is the longest time between NotBefore and Expires.
	MaxLife = 120 * time.Second

	version = 1
	// domain keeps a signature of a token from being one of anything else that
	// the same key might ever sign.
	domain = "carme route token 1\x00"
)

// Reasons why a token is refused.
var (
	ErrMalformed = errors.New("token is malformed")
	ErrKey       = errors.New("token is signed by a key that is not known")
	ErrSignature = errors.New("token has a wrong signature")
	ErrEarly     = errors.New("token is not valid yet")
	ErrExpired   = errors.New("token has expired")
	ErrLife      = errors.New("token lives too long")
)

// Claims is what a token says.
type Claims struct {
	// KeyID names the key that signs it.
	KeyID   string
	Cluster string
	// Node is the only node that may take it.
	Node string
	Job  uint32
	// Instance is the job's 128 random bits in hex: a requeued job has others.
	Instance string
	UID      uint32
	App      string
	// Viewer is who looks, Mode what they may do.
	Viewer string
	Mode   string
	// ID is the grant's: all streams of one grant have the same.
	ID string
	// PortalKey is the SHA-256 of the public key of the only portal that may
	// show it (mtls.SPKIHash).
	PortalKey [32]byte
	// NotBefore and Expires are kept to the millisecond. Clocks differ: whoever
	// signs puts NotBefore back by what is tolerated.
	NotBefore time.Time
	Expires   time.Time
}

// Sign makes the token of c. It refuses a life of more than MaxLife, and claims
// that do not fit into MaxSize.
func Sign(key ed25519.PrivateKey, c Claims) ([]byte, error) {
	if len(key) != ed25519.PrivateKeySize {
		return nil, errors.New("sign token: the key is not an Ed25519 key")
	}
	if err := checkLife(c); err != nil {
		return nil, fmt.Errorf("sign token: %w", err)
	}
	tok := []byte{version}
	for _, s := range c.texts() {
		if len(*s) > MaxSize {
			return nil, fmt.Errorf("sign token: claims of more than %d bytes", MaxSize)
		}
		tok = binary.BigEndian.AppendUint16(tok, uint16(len(*s))) //nolint:gosec // G115: at most MaxSize
		tok = append(tok, *s...)
	}
	tok = binary.BigEndian.AppendUint32(tok, c.Job)
	tok = binary.BigEndian.AppendUint32(tok, c.UID)
	tok = append(tok, c.PortalKey[:]...)
	tok = binary.BigEndian.AppendUint64(tok, uint64(c.NotBefore.UnixMilli()))
	tok = binary.BigEndian.AppendUint64(tok, uint64(c.Expires.UnixMilli()))
	if len(tok)+ed25519.SignatureSize > MaxSize {
		return nil, fmt.Errorf("sign token: claims of more than %d bytes", MaxSize)
	}
	return append(tok, ed25519.Sign(key, signed(tok))...), nil
}

// Verify checks signature and times of a token and returns its claims. It does
// not compare node, cluster, job or portal: only the caller knows what they must
// be.
func Verify(tok []byte, keys map[string]ed25519.PublicKey, now time.Time) (Claims, error) {
	if len(tok) > MaxSize || len(tok) <= ed25519.SignatureSize {
		return Claims{}, ErrMalformed
	}
	body, signature := tok[:len(tok)-ed25519.SignatureSize], tok[len(tok)-ed25519.SignatureSize:]
	c, err := parse(body)
	if err != nil {
		return Claims{}, err
	}
	key, ok := keys[c.KeyID]
	if !ok || len(key) != ed25519.PublicKeySize {
		return Claims{}, ErrKey
	}
	if !ed25519.Verify(key, signed(body), signature) {
		return Claims{}, ErrSignature
	}
	if err := checkLife(c); err != nil {
		return Claims{}, err
	}
	if now.Before(c.NotBefore) {
		return Claims{}, ErrEarly
	}
	if !now.Before(c.Expires) {
		return Claims{}, ErrExpired
	}
	return c, nil
}

// checkLife compares milliseconds, as a token keeps them: what was signed must
// not be refused for a rounding.
func checkLife(c Claims) error {
	from, to := c.NotBefore.UnixMilli(), c.Expires.UnixMilli()
	// The years bound both, so that the difference cannot overflow.
	const last = int64(1) << 50
	if from < 0 || to < 0 || from > last || to > last || to <= from {
		return ErrMalformed
	}
	if to-from > MaxLife.Milliseconds() {
		return ErrLife
	}
	return nil
}

func signed(body []byte) []byte { return append([]byte(domain), body...) }

// texts are the fields of variable size in their order.
func (c *Claims) texts() []*string {
	return []*string{&c.KeyID, &c.Cluster, &c.Node, &c.Instance, &c.App, &c.Viewer, &c.Mode, &c.ID}
}

func parse(body []byte) (Claims, error) {
	if body[0] != version {
		return Claims{}, ErrMalformed
	}
	rest := body[1:]
	var c Claims
	for _, s := range c.texts() {
		if len(rest) < 2 {
			return Claims{}, ErrMalformed
		}
		n := int(binary.BigEndian.Uint16(rest))
		rest = rest[2:]
		if len(rest) < n {
			return Claims{}, ErrMalformed
		}
		*s, rest = string(rest[:n]), rest[n:]
	}
	if len(rest) != 4+4+len(c.PortalKey)+8+8 {
		return Claims{}, ErrMalformed
	}
	c.Job = binary.BigEndian.Uint32(rest)
	c.UID = binary.BigEndian.Uint32(rest[4:])
	rest = rest[8:]
	rest = rest[copy(c.PortalKey[:], rest):]
	c.NotBefore = time.UnixMilli(int64(binary.BigEndian.Uint64(rest))).UTC()   //nolint:gosec // G115: written the same way
	c.Expires = time.UnixMilli(int64(binary.BigEndian.Uint64(rest[8:]))).UTC() //nolint:gosec // G115: written the same way
	return c, nil
}
