package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"
)

// A Keeper keeps the heads of other brokers' records in a file: of each hour the
// first, and all of the last day, for ninety days. It is one goroutine's.
type Keeper struct {
	path  string
	heads []Head // in the order in which they came
}

const (
	keepAll   = 24 * time.Hour
	keepHours = 90 * 24 * time.Hour
	keepMost  = 64 << 20 // bytes of the file
)

// OpenKeeper reads what is kept. Its name must not be one of the record's.
func OpenKeeper(path string) (*Keeper, error) {
	k := &Keeper{path: path}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return k, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading other brokers' heads: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, keepMost))
	if err != nil {
		return nil, fmt.Errorf("reading other brokers' heads: %w", err)
	}
	whole := text[:bytes.LastIndexByte(text, '\n')+1] // a crash may have left half a line
	if k.heads, err = ReadHeads(bytes.NewReader(whole)); err != nil {
		return nil, fmt.Errorf("reading other brokers' heads in %s: %w", path, err)
	}
	return k, nil
}

// All returns what is kept.
func (k *Keeper) All() []Head { return slices.Clone(k.heads) }

// Keep adds those that are new, and makes them durable.
func (k *Keeper) Keep(now time.Time, heads ...Head) error {
	next := slices.Clone(k.heads)
	for _, h := range heads {
		same := func(o Head) bool { return o.Origin == h.Origin && o.Ref() == h.Ref() }
		if h.check() == nil && !slices.ContainsFunc(next, same) {
			next = append(next, h)
		}
	}
	if len(next) == len(k.heads) {
		return nil
	}
	type span struct {
		origin string
		hour   int64
	}
	seen := make(map[span]bool)
	next = slices.DeleteFunc(next, func(h Head) bool {
		at := span{h.Origin, h.Time.Unix() / 3600}
		first := !seen[at]
		seen[at] = true
		age := now.Sub(h.Time)
		return age > keepHours || age > keepAll && !first
	})
	var text []byte
	for _, h := range next {
		line, err := h.Line()
		if err != nil {
			return err
		}
		text = append(append(text, line...), '\n')
	}
	if err := k.write(text); err != nil {
		return fmt.Errorf("keeping other brokers' heads: %w", err)
	}
	k.heads = next
	return nil
}

// write replaces the file, whole or not at all.
func (k *Keeper) write(text []byte) error {
	f, err := os.OpenFile(k.path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), k.path)
}
