package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
)

func record(fields ...string) *Record {
	r := new(Record)
	for pair := range slices.Chunk(fields, 2) {
		r.Add(pair[0], pair[1])
	}
	return r
}

func body(s string) []byte {
	out := binary.LittleEndian.AppendUint32(nil, uint32(min(len(s), 1<<16)))
	return append(out, s...)
}

func TestRecordHasTheLayoutThatCReads(t *testing.T) {
	r := record("bind", "/data", "bind", "/scratch=x", "empty", "")
	r.AddEnv("HOME", "/home/a\nb")
	got, err := r.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	want := body("bind=/data\x00bind=/scratch=x\x00empty=\x00env.HOME=/home/a\nb\x00")
	if !bytes.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestRecordIsReadBackAsItWasWritten(t *testing.T) {
	cases := map[string]*Record{
		"empty":              {},
		"one field":          record("uid", "1001"),
		"a list in order":    record("bind", "/b", "net", "host", "bind", "/a"),
		"odd variable names": record("env.BASH_FUNC_x%%", "() { :; }", "env._", "="),
		"bytes not in UTF-8": record("path", "\xff\xfe"),
		"largest":            record("a", strings.Repeat("x", RecordMax-3)),
	}
	for name, want := range cases {
		t.Run(name, func(t *testing.T) {
			var stream bytes.Buffer
			if _, err := want.WriteTo(&stream); err != nil {
				t.Fatal(err)
			}
			size := int64(stream.Len())
			stream.WriteString("next")
			var got Record
			n, err := got.ReadFrom(iotest.HalfReader(&stream))
			if err != nil {
				t.Fatal(err)
			}
			if n != size || stream.String() != "next" {
				t.Errorf("read %d of %d bytes, left %q", n, size, stream.String())
			}
			if !slices.Equal(got.Fields(), want.Fields()) {
				t.Errorf("got %q", got.Fields())
			}
		})
	}
}

func TestRecordFindsValuesByKey(t *testing.T) {
	r := record("a", "1", "b", "2", "a", "3", "env.X", "y=z")
	if v, ok := r.Get("a"); v != "1" || !ok {
		t.Errorf("Get(a) = %q, %v", v, ok)
	}
	if v, ok := r.Get("c"); v != "" || ok {
		t.Errorf("Get(c) = %q, %v", v, ok)
	}
	if got := r.All("a"); !slices.Equal(got, []string{"1", "3"}) {
		t.Errorf("All(a) = %q", got)
	}
	if got := r.Env(); !slices.Equal(got, []string{"X=y=z"}) {
		t.Errorf("Env() = %q", got)
	}
}

func TestRecordThatCannotBeEncodedIsRefused(t *testing.T) {
	cases := map[string]struct {
		r    *Record
		says string
	}{
		"no key":              {record("", "x"), "field 0: empty key"},
		"capitals":            {record("ok", "", "Key", "x"), "field 1: key"},
		"equals sign in key":  {record("a=b", "x"), "character"},
		"NUL in key":          {record("a\x00b", "x"), "character"},
		"variable, no name":   {record("env.", "x"), "names no variable"},
		"equals in variable":  {record("env.A=B", "x"), "character"},
		"newline in variable": {record("env.A\n", "x"), "character"},
		"long key":            {record(strings.Repeat("a", RecordKeyMax+1), ""), "is the most"},
		"NUL in value":        {record("a", "x\x00y"), "contains NUL"},
		"one byte too many":   {record("a", strings.Repeat("x", RecordMax-2)), "more than"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := c.r.MarshalBinary()
			if !errors.Is(err, ErrRecord) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %q", err, c.says)
			}
			var out bytes.Buffer
			if n, err := c.r.WriteTo(&out); err == nil || n != 0 || out.Len() != 0 {
				t.Errorf("wrote %d bytes of it: %v", n, err)
			}
		})
	}
}

