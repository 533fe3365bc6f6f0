package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/credence-id/credence/broker/store"
	"github.com/credence-id/credence/cmd/cli"
)

// claimName takes this broker's name among those that share the database.
func (p *brokerParts) claimName(ctx context.Context, now time.Time) error {
	if !p.file.shared() {
		return nil
	}
	instance, err := instanceOf(p.file.Data)
	if err != nil {
		return err
	}
	head := p.audit.Head()
	r := store.Replica{
		Name: p.file.Name, Instance: instance, Version: cli.Version(), StartedAt: now,
		Head: store.Head{Sequence: head.Sequence, Hash: head.Hash},
	}
	// Without the database it is as it was claimed last; whoever has it else is told
	// when it is back.
	if err := p.store.Claim(ctx, r); err != nil && !errors.Is(err, store.ErrAway) {
		return err
	}
	p.replica = &r
	return nil
}

// instanceOf is what tells a data directory from others, made where there is none.
func instanceOf(data string) (string, error) {
	path := filepath.Join(data, "instance")
	text, err := os.ReadFile(path)
	if err == nil {
		id := strings.TrimSpace(string(text))
		if len(id) != 32 || strings.Trim(id, "0123456789abcdef") != "" {
			return "", fmt.Errorf("%s: 32 hexadecimal digits are wanted: take the file away to have another made", path)
		}
		return id, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	random := make([]byte, 16)
	rand.Read(random) // never fails: it ends the program instead
	id := hex.EncodeToString(random)
	return id, renameio.WriteFile(path, []byte(id+"\n"), 0o600)
}
