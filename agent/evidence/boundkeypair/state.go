package boundkeypair

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

// maxState bounds the state's file, in bytes.
const maxState = 4 << 10

// state is what a node knows of its joins.
type state struct {
	Key   string `json:"key"`            // whose it is: of another one it tells nothing
	Joins uint64 `json:"joins"`          // that the broker had counted when Next was handed in
	Last  []byte `json:"last,omitempty"` // what the broker held then, if it is ours
	Next  []byte `json:"next,omitempty"` // handed in: whether that join was done, the next challenge tells
}

// turn is what follows from a challenge, and what to show.
func (s state) turn(joins uint64, held [32]byte) (state, showing) {
	switch {
	case held == [32]byte{}: // the broker wants nothing
		return state{Joins: joins, Last: s.Last, Next: s.Next}, showing{}
	case s.Next != nil && sha256.Sum256(s.Next) == held: // that join was done
		return state{Joins: joins, Last: s.Next}, showing{joins: joins, secret: [32]byte(s.Next)}
	case s.Last != nil && sha256.Sum256(s.Last) == held: // it was not: the same is handed in again
		return state{Joins: joins, Last: s.Last, Next: s.Next}, showing{joins: joins, secret: [32]byte(s.Last)}
	case s.Next == nil, joins == s.Joins && s.Last == nil: // nothing of ours was taken yet
		return state{Joins: joins, Next: s.Next}, showing{}
	}
	// Somebody else joined by our key since, or the broker has forgotten: it will
	// tell. What we know stays as it is until we are in again.
	return s, showing{joins: s.Joins + 1, secret: [32]byte(s.Next)}
}

// load reads the state of a key; there may be none.
func (p *Prover) load(key string) (state, error) {
	f, err := os.Open(p.cfg.StateFile)
	if errors.Is(err, fs.ErrNotExist) {
		return state{}, nil
	}
	if err != nil {
		return state{}, fmt.Errorf("reading the state of the last join: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxState+1))
	if err != nil {
		return state{}, fmt.Errorf("reading the state of the last join: %w", err)
	}
	s, err := parseState(text)
	if err != nil {
		return state{}, fmt.Errorf("%s: %w; without it, once removed, a join counts as a recovery", p.cfg.StateFile, err)
	}
	if s.Key != key {
		return state{}, nil
	}
	return s, nil
}

func parseState(text []byte) (s state, err error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if len(text) > maxState || d.Decode(&s) != nil || d.More() || s.Key == "" || len(s.Next) != 32 || s.Last != nil && len(s.Last) != 32 {
		return state{}, errors.New("this is no state that a join left")
	}
	return s, nil
}

// save makes it last before it returns, a power cut included: the broker is about
// to hold us to it.
func (p *Prover) save(s state) error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	dir := filepath.Dir(p.cfg.StateFile)
	err = renameio.WriteFile(p.cfg.StateFile, append(text, '\n'), 0o600, renameio.WithTempDir(dir))
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("keeping the state of this join: %w", err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