func TestRecordThatIsMalformedIsRefusedWithItsOffset(t *testing.T) {
	cases := map[string]struct {
		data []byte
		says string
	}{
		"nothing":               {nil, "shorter than its header"},
		"half a header":         {[]byte{1, 0}, "shorter than its header"},
		"length beyond limit":   {[]byte{0xff, 0xff, 0xff, 0xff}, "is the most"},
		"less than announced":   {body("a=b\x00")[:7], "header says 4 bytes, 3 follow"},
		"more than announced":   {append(body("a=b\x00"), 0), "header says 4 bytes, 5 follow"},
		"no NUL at the end":     {body("a=b\x00c=d"), "offset 8: field does not end"},
		"no equals sign":        {body("a=b\x00c\x00"), "offset 8: field without"},
		"empty field":           {body("\x00"), "offset 4: field without"},
		"empty key":             {body("=x\x00"), "offset 4: empty key"},
		"key in capitals":       {body("a=\x00B=\x00"), "offset 7: key"},
		"variable without name": {body("env.=1\x00"), "names no variable"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r := record("kept", "yes")
			err := r.UnmarshalBinary(c.data)
			if !errors.Is(err, ErrRecord) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %q", err, c.says)
			}
			if v, _ := r.Get("kept"); v != "yes" {
				t.Error("the record was changed")
			}
		})
	}
}

func TestRecordStreamThatEndsEarlySaysSo(t *testing.T) {
	whole := body("a=b\x00")
	for n := range whole {
		var r Record
		_, err := r.ReadFrom(bytes.NewReader(whole[:n]))
		want := io.ErrUnexpectedEOF
		if n == 0 {
			want = io.EOF
		}
		if !errors.Is(err, want) {
			t.Errorf("after %d bytes: got %v, want %v", n, err, want)
		}
	}
}

func TestRecordPassesOnTheErrorsOfItsStream(t *testing.T) {
	broken := errors.New("broken")
	var r Record
	if _, err := r.ReadFrom(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("read: got %v", err)
	}
	if _, err := r.ReadFrom(bytes.NewReader(body("a"))); !errors.Is(err, ErrRecord) {
		t.Errorf("malformed: got %v", err)
	}
	reader, writer := io.Pipe()
	_ = reader.CloseWithError(broken)
	if _, err := r.WriteTo(writer); !errors.Is(err, broken) {
		t.Errorf("write: got %v", err)
	}
}

func TestRecordHasTheLimitOfTheCSide(t *testing.T) {
	header, err := os.ReadFile("../../spank/cshim/common/record.h")
	if err != nil {
		t.Skipf("no header to compare with: %v", err)
	}
	m := regexp.MustCompile(`(?m)^#define RECORD_MAX \((\d+) \* (\d+)\)$`).FindSubmatch(header)
	if m == nil {
		t.Fatal("RECORD_MAX is not in record.h")
	}
	a, _ := strconv.Atoi(string(m[1]))
	b, _ := strconv.Atoi(string(m[2]))
	if a*b != RecordMax {
		t.Errorf("RECORD_MAX is %d, RecordMax %d", a*b, RecordMax)
	}
}

// The file is read and written by spank/cshim/test/record_test.c as well.
func TestRecordHasTheBytesOfTheCSide(t *testing.T) {
	golden, err := os.ReadFile("../../spank/cshim/test/testdata/record")
	if err != nil {
		t.Fatal(err)
	}
	var r Record
	r.Add("type", "start")
	r.Add("opt.carme", "")
	r.AddEnv("PATH", "/bin:/usr/bin")
	r.Add("gids", "10")
	r.Add("gids", "4294967295")
	r.Add("opt.carme_bind", "/a=b:/c d\n\"\xff\xfe\"")
	if got, err := r.MarshalBinary(); err != nil || !bytes.Equal(got, golden) {
		t.Errorf("Go writes %q (%v), C wrote %q", got, err, golden)
	}
	var back Record
	if err := back.UnmarshalBinary(golden); err != nil || !slices.Equal(back.Fields(), r.Fields()) {
		t.Errorf("Go reads %q (%v)", back.Fields(), err)
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte{})
	f.Add(body(""))
	f.Add(body("a=b\x00env.X=1\x00"))
	f.Add(body("a\x00"))
	f.Add([]byte{0, 0, 0x10, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		var fromBytes, fromStream Record
		errBytes := fromBytes.UnmarshalBinary(data)
		_, _ = fromStream.ReadFrom(bytes.NewReader(data))
		if errBytes != nil {
			return
		}
		if !slices.Equal(fromBytes.Fields(), fromStream.Fields()) {
			t.Fatalf("bytes %q and stream %q differ", fromBytes.Fields(), fromStream.Fields())
		}
		again, err := fromBytes.MarshalBinary()
		if err != nil {
			t.Fatalf("decoded but not encoded: %v", err)
		}
		if !bytes.Equal(again, data) {
			t.Fatalf("got %q back, want %q", again, data)
		}
	})
}
