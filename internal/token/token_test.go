package token

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"strings"
	"testing"
	"time"
)

var (
	now    = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	key    = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
	public = map[string]ed25519.PublicKey{"k1": key.Public().(ed25519.PublicKey)}
)

func claims() Claims {
	return Claims{
		KeyID: "k1", Cluster: "c", Node: "node1", Job: 12, Instance: strings.Repeat("ab", 16), UID: 10001,
		App: "jupyterlab", Viewer: "alice", Mode: "full", ID: "g-1", PortalKey: [32]byte{1, 2, 3},
		NotBefore: now.Add(-10 * time.Second), Expires: now.Add(60 * time.Second),
	}
}

func sign(t *testing.T, c Claims) []byte {
	t.Helper()
	tok, err := Sign(key, c)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestVerify_returns_what_was_signed(t *testing.T) {
	got, err := Verify(sign(t, claims()), public, now)
	if err != nil || got != claims() {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestVerify_refuses(t *testing.T) {
	other := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{8}, ed25519.SeedSize))
	forged, err := Sign(other, claims())
	if err != nil {
		t.Fatal(err)
	}
	unknown := claims()
	unknown.KeyID = "k2"
	good := sign(t, claims())
	cases := map[string]struct {
		tok  []byte
		now  time.Time
		want error
	}{
		"nothing":             {nil, now, ErrMalformed},
		"a signature alone":   {good[len(good)-64:], now, ErrMalformed},
		"a huge one":          {bytes.Repeat([]byte{1}, MaxSize+1), now, ErrMalformed},
		"another version":     {append([]byte{2}, good[1:]...), now, ErrMalformed},
		"a byte too many":     {append(bytes.Clone(good), 0), now, ErrMalformed},
		"another signer":      {forged, now, ErrSignature},
		"an unknown key":      {sign(t, unknown), now, ErrKey},
		"too early":           {good, now.Add(-11 * time.Second), ErrEarly},
		"at its expiry":       {good, now.Add(60 * time.Second), ErrExpired},
		"replay after expiry": {good, now.Add(time.Hour), ErrExpired},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if _, err := Verify(c.tok, public, c.now); !errors.Is(err, c.want) {
				t.Errorf("error is %v, want %v", err, c.want)
			}
		})
	}
}

func TestVerify_refuses_every_changed_byte(t *testing.T) {
	good := sign(t, claims())
	for i := range good {
		for _, flip := range []byte{1, 0x80} {
			tok := bytes.Clone(good)
			tok[i] ^= flip
			if c, err := Verify(tok, public, now); err == nil {
				t.Fatalf("byte %d changed by %#x was taken: %+v", i, flip, c)
			}
		}
	}
}

func TestVerify_refuses_a_long_life_though_it_is_signed(t *testing.T) {
	c := claims()
	c.Expires = c.NotBefore.Add(MaxLife)
	tok := sign(t, c)
	// What a signer with a mistake would make: the last byte of Expires.
	body := bytes.Clone(tok[:len(tok)-ed25519.SignatureSize])
	body[len(body)-1]++
	tok = append(body, ed25519.Sign(key, signed(body))...)
	if _, err := Verify(tok, public, now); !errors.Is(err, ErrLife) {
		t.Errorf("error is %v, want %v", err, ErrLife)
	}
}

func TestSign_refuses(t *testing.T) {
	for name, change := range map[string]func(*Claims){
		"a life of more than two minutes": func(c *Claims) { c.Expires = c.NotBefore.Add(MaxLife + time.Millisecond) },
		"an expiry before the start":      func(c *Claims) { c.Expires = c.NotBefore },
		"no times":                        func(c *Claims) { c.NotBefore, c.Expires = time.Time{}, time.Time{} },
		"a long name":                     func(c *Claims) { c.Viewer = strings.Repeat("x", MaxSize) },
		"a name longer than its length":   func(c *Claims) { c.Viewer = strings.Repeat("x", 1<<16) },
	} {
		t.Run(name, func(t *testing.T) {
			c := claims()
			change(&c)
			if tok, err := Sign(key, c); err == nil {
				t.Errorf("signed: %x", tok)
			}
		})
	}
	if _, err := Sign(nil, claims()); err == nil {
		t.Error("signed without a key")
	}
}

func TestSign_keeps_fields_apart(t *testing.T) {
	a, b := claims(), claims()
	a.Viewer, a.Mode = "ab", "c"
	b.Viewer, b.Mode = "a", "bc"
	if bytes.Equal(sign(t, a), sign(t, b)) {
		t.Error("two claims, one token")
	}
}

func FuzzVerify(f *testing.F) {
	good, err := Sign(key, claims())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:40])
	f.Add([]byte{version, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, tok []byte) {
		c, err := Verify(tok, public, now)
		if err != nil {
			return
		}
		again, err := Sign(key, c)
		if err != nil || !bytes.Equal(again, tok) {
			t.Errorf("%x was taken, but is not what the signer writes", tok)
		}
	})
}
