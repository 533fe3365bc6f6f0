package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"os"
)

// A File and a Disk are what tests put in place of the real ones.
type (
	File interface {
		Write([]byte) (int, error)
		Sync() error
		Truncate(int64) error
		Close() error
	}
	Disk interface {
		Open(path string) (File, error)
		SyncDir(dir string) error
	}
)

type testDisk struct{ Disk }

func (d testDisk) open(path string) (file, error) { return d.Open(path) }
func (d testDisk) syncDir(dir string) error       { return d.SyncDir(dir) }

func (d testDisk) reserve(path string, size int64) error {
	if r, ok := d.Disk.(interface {
		Reserve(path string, size int64) error
	}); ok {
		return r.Reserve(path, size)
	}
	return errors.ErrUnsupported
}

func (testDisk) rename(from, to string) error { return os.Rename(from, to) }

// OpenOn is Open on another disk.
func OpenOn(d Disk, c Config) (*Log, error) {
	c.disk = testDisk{d}
	return Open(c)
}

// OpenFile opens a file as the real disk does.
func OpenFile(path string) (File, error) { return osDisk{}.open(path) }

// IsPlain and Decode are the short and the long look at a line.
var (
	IsPlain = isPlain
	Decode  = decode
)

// Linked says whether a line has a good link.
func Linked(line []byte) bool {
	_, err := linkOf(line)
	return err == nil
}

// IndexOnce makes the sidecars that are missing now.
func (l *Log) IndexOnce(ctx context.Context) error {
	at, _ := l.state()
	return l.makeSidecars(ctx, at.first, make(map[uint64]bool))
}

// Resum gives a changed sidecar the digest that it would have.
func Resum(data []byte) []byte {
	if len(data) < sha256.Size {
		return data
	}
	body := data[:len(data)-sha256.Size]
	sum := sha256.Sum256(body)
	return append(bytes.Clone(body), sum[:]...)
}

// ParseSidecar returns what it read, written anew.
func ParseSidecar(data []byte) ([]byte, error) {
	x, err := parseSidecar(data)
	if err != nil {
		return nil, err
	}
	return x.marshal(), nil
}
