package broker

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// A denyFile keeps the cut-offs on the broker's own disk, so that they hold
// when the store is away, over a restart too. A line is one cut-off as JSON;
// it is durable when append returns.
type denyFile struct {
	path  string
	lines int  // in the file, also those that later ones outdid
	dirty bool // what follows the last whole line is not ours to keep
}

// Bounds of the file, held before anything of it is parsed.
const (
	maxDenyLine  = 8 << 10
	maxDenyLines = 2 * MaxCutoffs
	maxDenyFile  = maxDenyLine * maxDenyLines
)

// denied is a line.
type denied struct {
	Kind   string    `json:"kind"`
	Value  string    `json:"value"`
	Before time.Time `json:"before"`
	Reason string    `json:"reason,omitempty"`
	Actor  string    `json:"actor,omitempty"`
	MadeAt time.Time `json:"made_at,omitzero"`
}

// openDenyFile reads the file, where there is one. A last line without an end
// was never confirmed, and is passed over; anything else that is not a cut-off
// is an error: what it revoked would be good again.
func openDenyFile(path string, td spiffeid.TrustDomain) (*denyFile, []Cutoff, error) {
	d := &denyFile{path: path}
	text, err := readBounded(path, maxDenyFile)
	if errors.Is(err, os.ErrNotExist) {
		return d, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("reading what is revoked: %w", err)
	}
	whole := text[:bytes.LastIndexByte(text, '\n')+1]
	d.dirty = len(whole) < len(text)
	var all []Cutoff
	for line := range bytes.Lines(whole) {
		d.lines++
		c, err := parseDenied(td, line)
		if err == nil && d.lines > maxDenyLines {
			err = fmt.Errorf("more than %d lines", maxDenyLines)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("reading what is revoked: %s line %d: %w; mend the line, or take the file away if the database has all of it", path, d.lines, err)
		}
		all = append(all, c)
	}
	return d, all, nil
}

func readBounded(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(text)) > most {
		err = fmt.Errorf("%s has more than %d bytes", path, most)
	}
	return text, err
}

func parseDenied(td spiffeid.TrustDomain, line []byte) (Cutoff, error) {
	if len(line) > maxDenyLine {
		return Cutoff{}, fmt.Errorf("it has %d bytes, at most %d are taken", len(line), maxDenyLine)
	}
	var l denied
	decode := json.NewDecoder(bytes.NewReader(line))
	decode.DisallowUnknownFields()
	if err := decode.Decode(&l); err != nil {
		return Cutoff{}, err
	}
	if decode.More() {
		return Cutoff{}, errors.New("it is more than one JSON object")
	}
	c := Cutoff(l)
	if c.Before.IsZero() {
		return Cutoff{}, errors.New("it has no before")
	}
	return c, CheckCutoff(td, c)
}

// append makes one more cut-off durable. standing is what replaces the file
// where it has grown too long, or its end is not whole; c is among it.
func (d *denyFile) append(c Cutoff, standing map[cutKey]Cutoff) error {
	if d.dirty || d.lines >= maxDenyLines {
		return d.rewrite(standing)
	}
	line, err := json.Marshal(denied(c))
	if err == nil {
		err = d.write(append(line, '\n'))
	}
	if err != nil {
		d.dirty = true // part of it may be there
		return fmt.Errorf("keeping what is revoked in %s: %w", d.path, err)
	}
	d.lines++
	return nil
}

func (d *denyFile) write(line []byte) error {
	made := d.lines == 0
	f, err := os.OpenFile(d.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(line)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil && made {
		err = syncDir(filepath.Dir(d.path)) // else a power cut could take its name
	}
	return err
}

// rewrite replaces the file by what stands, whole or not at all.
func (d *denyFile) rewrite(standing map[cutKey]Cutoff) error {
	var text []byte
	for _, c := range standing {
		line, err := json.Marshal(denied(c))
		if err != nil {
			return fmt.Errorf("keeping what is revoked in %s: %w", d.path, err)
		}
		text = append(append(text, line...), '\n')
	}
	err := renameio.WriteFile(d.path, text, 0o600, renameio.WithStaticPermissions(0o600))
	if err == nil {
		err = syncDir(filepath.Dir(d.path))
	}
	if err != nil {
		return fmt.Errorf("keeping what is revoked in %s: %w", d.path, err)
	}
	d.lines, d.dirty = len(standing), false
	return nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
