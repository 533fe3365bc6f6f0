// Package dir publishes to a directory, which a web server of the operator's
// serves, or which is copied elsewhere. It keeps no headers: the web server is
// to serve what has no extension as application/json.
package dir

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"

	"github.com/credence-id/credence/federation/publish"
)

// Store is a directory. It is made where there is none, for everybody to read.
type Store struct{ Dir string }

// Get returns a document that is there.
func (s Store) Get(_ context.Context, name string) (*publish.Held, error) {
	f, err := os.Open(s.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	body, err := io.ReadAll(io.LimitReader(f, publish.MaxHeld+1))
	if err != nil {
		return nil, err
	}
	if len(body) > publish.MaxHeld {
		return nil, fmt.Errorf("%s: more than %d bytes: no document of ours", f.Name(), publish.MaxHeld)
	}
	sum := sha256.Sum256(body)
	return &publish.Held{Body: body, Version: hex.EncodeToString(sum[:])}, nil
}

// Put writes beside the old file, syncs, renames, and syncs the directory: a
// reader sees the old or the new document, also after a crash. Others that
// write there in the same instant are not held off.
func (s Store) Put(ctx context.Context, d publish.Document, replaces *publish.Held) error {
	now, err := s.Get(ctx, d.Name)
	if err != nil {
		return err
	}
	if (now == nil) != (replaces == nil) || now != nil && now.Version != replaces.Version {
		return fmt.Errorf("%s: %w", s.path(d.Name), publish.ErrConflict)
	}
	path := s.path(d.Name)
	if err := makeDirs(filepath.Dir(path)); err != nil {
		return err
	}
	err = renameio.WriteFile(path, d.Body, 0o644, renameio.WithTempDir(filepath.Dir(path)), renameio.IgnoreUmask())
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func (s Store) path(name string) string { return filepath.Join(s.Dir, filepath.FromSlash(name)) }

// makeDirs makes what is missing, readable whatever our umask is; what is there
// stays as it is.
func makeDirs(dir string) error {
	err := os.Mkdir(dir, 0o755)
	switch {
	case err == nil:
		return errors.Join(os.Chmod(dir, 0o755), syncDir(filepath.Dir(dir)))
	case errors.Is(err, fs.ErrExist):
		return nil // a file in its place fails the write
	case errors.Is(err, fs.ErrNotExist) && filepath.Dir(dir) != dir:
		if err := makeDirs(filepath.Dir(dir)); err != nil {
			return err
		}
		return makeDirs(dir)
	}
	return err
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
