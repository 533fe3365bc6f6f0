// Package audit keeps the broker's record: one line for each decision and
// each administrative act, chained by hashes, durable before anything that
// it speaks of is released.
//
// The record is a directory, mode 0700, of files named by the sequence number
// of their first record, such as 000000000001.jsonl, mode 0600. Each line is
// one JSON object in one canonical form: members in the order of [Record] and
// [Event], maps sorted by key, absent members left out, no spaces, nothing
// escaped but what JSON and U+2028/2029 require. A line ends
//
//	,"previous":"<64 hex digits>","hash":"<64 hex digits>"}
//
// and a newline. previous is the hash of the record before, in whichever file
// that stands; the first record has 64 zeros. hash is the SHA-256 of the 32
// bytes that previous stands for, followed by the line as it would be without
// its hash: the newline cut off and `,"hash":"..."}` replaced by `}`. Anyone
// can check one line with ordinary tools:
//
//	line=$(sed -n 7p 000000000001.jsonl)
//	prev=$(printf %s "$line" | sed 's/.*"previous":"\([0-9a-f]*\)".*/\1/')
//	{ printf %s "$prev" | xxd -r -p
//	  printf %s "$line" | sed 's/,"hash":"[0-9a-f]*"}$/}/' | tr -d '\n'; } | sha256sum
//
// The chain shows every change but one: whoever may write the directory can
// cut records off its end, or write the whole anew. That shows only against a
// head kept elsewhere, which [Verify] takes.
//
// The package trusts the file system to keep what fsync said it keeps, and
// its caller to release nothing that [Log.Append] did not confirm. It trusts
// no content: what it reads back is bounded and checked like foreign bytes.
// Who may read the record, and how it is carried elsewhere, is left to others.
package audit

import (
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Sizes that hold for every record. Longer is refused, never cut: a cut
// record would say something that nobody said.
const (
	MaxLine  = 64 << 10 // bytes of one line, newline included
	maxBatch = 8 << 20  // bytes of one call of Append, and of one group commit
	maxQueue = 32 << 20 // bytes that wait for the disk
)

var (
	// ErrUnavailable is the error of everything that could not be made
	// durable: it must not be released. The next Append tries anew.
	ErrUnavailable = errors.New("audit record unavailable")

	// ErrFull is an ErrUnavailable for want of room: space, quota or the
	// limit of a file's size.
	ErrFull = fmt.Errorf("%w: no room", ErrUnavailable)

	// ErrRefused is the error of an event that has no valid form, such as one
	// without a kind or one longer than MaxLine. Trying again does not help.
	ErrRefused = errors.New("audit event refused")

	// ErrReplaced is the error of going on from a place that the record does
	// not have: it was cut, or begun anew.
	ErrReplaced = errors.New("audit record replaced")

	// ErrClosed is the error of use after Close.
	ErrClosed = errors.New("audit record closed")
)

// An Event is what happened, before it has a place in the record. Strings
// that are not UTF-8 are recorded with U+FFFD for what isn't.
type Event struct {
	Kind      string              `json:"kind"` // "issue.x509", "issue.jwt", "deny", "join", "apply" and so on; required
	OK        bool                `json:"ok"`
	Node      string              `json:"node,omitempty"`      // SPIFFE ID of the node, if one took part
	SPIFFEID  string              `json:"spiffe_id,omitempty"` // whom it is about
	Identity  string              `json:"identity,omitempty"`  // name of the Identity
	Revision  uint64              `json:"revision,omitempty"`  // its revision
	Serial    string              `json:"serial,omitempty"`    // hex serial of an X509-SVID, jti of a JWT-SVID
	Authority string              `json:"authority,omitempty"` // ID of the authority that signed it
	Issued    time.Time           `json:"issued,omitzero"`     // when it was granted: its notBefore or iat lies further back
	NotAfter  time.Time           `json:"not_after,omitzero"`
	Digest    string              `json:"digest,omitempty"` // hex SHA-256 of what was released
	Audiences []string            `json:"audiences,omitempty"`
	Target    string              `json:"target,omitempty"`
	Actor     string              `json:"actor,omitempty"` // who asked for an administrative act
	Code      string              `json:"code,omitempty"`  // for the operator, as is Reason
	Reason    string              `json:"reason,omitempty"`
	Facts     map[string][]string `json:"facts,omitempty"`
	Count     uint64              `json:"count,omitempty"` // like events folded into one record; 0 means 1
	Detail    map[string]string   `json:"detail,omitempty"`

	// Spare says that it may wait while the disk is full, as what is not OK must.
	Spare bool `json:"-"`
}

// A Record is an event in its place.
type Record struct {
	Sequence uint64    `json:"sequence"` // from 1, without gaps
	Time     time.Time `json:"time"`     // UTC, when it was written
	Event
	Previous string `json:"previous"`       // hex, hash of the record before
	Hash     string `json:"hash,omitempty"` // hex
}

// Ref returns the record's place. It is zero if Hash is not a hash.
func (r Record) Ref() Ref {
	ref := Ref{Sequence: r.Sequence}
	if n, err := hex.Decode(ref.Hash[:], []byte(r.Hash)); err != nil || n != len(ref.Hash) {
		return Ref{}
	}
	return ref
}

// A Ref is an event's place in the record. The zero Ref is the place before
// the first.
type Ref struct {
	Sequence uint64
	Hash     [32]byte
}

// ID returns what a caller quotes to the operator, such as "r-000123". It
// says nothing but how many records came before.
func (r Ref) ID() string { return fmt.Sprintf("r-%06d", r.Sequence) }

// A Config says where the record is and how it is kept.
type Config struct {
	// Dir is the record's own directory, made if absent, mode 0700. Required.
	Dir string
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// MaxBytes is the size after which a new file is begun; 0 means 64 MiB.
	MaxBytes int64
	// Reserve is the room that is kept, where the system can, for what is granted
	// and revoked while the disk is full; 0 means 16 MiB, less than 0 none.
	Reserve int64
	// Observe is told of each write, by the one who writes; nil: nobody is.
	Observe func(Commit)
	// HMACFacts are the names of facts, or their beginnings and ".*", of whose
	// values the record has no more than an HMAC, under a key of its own.
	HMACFacts []string
	// Log is told of what was mended; nil discards.
	Log *slog.Logger

	disk disk // nil means the real one
}

func (c Config) withDefaults() (Config, error) {
	if c.Dir == "" {
		return c, errors.New("opening the audit record: no directory is configured")
	}
	if c.MaxBytes < 0 {
		return c, fmt.Errorf("opening the audit record %s: files of %d bytes are not possible", c.Dir, c.MaxBytes)
	}
	if c.MaxBytes == 0 {
		c.MaxBytes = 64 << 20
	}
	if c.Reserve == 0 {
		c.Reserve = 16 << 20
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.disk == nil {
		c.disk = osDisk{}
	}
	return c, nil
}
