package federation

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Bounds of a bundle document, checked before it is parsed.
const (
	MaxDocument = 1 << 20
	MaxDepth    = 16
	MaxKeys     = 1000
)

// maxHint keeps a hint within what a time.Duration and every cache can hold.
const maxHint = 365 * 24 * time.Hour

// A Bundle is what one trust domain's document says may be trusted. It is not
// changed after it was made: whoever needs another, clones the SPIFFE bundle.
// With no authority in it, it is legal and nothing of the domain is trusted
// (SPIFFE Trust Domain and Bundle §4.1.3).
type Bundle struct {
	*spiffebundle.Bundle
	Ignored []Ignored // what was not understood, in the document's order

	document []byte
}

// An Ignored entry of a bundle was left out: the rest stands (SPIFFE Trust
// Domain and Bundle §4.1.3).
type Ignored struct {
	Index  int // in keys
	Reason string
}

// Document is the document as it was given.
func (b *Bundle) Document() []byte { return bytes.Clone(b.document) }

// Marshal is the document of what was understood and nothing else, for readers
// less patient than ParseBundle: see the function Marshal.
func (b *Bundle) Marshal() ([]byte, error) { return Marshal(b.Bundle) }

// ParseBundle reads the bundle of td from a SPIFFE bundle document (SPIFFE
// Trust Domain and Bundle §4). td comes from configuration: a document does not
// name its trust domain. A document that is too big, too deep, not strict JSON,
// has a top-level member twice, a wrong sequence or hint, or no array keys, is
// refused whole, so that the caller keeps its last good one. Entries that are
// not understood, or not fit to be trusted, are ignored one by one.
func ParseBundle(td spiffeid.TrustDomain, data []byte) (*Bundle, error) {
	if td.IsZero() {
		return nil, errors.New("parsing a bundle: no trust domain given")
	}
	b := &Bundle{Bundle: spiffebundle.New(td), document: bytes.Clone(data)}
	if err := b.parse(data); err != nil {
		return nil, fmt.Errorf("parsing the bundle of %s: %w", td, err)
	}
	return b, nil
}

func (b *Bundle) parse(data []byte) error {
	if err := checkJSON(data); err != nil {
		return err
	}
	top, err := members(data)
	if err != nil {
		return err
	}
	if err := b.parseSequence(top); err != nil {
		return err
	}
	if err := b.parseHint(top); err != nil {
		return err
	}
	keys, ok := top["keys"]
	if !ok {
		return errors.New("no member keys")
	}
	entries, err := elements(keys, MaxKeys)
	if err != nil {
		return fmt.Errorf("keys: %w", err)
	}
	for i, raw := range entries {
		if err := b.addEntry(raw); err != nil {
			b.Ignored = append(b.Ignored, Ignored{Index: i, Reason: err.Error()})
		}
	}
	return nil
}

// parseSequence keeps all 64 bits: a float would confuse neighbours above 2^53.
func (b *Bundle) parseSequence(top map[string]json.RawMessage) error {
	raw, ok := top["spiffe_sequence"]
	if !ok {
		return nil
	}
	n, err := strconv.ParseUint(string(raw), 10, 64)
	if err != nil {
		return fmt.Errorf("spiffe_sequence %q is not an unsigned 64-bit integer", clip(string(raw)))
	}
	b.SetSequenceNumber(n)
	return nil
}

// parseHint takes any integer and brings it into a range that can be waited
// for: the hint is advice (SPIFFE Trust Domain and Bundle §4.1.2).
func (b *Bundle) parseHint(top map[string]json.RawMessage) error {
	raw, ok := top["spiffe_refresh_hint"]
	if !ok {
		return nil
	}
	n, err := strconv.ParseInt(string(raw), 10, 64)
	if errors.Is(err, strconv.ErrRange) {
		n, err = math.MaxInt64, nil
		if strings.HasPrefix(string(raw), "-") {
			n = 0
		}
	}
	if err != nil {
		return fmt.Errorf("spiffe_refresh_hint %q is not an integer", clip(string(raw)))
	}
	seconds := min(max(n, 0), int64(maxHint/time.Second))
	b.SetRefreshHint(time.Duration(seconds) * time.Second)
	return nil
}
