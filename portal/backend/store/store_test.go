package store

import (
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func fresh(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c a?r#me.db")
	if err := Create(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	return path
}

func opened(t *testing.T, path string) *DB {
	t.Helper()
	db, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func TestOpen_refuses(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(t *testing.T, path string)
		want  string
	}{
		"a missing file":         {func(t *testing.T, p string) { t.Helper(); remove(t, p) }, "carme-backend init"},
		"an empty file":          {func(t *testing.T, p string) { t.Helper(); truncate(t, p, 0) }, "backup"},
		"a truncated file":       {func(t *testing.T, p string) { t.Helper(); truncate(t, p, 8192) }, "backup"},
		"a file of another kind": {func(t *testing.T, p string) { t.Helper(); overwrite(t, p) }, "backup"},
		"a newer schema": {func(t *testing.T, p string) {
			t.Helper()
			db := opened(t, p)
			if err := db.Write(t.Context(), func(tx Tx) error {
				_, err := Exec(t.Context(), tx, "INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, TRUE)")
				return err
			}); err != nil {
				t.Fatal(err)
			}
			_ = db.Close()
		}, "newer release"},
		"a second process": {func(t *testing.T, p string) { t.Helper(); opened(t, p) }, "another carme-backend"},
	} {
		t.Run(name, func(t *testing.T) {
			path := fresh(t)
			c.spoil(t, path)
			db, err := Open(t.Context(), path)
			if err == nil {
				_ = db.Close()
				t.Fatal("it was opened")
			}
			if !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error is %q", err)
			}
		})
	}
}

func TestOpen_refuses_what_it_cannot_write(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may write anything; integration has the same test with the backend's user")
	}
	for name, spoil := range map[string]func(path string) error{
		"the file":      func(p string) error { return os.Chmod(p, 0o400) },
		"its directory": func(p string) error { return os.Chmod(filepath.Dir(p), 0o500) }, //nolint:gosec // G302: it is a directory
	} {
		t.Run(name, func(t *testing.T) {
			path := fresh(t)
			if err := spoil(path); err != nil {
				t.Fatal(err)
			}
			if db, err := Open(t.Context(), path); err == nil || !strings.Contains(err.Error(), "chown carme-backend") {
				t.Errorf("%v, %v", db, err)
			}
			if err := os.Chmod(filepath.Dir(path), 0o700); err != nil { //nolint:gosec // G302: it is a directory
				t.Fatal(err)
			}
		})
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func truncate(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

func overwrite(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(strings.Repeat("x", 8192)), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestCreate_keeps_what_is_there(t *testing.T) {
	if err := Create(t.Context(), fresh(t)); err == nil {
		t.Error("a database was replaced")
	}
}

func TestEvery_connection_has_the_pragmas(t *testing.T) {
	db := opened(t, fresh(t))
	for _, from := range []Tx{db.Read(), db.write} {
		for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "busy_timeout": "5000"} {
			var got string
			if err := One(t.Context(), from, &got, "PRAGMA "+pragma); err != nil || got != want {
				t.Errorf("%s is %q, %v", pragma, got, err)
			}
		}
	}
	if _, err := Exec(t.Context(), db.Read(), "DELETE FROM users"); err == nil {
		t.Error("a reader writes")
	}
}

func TestWrite_undoes_all_of_what_fails(t *testing.T) {
	db := opened(t, fresh(t))
	boom := errors.New("boom")
	err := db.Write(t.Context(), func(tx Tx) error {
		if _, err := Exec(t.Context(), tx, "INSERT INTO join_tokens (hash, role, name, expires) VALUES ('a', 'b', 'c', 1)"); err != nil {
			return err
		}
		return boom
	})
	var n int
	if !errors.Is(err, boom) || One(t.Context(), db.Read(), &n, "SELECT COUNT(*) FROM join_tokens") != nil || n != 0 {
		t.Errorf("%v, %d rows", err, n)
	}
	var hash string
	if err := One(t.Context(), db.Read(), &hash, "SELECT hash FROM join_tokens"); !errors.Is(err, sql.ErrNoRows) {
		t.Errorf("no row: %v", err)
	}
}
