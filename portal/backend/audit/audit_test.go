package audit

import (
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/carme-hpc/carme/portal/backend/store"
)

func logged(t *testing.T, n int) *store.DB {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	if err := store.Create(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	l := &Log{Now: time.Now, Out: slog.New(slog.DiscardHandler)}
	for range n {
		if err := db.Write(t.Context(), func(tx store.Tx) error {
			return l.Write(t.Context(), tx, "alice", "job submit", "1\n{\"x\":", map[string]string{"k": strings.Repeat("ü", 400)})
		}); err != nil {
			t.Fatal(err)
		}
	}
	return db
}

func TestLog_is_unbroken(t *testing.T) {
	db := logged(t, 3)
	n, hash, err := Verify(t.Context(), db.Read())
	if n != 3 || len(hash) != 64 || err != nil {
		t.Errorf("%d records, %s, %v", n, hash, err)
	}
	list, err := List(t.Context(), db.Read(), 1)
	if err != nil || len(list) != 2 || list[0].Object != "1\n{\"x\":" || len(list[0].Detail["k"]) > 512 {
		t.Errorf("list is %+v, %v", list, err)
	}
}

func TestLog_cannot_be_changed_and_a_change_is_found(t *testing.T) {
	for name, query := range map[string]string{
		"another actor": "UPDATE audit SET actor = 'bob' WHERE seq = 2",
		"a row removed": "DELETE FROM audit WHERE seq = 2",
		"another time":  "UPDATE audit SET at = at + 1 WHERE seq = 2",
	} {
		t.Run(name, func(t *testing.T) {
			db := logged(t, 3)
			do := func(q string) error {
				return db.Write(t.Context(), func(tx store.Tx) error {
					_, err := store.Exec(t.Context(), tx, q)
					return err
				})
			}
			if err := do(query); err == nil || !strings.Contains(err.Error(), "append-only") {
				t.Errorf("the triggers let it through: %v", err)
			}
			for _, q := range []string{"DROP TRIGGER audit_no_update", "DROP TRIGGER audit_no_delete", query} {
				if err := do(q); err != nil {
					t.Fatal(err)
				}
			}
			_, _, err := Verify(t.Context(), db.Read())
			broken, ok := errors.AsType[BrokenError](err)
			if !ok || broken.Seq != 2 {
				t.Errorf("found %v", err)
			}
		})
	}
}
