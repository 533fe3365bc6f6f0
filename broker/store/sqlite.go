package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"modernc.org/sqlite" // the embedded engine
	sqlite3 "modernc.org/sqlite/lib"
)

func (s *Store) openSQLite(_ context.Context, cfg Config) error {
	never := func(error) bool { return false }
	s.wayOut, s.again, s.busy = sqliteWayOut, never, never
	path := filepath.Join(cfg.Dir, "credence.db")
	err := makeFiles(path)
	if err != nil {
		return err
	}
	// fullfsync: without it darwin's disks keep in their caches what they said
	// they wrote.
	const pragmas = "?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)" +
		"&_pragma=fullfsync(1)&_pragma=checkpoint_fullfsync(1)&_pragma=foreign_keys(1)"
	name := "file:" + escape.Replace(path) + pragmas
	write, err := sql.Open("sqlite", name+"&_txlock=immediate")
	if err != nil {
		return err
	}
	write.SetMaxOpenConns(1) // SQLite has one writer
	s.write = s.pool(write)
	read, err := sql.Open("sqlite", name+"&_pragma=query_only(1)")
	if err != nil {
		return err
	}
	read.SetMaxOpenConns(4)
	s.read = s.pool(read)
	return nil
}

// escape keeps a path whole in a URI.
var escape = strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23")

// makeFiles makes the database before the engine does, so that it is never
// readable by others, not for a moment; the engine gives the files beside it
// the same mode. A backup that was copied back may have any.
func makeFiles(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(0o600), f.Close()); err != nil {
		return err
	}
	for _, beside := range []string{"-wal", "-shm"} {
		if err := os.Chmod(path+beside, 0o600); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return syncDir(filepath.Dir(path)) // else a power cut could take the file, commits and all
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func sqliteWayOut(err error) error {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Code() & 0xff { // the rest tells kinds of a kind
	case sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR:
		return fmt.Errorf("%w: nothing was written; is there room on the disk, and is it sound?", err)
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return fmt.Errorf("%w: the file is damaged or no database of ours; restore a backup", err)
	}
	return err
}
