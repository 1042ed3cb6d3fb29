package logx

import (
	"io"
	"log/slog"
)

// New returns a logger that writes records of at least this level to w, one
// JSON object per line.
func New(w io.Writer, level slog.Level) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level}))
}

// Secret is a text that must not reach a log: printed or logged it is a
// placeholder. Take its value by string(s).
type Secret string

const hidden = "[secret]"

// String hides the secret from fmt.
func (Secret) String() string { return hidden }

// GoString hides the secret from %#v.
func (Secret) GoString() string { return hidden }

// LogValue hides the secret from slog.
func (Secret) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalText hides the secret from encoders, also inside of other values.
func (Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }
