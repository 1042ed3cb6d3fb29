package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Limits and layout of an encoded Record. RECORD_MAX in
// spank/cshim/common/record.h is RecordMax.
const (
	// RecordHeader is the size in bytes of the length in front of the body.
	RecordHeader = 4
	// RecordMax is the longest body of a record in bytes, its header not
	// counted.
	RecordMax = 1 << 20
	// RecordKeyMax is the longest key in bytes.
	RecordKeyMax = 255
)

// envPrefix marks a key that carries one environment variable.
const envPrefix = "env."

// ErrRecord is what every error about a malformed record wraps.
var ErrRecord = errors.New("malformed record")

// Field is one key and value of a Record.
type Field struct {
	Key   string
	Value string
}

// Record is an ordered list of keys with values, the one encoding that C and
// Go exchange. A key may occur several times; its values are then a list.
//
// Encoded it is the length of the body in bytes as a little-endian u32, then
// per field `key=value\0`. Keys are made of [a-z0-9_.], or are `env.NAME` where
// NAME is the name of an environment variable (printable ASCII without `=`).
// Values are any bytes but NUL. The zero value is an empty record, ready to use.
type Record struct {
	fields []Field
}

// Add appends a field. A key or value that cannot be encoded is reported by
// MarshalBinary and WriteTo, so that a plan is built without a check per line.
func (r *Record) Add(key, value string) {
	r.fields = append(r.fields, Field{Key: key, Value: value})
}

// AddEnv appends the environment variable name as the field `env.NAME`.
func (r *Record) AddEnv(name, value string) {
	r.Add(envPrefix+name, value)
}

// Get returns the first value of key, and whether there is one.
func (r *Record) Get(key string) (string, bool) {
	for _, f := range r.fields {
		if f.Key == key {
			return f.Value, true
		}
	}
	return "", false
}

// All returns every value of key in the order in which they were added, nil if
// there is none.
func (r *Record) All(key string) []string {
	var values []string
	for _, f := range r.fields {
		if f.Key == key {
			values = append(values, f.Value)
		}
	}
	return values
}

// Env returns the environment variables of the record as NAME=value, in order.
func (r *Record) Env() []string {
	var env []string
	for _, f := range r.fields {
		if name, ok := strings.CutPrefix(f.Key, envPrefix); ok {
			env = append(env, name+"="+f.Value)
		}
	}
	return env
}

// Fields returns a copy of all fields in order.
func (r *Record) Fields() []Field {
	return append([]Field(nil), r.fields...)
}

// Len returns the number of fields.
func (r *Record) Len() int { return len(r.fields) }

// MarshalBinary encodes the record with its header. It fails with ErrRecord if
// a key or value cannot be encoded or the result would exceed RecordMax.
func (r *Record) MarshalBinary() ([]byte, error) {
	size := 0
	for i, f := range r.fields {
		if err := checkKey(f.Key); err != nil {
			return nil, fmt.Errorf("%w: field %d: %w", ErrRecord, i, err)
		}
		if strings.IndexByte(f.Value, 0) >= 0 {
			return nil, fmt.Errorf("%w: field %d: value of %s contains NUL", ErrRecord, i, f.Key)
		}
		size += len(f.Key) + len(f.Value) + 2
		if size > RecordMax {
			return nil, fmt.Errorf("%w: field %d: more than %d bytes", ErrRecord, i, RecordMax)
		}
	}
	out := make([]byte, RecordHeader, RecordHeader+size)
	binary.LittleEndian.PutUint32(out, uint32(size))
	for _, f := range r.fields {
		out = append(out, f.Key...)
		out = append(out, '=')
		out = append(out, f.Value...)
		out = append(out, 0)
	}
	return out, nil
}

