package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/pressly/goose/v3"
	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/sqlitedialect"
	"golang.org/x/sys/unix"
	_ "modernc.org/sqlite" // the driver "sqlite"
)

//go:embed migrations/*.sql
var migrations embed.FS

// readers is how many queries run beside the one writer.
const readers = 4

// Tx is a transaction, or a connection that only reads.
type Tx = bun.IDB

// DB is the open database. Its methods may be called at once.
type DB struct {
	write, read *bun.DB
	lock        *os.File
	written     atomic.Uint64

	mu       sync.Mutex
	prepared map[string]*sql.Stmt
}

// Create makes a new database with its schema; the file must not exist.
func Create(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600) //nolint:gosec // G304: the admin's own setting
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("create database %s: it exists; move it away if you want a new one", path)
	}
	if err != nil {
		return fmt.Errorf("create database: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("create database: %w", err)
	}
	db, err := open(ctx, path, true)
	if err != nil {
		return err
	}
	return db.Close()
}

// Open opens a database that Create made, and brings its schema up to date. It
// refuses what would lose data: a file that is missing, damaged, in use by
// another process, on a network file system, or of a newer release.
func Open(ctx context.Context, path string) (*DB, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("database %s is missing; run: carme-backend init (or restore the file from a backup)", path)
	}
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	if info.Size() == 0 {
		return nil, fmt.Errorf("database %s is empty, so something truncated it; restore it from a backup", path)
	}
	if err := checkWritable(path); err != nil {
		return nil, err
	}
	return open(ctx, path, false)
}

// checkWritable refuses a file that could be read and not written, as one that
// root has put back from a backup: nobody could log in.
func checkWritable(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0) //nolint:gosec // G304: the admin's own setting
	if err == nil {
		err = f.Close()
	}
	if err == nil {
		err = unix.Access(filepath.Dir(path), unix.W_OK)
	}
	if err != nil {
		return fmt.Errorf("database %s cannot be written (%w); it and its directory must belong to the user that the backend runs as: chown carme-backend FILE", path, err)
	}
	return nil
}

func open(ctx context.Context, path string, fresh bool) (*DB, error) {
	if err := checkFileSystem(filepath.Dir(path)); err != nil {
		return nil, err
	}
	lock, err := takeLock(path + ".lock")
	if err != nil {
		return nil, err
	}
	db := &DB{lock: lock}
	if err := db.connect(ctx, path, fresh); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

func (db *DB) connect(ctx context.Context, path string, fresh bool) error {
	w, err := pool(path, 1, "")
	if err != nil {
		return err
	}
	db.write = bun.NewDB(w, sqlitedialect.New())
	if err := checkContent(ctx, w, path); err != nil {
		return err
	}
	if err := migrate(ctx, w, path, fresh); err != nil {
		return err
	}
	r, err := pool(path, readers, "&_pragma=query_only(1)")
	if err != nil {
		return err
	}
	db.read = bun.NewDB(r, sqlitedialect.New())
	return nil
}

// pool opens connections, each with the pragmas that make a commit last.
func pool(path string, size int, more string) (*sql.DB, error) {
	dsn := "file:" + (&url.URL{Path: path}).EscapedPath() +
		"?_txlock=immediate&_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_pragma=foreign_keys(1)&_pragma=synchronous(FULL)" + more
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	db.SetMaxOpenConns(size)
	db.SetMaxIdleConns(size)
	return db, nil
}

func checkContent(ctx context.Context, db *sql.DB, path string) error {
	var answer string
	if err := db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&answer); err != nil {
		return fmt.Errorf("database %s cannot be read (%w); restore it from a backup", path, err)
	}
	if answer != "ok" {
		return fmt.Errorf("database %s is damaged (%s); restore it from a backup", path, answer)
	}
	return nil
}

