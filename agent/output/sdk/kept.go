package sdk

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

const (
	seedLength = 32
	maxKept    = 4 << 10
)

// kept is what outlasts the agent. The seed is as secret as what is made from
// it.
type kept struct {
	UID         uint32 `json:"uid"` // whose the seed is: another user gets another one
	Listen      string `json:"listen"`
	Seed        []byte `json:"seed"`
	Fingerprint string `json:"fingerprint"` // of what programs found last
}

// load reads what was kept for a user, or begins anew.
func load(file string, uid uint32) (kept, error) {
	text, err := readUpTo(file, maxKept)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return kept{}, fmt.Errorf("reading the output's port and secrets: %w", err)
	}
	var k kept
	if err == nil && json.Unmarshal(text, &k) == nil && k.UID == uid && len(k.Seed) == seedLength {
		if at, err := netip.ParseAddrPort(k.Listen); err != nil || at.Addr() != loopback {
			k.Listen = ""
		}
		return k, nil
	}
	k = kept{UID: uid, Seed: make([]byte, seedLength)}
	_, _ = rand.Read(k.Seed) // never fails (crypto/rand.Read)
	return k, nil
}

func readUpTo(file string, most int64) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}

func (k kept) save(file string) error {
	text, err := json.Marshal(k)
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(file, text, 0o600, renameio.WithTempDir(filepath.Dir(file))); err != nil {
		return fmt.Errorf("keeping the output's port and secrets: %w", err)
	}
	return nil
}
