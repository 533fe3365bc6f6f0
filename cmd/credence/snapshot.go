package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"

	"github.com/credence-id/credence/broker/keys/disk"
	"github.com/credence-id/credence/broker/store"
)

// openStore opens the database or, where one that is shared is away, starts from
// the snapshot of it.
func (p *brokerParts) openStore(ctx context.Context, o brokerOptions) error {
	config := p.file.storeConfig(o.now)
	if p.file.shared() {
		snapshot, err := snapshotOf(p.file)
		if err != nil {
			return err
		}
		config.Snapshot = &snapshot
	}
	var err error
	if p.store, err = store.Open(ctx, config); err != nil {
		return err
	}
	if config.Snapshot != nil {
		p.keeper = &store.Keeper{Store: p.store, Snapshot: *config.Snapshot, Log: o.log, Now: o.now}
	}
	if absence, away := p.store.Away(); away {
		o.log.ErrorContext(ctx, "the database is away: started from the snapshot of it", "snapshot", absence.Snapshot, "error", absence.Reason)
		p.since = p.store.Seen()
		return nil
	}
	p.since, err = p.store.Revision(ctx)
	return err
}

// snapshotName is where it lies in the data directory.
const snapshotName = "snapshot.sealed"

// snapshotOf is where the snapshot is and what it is sealed under: secrets of the
// key-encryption keys or, where there are none, one in the data directory.
func snapshotOf(f brokerFile) (store.Snapshot, error) {
	s := store.Snapshot{Path: filepath.Join(f.Data, snapshotName), TrustDomain: f.TrustDomain}
	if d := f.Keys.Disk; d != nil && d.KEKFile != "" {
		var err error
		s.Keys, err = disk.SnapshotKeys(disk.Config{Settings: d.Settings, Dir: d.Dir, Data: f.Data, TrustDomain: f.TrustDomain, Purpose: purposeKeys})
		if err != nil {
			return s, fmt.Errorf("keys.disk: %w", err)
		}
		return s, nil
	}
	key, err := snapshotKey(filepath.Join(f.Data, "snapshot.key"))
	s.Keys = [][]byte{key}
	return s, err
}

// snapshotKey reads a key, made where there is none.
func snapshotKey(path string) ([]byte, error) {
	key, err := os.ReadFile(path)
	switch {
	case err == nil && len(key) == 32:
		return key, nil
	case err == nil:
		return nil, fmt.Errorf("%s: 32 bytes are wanted: take the file away, and snapshot.sealed, to have others made", path)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	key = make([]byte, 32)
	rand.Read(key) // never fails: it ends the program instead
	return key, renameio.WriteFile(path, key, 0o600, renameio.WithStaticPermissions(0o600))
}
