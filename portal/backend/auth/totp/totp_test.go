package totp

import (
	"bytes"
	"crypto/rand"
	"image/png"
	"testing"
	"time"

	"github.com/pquerna/otp"
)

// The secret and codes of RFC 6238, appendix B, in six digits.
const secret = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ" //nolint:gosec // G101: the RFC has it

func TestMatch_takes_this_step_and_the_one_before(t *testing.T) {
	now := time.Unix(1111111109, 0) // code 081804, step 37037036
	for name, c := range map[string]struct {
		at   time.Time
		code string
		ok   bool
	}{
		"this step":       {now, "081804", true},
		"the one before":  {now.Add(period * time.Second), "081804", true},
		"two before":      {now.Add(2 * period * time.Second), "081804", false},
		"one ahead":       {now.Add(-period * time.Second), "081804", false},
		"a wrong one":     {now, "081805", false},
		"a short one":     {now, "81804", false},
		"a long one":      {now, "0818040", false},
		"none":            {now, "", false},
		"letters":         {now, "abcdef", false},
		"wide characters": {now, "０８", false},
	} {
		step, ok := Match(secret, c.code, c.at)
		if ok != c.ok || ok && step != 37037036 {
			t.Errorf("%s: %d, %v", name, step, ok)
		}
	}
}

func TestSealed_secret_opens_in_its_row_only(t *testing.T) {
	s, err := NewSealer(bytes.Repeat([]byte{1}, KeySize), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := s.Seal("alice", "totp", secret)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.Open("alice", "totp", sealed); err != nil || got != secret {
		t.Errorf("%q, %v", got, err)
	}
	other, err := NewSealer(bytes.Repeat([]byte{2}, KeySize), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(sealed)
	flipped[len(flipped)-1] ^= 1
	for name, try := range map[string]func() (string, error){
		"another user's":  func() (string, error) { return s.Open("bob", "totp", sealed) },
		"another purpose": func() (string, error) { return s.Open("alice", "totp-next", sealed) },
		"shifted fields":  func() (string, error) { return s.Open("alicet", "otp", sealed) },
		"another key":     func() (string, error) { return other.Open("alice", "totp", sealed) },
		"a changed bit":   func() (string, error) { return s.Open("alice", "totp", flipped) },
		"a piece":         func() (string, error) { return s.Open("alice", "totp", sealed[:5]) },
		"nothing":         func() (string, error) { return s.Open("alice", "totp", nil) },
	} {
		if got, err := try(); err == nil {
			t.Errorf("%s: opened to %q", name, got)
		}
	}
	if _, err := NewSealer([]byte("short"), rand.Reader); err == nil {
		t.Error("a short key was taken")
	}
}

func TestShow_says_the_same_in_text_and_picture(t *testing.T) {
	uri, picture, err := Show(secret, "Carme of HPC", "alice")
	if err != nil {
		t.Fatal(err)
	}
	key, err := otp.NewKeyFromURL(uri)
	if err != nil {
		t.Fatal(err)
	}
	if key.Type() != "totp" || key.Secret() != secret || key.Issuer() != "Carme of HPC" || key.AccountName() != "alice" ||
		key.Period() != period || key.Digits() != otp.DigitsSix || key.Algorithm() != otp.AlgorithmSHA1 {
		t.Errorf("an app for codes reads %s", uri)
	}
	shown, err := png.Decode(bytes.NewReader(picture))
	if err != nil {
		t.Fatal(err)
	}
	want, err := key.Image(qrSize, qrSize)
	if err != nil {
		t.Fatal(err)
	}
	dark := 0
	for y := range qrSize {
		for x := range qrSize {
			r, _, _, _ := shown.At(x, y).RGBA()
			w, _, _, _ := want.At(x, y).RGBA()
			if r != w {
				t.Fatalf("the picture is of something else, at %d,%d", x, y)
			}
			if r == 0 {
				dark++
			}
		}
	}
	if dark < qrSize*qrSize/5 || dark > qrSize*qrSize*4/5 {
		t.Errorf("%d of %d points are dark", dark, qrSize*qrSize)
	}
}
