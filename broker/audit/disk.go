package audit

import (
	"os"
	"path/filepath"
)

// A file is what the record writes through.
type file interface {
	Write([]byte) (int, error)
	Sync() error
	Truncate(size int64) error
	Close() error
}

// A disk opens files and makes their names durable. Tests have one that fails.
type disk interface {
	open(path string) (file, error) // to append, made if absent
	syncDir(dir string) error
	reserve(path string, size int64) error // makes an empty file that has room
	rename(from, to string) error
}

type osDisk struct{}

func (osDisk) open(path string) (file, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
}

func (osDisk) syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (osDisk) rename(from, to string) error { return os.Rename(from, to) }

// makeDir makes the record's directory, and its name durable, if it is absent.
func makeDir(d disk, dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return d.syncDir(filepath.Dir(dir))
}