func migrate(ctx context.Context, db *sql.DB, path string, fresh bool) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db, files)
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	if !fresh {
		have, err := p.GetDBVersion(ctx)
		if err != nil {
			return fmt.Errorf("read version of database %s: %w", path, err)
		}
		sources := p.ListSources()
		if newest := sources[len(sources)-1].Version; have > newest {
			return fmt.Errorf("database %s has schema %d, this release knows %d; install the newer release again, or restore a backup", path, have, newest)
		}
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrate database %s: %w", path, err)
	}
	return nil
}

// takeLock makes sure that one process has the database.
func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600) //nolint:gosec // the admin's own setting
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close() // the lock is what is wrong
		return nil, fmt.Errorf("database is in use by another carme-backend (%s is locked); stop that one first", path)
	}
	return f, nil
}

// networkFS are file systems on which locks and mmap of SQLite do not hold
// (statfs(2), linux/magic.h).
func networkFS() map[int64]string {
	return map[int64]string{
		0x6969: "NFS", 0xff534d42: "CIFS", 0xfe534d42: "SMB2", 0x517b: "SMB", 0x0bd00bd0: "Lustre",
		0x47504653: "GPFS", 0x00c36400: "Ceph", 0x19830326: "BeeGFS", 0x5346414f: "AFS", 0x7461636f: "OCFS2", 0x01161970: "GFS2",
	}
}

func checkFileSystem(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("look at file system of %s: %w", dir, err)
	}
	if name, ok := networkFS()[st.Type&0xffffffff]; ok {
		return fmt.Errorf("%s is on %s, where a database would break; put the state directory on a local disk", dir, name)
	}
	return nil
}

// Close ends all use of the database.
func (db *DB) Close() error {
	var errs []error
	db.mu.Lock()
	for _, stmt := range db.prepared {
		errs = append(errs, stmt.Close())
	}
	db.prepared = nil
	db.mu.Unlock()
	for _, b := range []*bun.DB{db.read, db.write} {
		if b != nil {
			errs = append(errs, b.Close())
		}
	}
	return errors.Join(append(errs, db.lock.Close())...)
}

// Read is for queries beside the writer.
func (db *DB) Read() Tx { return db.read }

// Write runs f in a transaction and commits if f returns nil. What f did is
// durable then, and otherwise did not happen.
func (db *DB) Write(ctx context.Context, f func(tx Tx) error) error {
	defer db.written.Add(1)
	return db.Note(ctx, f)
}

// Note is Write for what nobody reads through Written, as when a login was last used:
// thousands of them a minute would make everything old that was made before.
func (db *DB) Note(ctx context.Context, f func(tx Tx) error) error {
	return db.write.RunInTx(ctx, nil, func(_ context.Context, tx bun.Tx) error { return f(tx) })
}

// Written is another number after every Write: what was made of the database
// when it was the same is what would be made now, but for what was noted. This
// process alone has the file.
func (db *DB) Written() uint64 { return db.written.Load() }

// Row reads one row for a query that is asked time and again: it is parsed once for
// each connection. The text must be a constant.
func (db *DB) Row(ctx context.Context, query string, args ...any) (*sql.Row, error) {
	stmt, err := db.statement(ctx, query)
	if err != nil {
		return nil, err
	}
	return stmt.QueryRowContext(ctx, args...), nil
}

func (db *DB) statement(ctx context.Context, query string) (*sql.Stmt, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if stmt := db.prepared[query]; stmt != nil {
		return stmt, nil
	}
	stmt, err := db.read.DB.PrepareContext(ctx, query) // closed with the database
	if err != nil {
		return nil, fmt.Errorf("prepare query: %w", err)
	}
	if db.prepared == nil {
		db.prepared = map[string]*sql.Stmt{}
	}
	db.prepared[query] = stmt
	return stmt, nil
}

// One scans the first row into dest, sql.ErrNoRows if there is none.
func One(ctx context.Context, tx Tx, dest any, query string, args ...any) error {
	return tx.NewRaw(query, args...).Scan(ctx, dest)
}

// Exec runs a statement and returns how many rows it touched.
func Exec(ctx context.Context, tx Tx, query string, args ...any) (int64, error) {
	res, err := tx.NewRaw(query, args...).Exec(ctx)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}
