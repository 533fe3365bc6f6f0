package storetest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/credence-id/credence/broker/store"
)

// file is SQLite's in a broker's directory.
const file = "credence.db"

// Prepare puts an empty database into a directory that has none, as store.Open
// would leave it: made once by store.Open, and copied. A test opens that in place of
// growing a schema through all its versions, which takes most of a short test's
// time; that Open does so is for the tests beside it to show.
func Prepare(t testing.TB, dir string) {
	t.Helper()
	data, err := prepared()
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err == nil {
		err = write(filepath.Join(dir, file), data)
	}
	if err != nil {
		t.Fatal(fmt.Errorf("preparing a database: %w", err))
	}
}

// write makes a file where there is none.
func write(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

var prepared = sync.OnceValues(func() (data []byte, err error) {
	dir, err := os.MkdirTemp("", "credence")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s, err := store.Open(context.Background(), store.Config{Dir: dir})
	if err != nil {
		return nil, err
	}
	if err := s.Close(); err != nil {
		return nil, err
	}
	if left, _ := filepath.Glob(filepath.Join(dir, file+"-*")); len(left) > 0 {
		return nil, fmt.Errorf("what Close left in %v is in no copy", left)
	}
	return os.ReadFile(filepath.Join(dir, file))
})