// UnmarshalBinary decodes exactly one record from data and replaces r by it.
// It is strict: errors wrap ErrRecord and name the offset in data, in bytes, at
// which the record goes wrong; r is then unchanged.
func (r *Record) UnmarshalBinary(data []byte) error {
	if len(data) < RecordHeader {
		return fmt.Errorf("%w: %d bytes, shorter than its header", ErrRecord, len(data))
	}
	size, err := bodySize(data)
	if err != nil {
		return err
	}
	if got := len(data) - RecordHeader; got != size {
		return fmt.Errorf("%w: header says %d bytes, %d follow", ErrRecord, size, got)
	}
	fields, err := decodeBody(data[RecordHeader:])
	if err != nil {
		return err
	}
	r.fields = fields
	return nil
}

// ReadFrom reads exactly one record and not a byte more, so that records can
// follow each other on one stream. It returns the bytes read. A stream that
// ends before the first byte is io.EOF, one that ends within a record wraps
// io.ErrUnexpectedEOF; what is malformed wraps ErrRecord.
func (r *Record) ReadFrom(in io.Reader) (int64, error) {
	var header [RecordHeader]byte
	n, err := io.ReadFull(in, header[:])
	if errors.Is(err, io.EOF) {
		return 0, io.EOF
	}
	if err != nil {
		return int64(n), fmt.Errorf("read record header: %w", err)
	}
	size, err := bodySize(header[:])
	if err != nil {
		return int64(n), err
	}
	body := make([]byte, size)
	m, err := io.ReadFull(in, body)
	total := int64(n + m)
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return total, fmt.Errorf("read record body: %d of %d bytes: %w", m, size, err)
	}
	fields, err := decodeBody(body)
	if err != nil {
		return total, err
	}
	r.fields = fields
	return total, nil
}

// WriteTo writes the encoded record with one call of Write, and returns the
// bytes written. Errors are those of MarshalBinary and of the writer.
func (r *Record) WriteTo(out io.Writer) (int64, error) {
	data, err := r.MarshalBinary()
	if err != nil {
		return 0, err
	}
	n, err := out.Write(data)
	if err != nil {
		return int64(n), fmt.Errorf("write record: %w", err)
	}
	return int64(n), nil
}

// bodySize reads the header of a record and checks it against the limit.
func bodySize(header []byte) (int, error) {
	size := binary.LittleEndian.Uint32(header)
	if size > RecordMax {
		return 0, fmt.Errorf("%w: header says %d bytes, %d is the most", ErrRecord, size, RecordMax)
	}
	return int(size), nil
}

// decodeBody decodes the fields that follow the header.
func decodeBody(body []byte) ([]Field, error) {
	var fields []Field
	for at := 0; at < len(body); {
		offset := at + RecordHeader
		end := bytes.IndexByte(body[at:], 0)
		if end < 0 {
			return nil, fmt.Errorf("%w: offset %d: field does not end in NUL", ErrRecord, offset)
		}
		key, value, ok := strings.Cut(string(body[at:at+end]), "=")
		if !ok {
			return nil, fmt.Errorf("%w: offset %d: field without \"=\"", ErrRecord, offset)
		}
		if err := checkKey(key); err != nil {
			return nil, fmt.Errorf("%w: offset %d: %w", ErrRecord, offset, err)
		}
		fields = append(fields, Field{Key: key, Value: value})
		at += end + 1
	}
	return fields, nil
}

// checkKey says why key cannot be a key of a record, nil if it can. It is on
// the path of every field, so it walks bytes.
func checkKey(key string) error {
	if key == "" {
		return errors.New("empty key")
	}
	if len(key) > RecordKeyMax {
		return fmt.Errorf("key of %d bytes, %d is the most", len(key), RecordKeyMax)
	}
	allowed := isKeyByte
	name := key
	if rest, ok := strings.CutPrefix(key, envPrefix); ok {
		if rest == "" {
			return fmt.Errorf("key %q names no variable", key)
		}
		allowed, name = isEnvByte, rest
	}
	for i := range len(name) {
		if !allowed(name[i]) {
			return fmt.Errorf("key %q has a character that keys may not have", key)
		}
	}
	return nil
}

func isKeyByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '_' || c == '.'
}

func isEnvByte(c byte) bool { return c > ' ' && c < 0x7f && c != '=' }
