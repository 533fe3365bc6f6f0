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
// when the store is away, over a restart too; and the evictions that the store does
// not have yet. A line is one of these as JSON; it is durable when append returns.
type denyFile struct {
	out   map[string]eviction // by node ID
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
	// DurableKey is of an eviction (kindEvict): by which its node is banned.
	DurableKey string `json:"durable_key,omitempty"`
}

func deniedBy(c Cutoff) denied {
	return denied{Kind: c.Kind, Value: c.Value, Before: c.Before, Reason: c.Reason, Actor: c.Actor, MadeAt: c.MadeAt}
}

// openDenyFile reads the file, where there is one. A last line without an end
// was never confirmed, and is passed over; anything else that is not a cut-off
// is an error: what it revoked would be good again.
func openDenyFile(path string, td spiffeid.TrustDomain) (*denyFile, []Cutoff, error) {
	d := &denyFile{path: path, out: make(map[string]eviction)}
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
		c, out, err := parseDenied(td, line)
		if err == nil && d.lines > maxDenyLines {
			err = fmt.Errorf("more than %d lines", maxDenyLines)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("reading what is revoked: %s line %d: %w; mend the line, or take the file away if the database has all of it", path, d.lines, err)
		}
		if out.ID != "" {
			d.out[out.ID] = out
			continue
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

// parseDenied reads a line: a cut-off or an eviction.
func parseDenied(td spiffeid.TrustDomain, line []byte) (Cutoff, eviction, error) {
	fail := func(err error) (Cutoff, eviction, error) { return Cutoff{}, eviction{}, err }
	if len(line) > maxDenyLine {
		return fail(fmt.Errorf("it has %d bytes, at most %d are taken", len(line), maxDenyLine))
	}
	var l denied
	decode := json.NewDecoder(bytes.NewReader(line))
	decode.DisallowUnknownFields()
	if err := decode.Decode(&l); err != nil {
		return fail(err)
	}
	if decode.More() {
		return fail(errors.New("it is more than one JSON object"))
	}
	c := Cutoff{Kind: l.Kind, Value: l.Value, Before: l.Before, Reason: l.Reason, Actor: l.Actor, MadeAt: l.MadeAt}
	if c.Before.IsZero() {
		return fail(errors.New("it has no before"))
	}
	if l.Kind != kindEvict {
		if l.DurableKey != "" {
			return fail(errors.New("it has a durable key and is no eviction"))
		}
		return c, eviction{}, CheckCutoff(td, c)
	}
	if l.DurableKey == "" {
		return fail(errors.New("it has no durable key"))
	}
	c.Kind = CutNode
	return Cutoff{}, eviction{ID: l.Value, DurableKey: l.DurableKey, At: l.Before}, CheckCutoff(td, c)
}

// append makes one more cut-off durable. standing is what replaces the file
// where it has grown too long, or its end is not whole; c is among it.
func (d *denyFile) append(c Cutoff, standing map[cutKey]Cutoff) error {
	if d.dirty || d.lines >= maxDenyLines {
		return d.rewrite(standing)
	}
	return d.add(deniedBy(c))
}

// add writes one more line.
func (d *denyFile) add(l denied) error {
	line, err := json.Marshal(l)
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
	lines := make([]denied, 0, len(standing)+len(d.out))
	for _, c := range standing {
		lines = append(lines, deniedBy(c))
	}
	for _, out := range d.out {
		lines = append(lines, out.denied())
	}
	for _, l := range lines {
		line, err := json.Marshal(l)
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
	d.lines, d.dirty = len(lines), false
	return nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
