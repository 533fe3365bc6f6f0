package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/credence-id/credence/broker/keys"
)

// Rewrap encrypts every key under KEKFile that is not yet: those under one of
// OldKEKFiles, and those that are not encrypted at all, whose former blocks
// the file system may keep for a while. Each file is replaced whole, so that
// it can be stopped anywhere and run again; and it may run while keys are
// used. It returns how many it replaced. Once it has returned without an
// error, OldKEKFiles are not needed any more.
func (k *Keys) Rewrap(ctx context.Context) (replaced int, err error) {
	if k.seal == nil {
		return 0, errors.New("rewrapping keys: no key-encryption key is named: kek_file")
	}
	if err := checkDir(k.dir); err != nil {
		return 0, err
	}
	entries, err := os.ReadDir(k.dir)
	if err != nil {
		return 0, fmt.Errorf("rewrapping keys: %w", err)
	}
	for _, e := range entries {
		ref, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok || checkRef(ref) != nil {
			continue
		}
		if err := ctx.Err(); err != nil {
			return replaced, fmt.Errorf("rewrapping keys, %d done: %w", replaced, err)
		}
		did, err := k.rewrap(ref)
		if err != nil {
			return replaced, fmt.Errorf("rewrapping keys, %d done: %w", replaced, err)
		}
		if did {
			replaced++
		}
	}
	return replaced, nil
}

// rewrap holds Remove off, which would else be undone by the new file.
func (k *Keys) rewrap(ref string) (did bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	data, err := k.read(ref)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil // removed meanwhile
	}
	if err != nil {
		return false, err
	}
	der, current, err := k.seal.any(ref, data)
	if err == nil {
		_, err = keys.Parse(der) // what cannot be used is left as it is, and said
	}
	if err != nil {
		return false, fmt.Errorf("reading key %s: %w", ref, err)
	}
	if current {
		return false, nil
	}
	if err := write(k.dir, ref+suffix, k.seal.encode(ref, der)); err != nil {
		return false, fmt.Errorf("keeping key %s: %w", ref, err)
	}
	return true, nil
}

// any reads a key however it is kept, and says whether it is as it should be.
func (s *sealer) any(ref string, file []byte) (der []byte, current bool, err error) {
	block, err := oneBlock(file)
	if err != nil {
		return nil, false, err
	}
	if block.Type == plainType {
		return block.Bytes, false, nil
	}
	return s.ring.Open(block.Bytes, s.bound, ref)
}
