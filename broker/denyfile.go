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
// when the store is away, over a restart too; the evictions that the store does
// not have yet; and Denies that it has not, or a snapshot of it. A line is one of
// these as JSON; it is durable when append returns.
type denyFile struct {
	out    map[string]eviction // by node ID
	denies map[denyKey]KeptDeny
	path   string
	lines  int  // in the file, also those that later ones outdid
	size   int  // in bytes, of these
	dirty  bool // what follows the last whole line is not ours to keep
}

// Bounds of the file, held before anything of it is parsed.
const (
	maxDenyLine  = 32 << 10 // holds a Deny of maxKeptDeny
	maxDenyLines = 2 * MaxCutoffs
	maxDenyFile  = 2*MaxKeptDenies*maxDenyLine + maxDenyLines*(8<<10) // others are shorter: all that may stand fits
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
	// Of a Deny (kindDeny).
	Owner    string `json:"owner,omitempty"`
	Revision uint64 `json:"revision,omitempty"`
	Resource string `json:"resource,omitempty"`
}

func deniedBy(c Cutoff) denied {
	return denied{Kind: c.Kind, Value: c.Value, Before: c.Before, Reason: c.Reason, Actor: c.Actor, MadeAt: c.MadeAt}
}

// openDenyFile reads the file, where there is one. A last line without an end
// was never confirmed, and is passed over; anything else that is not a cut-off
// is an error: what it revoked would be good again.
func openDenyFile(path string, td spiffeid.TrustDomain) (*denyFile, []Cutoff, error) {
	d := &denyFile{path: path, out: make(map[string]eviction), denies: make(map[denyKey]KeptDeny)}
	text, err := readBounded(path, maxDenyFile)
	if errors.Is(err, os.ErrNotExist) {
		return d, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("reading what is revoked: %w", err)
	}
	whole := text[:bytes.LastIndexByte(text, '\n')+1]
	d.size, d.dirty = len(whole), len(whole) < len(text)
	var all []Cutoff
	for line := range bytes.Lines(whole) {
		d.lines++
		one, err := parseDenied(td, line)
		if err == nil && d.lines > maxDenyLines {
			err = fmt.Errorf("more than %d lines", maxDenyLines)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("reading what is revoked: %s line %d: %w; mend the line, or take the file away if the database has all of it", path, d.lines, err)
		}
		all = append(all, d.take(one)...)
	}
	return d, all, nil
}

// take takes what a line says, and returns it where it is a cut-off.
func (d *denyFile) take(one deniedLine) []Cutoff {
	switch {
	case one.out.ID != "":
		d.out[one.out.ID] = one.out
	case one.deny.Name != "":
		d.denies[one.deny.key()] = one.deny
	default:
		return []Cutoff{one.cut}
	}
	return nil
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

// A deniedLine is what a line says: one of these.
type deniedLine struct {
	cut  Cutoff
	out  eviction
	deny KeptDeny
}

// parseDenied reads a line: a cut-off, an eviction or a Deny.
func parseDenied(td spiffeid.TrustDomain, line []byte) (deniedLine, error) {
	fail := func(err error) (deniedLine, error) { return deniedLine{}, err }
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
	switch {
	case c.Before.IsZero():
		return fail(errors.New("it has no before"))
	case l.Kind == kindDeny:
		deny := KeptDeny{Name: l.Value, Owner: l.Owner, Actor: l.Actor, At: l.Before, Revision: l.Revision, Text: []byte(l.Resource)}
		return deniedLine{deny: deny}, deny.check()
	case l.Owner != "" || l.Revision != 0 || l.Resource != "":
		return fail(errors.New("it has what a Deny has and is none"))
	case l.Kind != kindEvict && l.DurableKey != "":
		return fail(errors.New("it has a durable key and is no eviction"))
	case l.Kind != kindEvict:
		return deniedLine{cut: c}, CheckCutoff(td, c)
	case l.DurableKey == "":
		return fail(errors.New("it has no durable key"))
	}
	c.Kind = CutNode
	return deniedLine{out: eviction{ID: l.Value, DurableKey: l.DurableKey, At: l.Before}}, CheckCutoff(td, c)
}

// append makes more lines durable, at once. standing and what d holds besides, these
// among it, replace the file where it has grown too long, or its end is not whole.
func (d *denyFile) append(standing map[cutKey]Cutoff, more ...denied) error {
	text, err := denyLines(more)
	if err == nil && (d.dirty || d.lines+len(more) > maxDenyLines || d.size+len(text) > maxDenyFile) {
		return d.rewrite(standing)
	}
	if err == nil && len(more) > 0 {
		err = d.write(text)
	}
	if err != nil {
		d.dirty = true // part of it may be there
		return fmt.Errorf("keeping what is revoked in %s: %w", d.path, err)
	}
	d.lines, d.size = d.lines+len(more), d.size+len(text)
	return nil
}

func denyLines(all []denied) (text []byte, err error) {
	for _, l := range all {
		line, err := json.Marshal(l)
		if err != nil {
			return nil, err
		}
		text = append(append(text, line...), '\n')
	}
	return text, nil
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
	lines := make([]denied, 0, len(standing)+len(d.out)+len(d.denies))
	for _, c := range standing {
		lines = append(lines, deniedBy(c))
	}
	for _, out := range d.out {
		lines = append(lines, out.denied())
	}
	for _, k := range d.denies {
		lines = append(lines, k.denied())
	}
	text, err := denyLines(lines)
	if err != nil {
		return fmt.Errorf("keeping what is revoked in %s: %w", d.path, err)
	}
	err = renameio.WriteFile(d.path, text, 0o600, renameio.WithStaticPermissions(0o600))
	if err == nil {
		err = syncDir(filepath.Dir(d.path))
	}
	if err != nil {
		return fmt.Errorf("keeping what is revoked in %s: %w", d.path, err)
	}
	d.lines, d.size, d.dirty = len(lines), len(text), false
	return nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
