package totp

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/base32"
	"errors"
	"fmt"
	"image/png"
	"io"
	"time"

	"github.com/pquerna/otp"
	"github.com/pquerna/otp/totp"
)

const (
	period     = 30
	digits     = 6
	secretSize = 20
	// qrSize is the side of the picture in pixels.
	qrSize = 240
	// KeySize is the size of the key that seals secrets, in bytes.
	KeySize = 32
	// sealVersion is the first byte of a sealed secret.
	sealVersion = 1
)

func options() totp.ValidateOpts {
	return totp.ValidateOpts{Period: period, Digits: otp.DigitsSix, Algorithm: otp.AlgorithmSHA1}
}

// Step is the number of the time step at now.
func Step(now time.Time) int64 { return now.Unix() / period }

// Match returns the step that the code belongs to, among the one at now and the
// one before. It compares all of them, whatever it finds.
func Match(secret, code string, now time.Time) (step int64, ok bool) {
	if len(code) != digits {
		return 0, false
	}
	for _, s := range []int64{Step(now) - 1, Step(now)} {
		want, err := totp.GenerateCodeCustom(secret, time.Unix(s*period, 0), options())
		if err != nil {
			return 0, false
		}
		if subtle.ConstantTimeCompare([]byte(want), []byte(code)) == 1 {
			step, ok = s, true
		}
	}
	return step, ok
}

// New makes a secret, in base32.
func New(random io.Reader) (string, error) {
	b := make([]byte, secretSize)
	if _, err := io.ReadFull(random, b); err != nil {
		return "", fmt.Errorf("make secret: %w", err)
	}
	return base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b), nil
}

// Show returns the secret as a URI and as a QR code in PNG.
func Show(secret, issuer, account string) (uri string, qr []byte, err error) {
	raw, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(secret)
	if err != nil {
		return "", nil, fmt.Errorf("show secret: %w", err)
	}
	key, err := totp.Generate(totp.GenerateOpts{
		Issuer: issuer, AccountName: account, Period: period, Secret: raw, Digits: otp.DigitsSix, Algorithm: otp.AlgorithmSHA1,
	})
	if err != nil {
		return "", nil, fmt.Errorf("show secret: %w", err)
	}
	img, err := key.Image(qrSize, qrSize)
	if err != nil {
		return "", nil, fmt.Errorf("draw QR code: %w", err)
	}
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		return "", nil, fmt.Errorf("draw QR code: %w", err)
	}
	return key.URL(), b.Bytes(), nil
}

// Sealer keeps secrets encrypted, each bound to its owner and purpose: one moved
// to another row does not open.
type Sealer struct {
	aead   cipher.AEAD
	random io.Reader
}

// NewSealer takes a key of KeySize bytes.
func NewSealer(key []byte, random io.Reader) (*Sealer, error) {
	if len(key) != KeySize {
		return nil, fmt.Errorf("key for factors has %d bytes, not %d; restore the file", len(key), KeySize)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return &Sealer{aead: aead, random: random}, nil
}

func bound(user, purpose string) []byte {
	return fmt.Appendf(nil, "carme-factor|%d|%s|%d|%s", len(user), user, len(purpose), purpose)
}

// Seal encrypts.
func (s *Sealer) Seal(user, purpose, secret string) ([]byte, error) {
	nonce := make([]byte, s.aead.NonceSize())
	if _, err := io.ReadFull(s.random, nonce); err != nil {
		return nil, fmt.Errorf("seal secret: %w", err)
	}
	out := append([]byte{sealVersion}, nonce...)
	return s.aead.Seal(out, nonce, []byte(secret), bound(user, purpose)), nil
}

// Open decrypts.
func (s *Sealer) Open(user, purpose string, sealed []byte) (string, error) {
	n := s.aead.NonceSize()
	if len(sealed) < 1+n || sealed[0] != sealVersion {
		return "", errors.New("open secret: it is not one of ours")
	}
	plain, err := s.aead.Open(nil, sealed[1:1+n], sealed[1+n:], bound(user, purpose))
	if err != nil {
		return "", fmt.Errorf("open secret of %s: %w; the key is another one, or the row was moved", user, err)
	}
	return string(plain), nil
}
