package export

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"

	"github.com/credence-id/credence/broker/audit"
)

// place is what a cursor file holds, as one line.
type place struct {
	Sequence uint64 `json:"sequence"`
	Hash     string `json:"hash"`
}

const maxCursor = 256

// LoadCursor reads a cursor file: the last record that was acknowledged. Where
// there is no file it is the zero place; a file that says something else is an
// error, since to begin anew is for the operator to say.
func LoadCursor(path string) (audit.Ref, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return audit.Ref{}, nil
	}
	if err != nil {
		return audit.Ref{}, fmt.Errorf("reading the cursor: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxCursor+1))
	if err != nil {
		return audit.Ref{}, fmt.Errorf("reading the cursor: %w", err)
	}
	at, err := parseCursor(text)
	if err != nil {
		return at, fmt.Errorf("cursor %s: %w: put back what it was, or take it away to export all from the oldest record on", path, err)
	}
	return at, nil
}

func parseCursor(text []byte) (audit.Ref, error) {
	wrong := errors.New("it is no cursor of an export")
	var p place
	if len(text) > maxCursor || json.Unmarshal(text, &p) != nil {
		return audit.Ref{}, wrong
	}
	at := audit.Ref{Sequence: p.Sequence}
	if n, err := hex.Decode(at.Hash[:], []byte(p.Hash[:min(len(p.Hash), 2*len(at.Hash))])); err != nil || n != len(at.Hash) || p.Sequence == 0 {
		return audit.Ref{}, wrong
	}
	if again, err := cursorText(at); err != nil || !bytes.Equal(again, text) {
		return audit.Ref{}, wrong
	}
	return at, nil
}

func cursorText(at audit.Ref) ([]byte, error) {
	text, err := json.Marshal(place{at.Sequence, hex.EncodeToString(at.Hash[:])})
	return append(text, '\n'), err
}

// saveCursor replaces the file; what it says is durable when it returns.
func saveCursor(path string, at audit.Ref) error {
	text, err := cursorText(at)
	if err == nil {
		err = renameio.WriteFile(path, text, 0o600, renameio.WithTempDir(filepath.Dir(path)))
	}
	if err != nil {
		return fmt.Errorf("noting in %s what was acknowledged: %w", path, err)
	}
	return nil
}
