package audit

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/backend/store"
)

// fieldMax is the longest text of a record that is kept, in bytes.
const fieldMax = 512

// Log writes records. One process writes to a database.
type Log struct {
	Now func() time.Time
	Out *slog.Logger
}

type row struct {
	Seq    int64
	At     int64
	Actor  string
	Act    string
	Object string
	Detail string
	Hash   string
}

// Write adds a record to the transaction: no row, no act.
func (l *Log) Write(ctx context.Context, tx store.Tx, actor, act, object string, detail map[string]string) error {
	var last row
	err := store.One(ctx, tx, &last, "SELECT seq, at, actor, act, object, detail, hash FROM audit ORDER BY seq DESC LIMIT 1")
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("read audit log: %w", err)
	}
	short := map[string]string{}
	for k, v := range detail {
		short[k] = clip(v)
	}
	text, err := json.Marshal(short)
	if err != nil {
		return fmt.Errorf("write audit log: %w", err)
	}
	r := row{
		Seq: last.Seq + 1, At: l.Now().UnixMicro(), Actor: clip(actor), Act: clip(act), Object: clip(object), Detail: string(text),
	}
	r.Hash = r.chain(last.Hash)
	if _, err := store.Exec(ctx, tx, "INSERT INTO audit (seq, at, actor, act, object, detail, hash) VALUES (?, ?, ?, ?, ?, ?, ?)",
		r.Seq, r.At, r.Actor, r.Act, r.Object, r.Detail, r.Hash); err != nil {
		return fmt.Errorf("write audit log: %w", err)
	}
	l.Out.LogAttrs(ctx, slog.LevelInfo, "audit", slog.Int64("seq", r.Seq), slog.String("actor", r.Actor),
		slog.String("act", r.Act), slog.String("object", r.Object), slog.Any("detail", short))
	return nil
}

// chain hashes the row with the hash of the one before. Every field has its
// length in front, so that no two rows hash the same bytes.
func (r row) chain(before string) string {
	h := sha256.New()
	var n [8]byte
	number := func(v int64) {
		binary.BigEndian.PutUint64(n[:], uint64(v)) //nolint:gosec // bits, not a value
		h.Write(n[:])
	}
	number(r.Seq)
	number(r.At)
	for _, s := range []string{before, r.Actor, r.Act, r.Object, r.Detail} {
		number(int64(len(s)))
		h.Write([]byte(s))
	}
	return hex.EncodeToString(h.Sum(nil))
}

// clip makes a text fit to be kept: valid, printable in JSON, not too long.
func clip(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= fieldMax {
		return s
	}
	cut := fieldMax
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut]
}

// pageMax is how many records List returns.
const pageMax = 500

// List returns the records after a sequence number, in order, 500 at most.
func List(ctx context.Context, tx store.Tx, after int64) ([]api.AuditRecord, error) {
	var rows []row
	if err := store.One(ctx, tx, &rows, "SELECT seq, at, actor, act, object, detail, hash FROM audit WHERE seq > ? ORDER BY seq LIMIT ?", after, pageMax); err != nil {
		return nil, fmt.Errorf("read audit log: %w", err)
	}
	list := make([]api.AuditRecord, 0, len(rows))
	for _, r := range rows {
		rec := api.AuditRecord{Seq: r.Seq, Time: time.UnixMicro(r.At).UTC(), Actor: r.Actor, Act: r.Act, Object: r.Object, Hash: r.Hash}
		if err := json.Unmarshal([]byte(r.Detail), &rec.Detail); err != nil {
			rec.Detail = map[string]string{"unreadable": r.Detail}
		}
		list = append(list, rec)
	}
	return list, nil
}

// BrokenError is the first record that does not fit its chain.
type BrokenError struct{ Seq int64 }

// Error names the record.
func (e BrokenError) Error() string {
	return fmt.Sprintf("audit record %d is not what was written; the log was changed there or before", e.Seq)
}

// Verify walks the whole chain and returns how many records it has and the hash
// of the last, or a BrokenError.
func Verify(ctx context.Context, tx store.Tx) (records int64, hash string, err error) {
	for {
		var rows []row
		if err := store.One(ctx, tx, &rows, "SELECT seq, at, actor, act, object, detail, hash FROM audit WHERE seq > ? ORDER BY seq LIMIT ?", records, pageMax); err != nil {
			return 0, "", fmt.Errorf("read audit log: %w", err)
		}
		for _, r := range rows {
			if r.Seq != records+1 || r.Hash != r.chain(hash) {
				return records, hash, BrokenError{Seq: records + 1}
			}
			records, hash = r.Seq, r.Hash
		}
		if len(rows) < pageMax {
			return records, hash, nil
		}
	}
}
