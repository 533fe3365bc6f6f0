// Package backup is the form of a broker's backup: one encrypted file with a
// manifest, the dump of a database, and small files.
//
// The file is encrypted by age (age-encryption.org/v1) to the recipients that the
// operator names: who has one of their identities reads it, and nobody can change
// a byte of it, cut it short or add to it. Recipients are public, so age tells
// nothing of who made a file: that it is the broker's own is left to where it was
// kept. What stands in it, and what of it is believed, is left to the caller.
package backup

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"filippo.io/age"
)

// A Manifest says of which broker a backup is, and of when. It is the first thing
// in the file.
type Manifest struct {
	Format      int       `json:"format"`
	TrustDomain string    `json:"trust_domain"`
	Broker      string    `json:"broker"` // its name
	Version     string    `json:"version"`
	MadeAt      time.Time `json:"made_at"` // the database is of this moment or after
	Revision    uint64    `json:"revision"`
	Sequence    uint64    `json:"sequence"` // of the bundle
	Record      uint64    `json:"record"`   // how far the audit record was
	RecordHash  string    `json:"record_hash"`
	Wrapped     bool      `json:"wrapped"`      // keys in it are encrypted under a key-encryption key too
	Keys        int       `json:"keys"`         // how many are in it
	KeysOutside []string  `json:"keys_outside"` // where others are: awskms, pkcs11
}

const (
	format       = 1
	manifestName = "manifest.json"
	databaseName = "database"
	chunk        = 1 << 20
)

// Bounds of what is read into memory.
const (
	maxManifest = 64 << 10
	MaxFile     = 64 << 20
	maxFiles    = 20_000
)

// ErrDamaged says that a file is no whole backup: a byte of it was changed, or it
// was cut short.
var ErrDamaged = errors.New("the backup is damaged or not whole")

// ErrKey says that none of the identities opens the backup.
var ErrKey = errors.New("this identity does not open the backup")

// A Writer makes a backup. It keeps its first error.
type Writer struct {
	seal io.WriteCloser
	tar  *tar.Writer
	now  time.Time
}

// ParseRecipients reads what may be given as recipients: age1...
func ParseRecipients(all []string) ([]age.Recipient, error) {
	if len(all) == 0 {
		return nil, errors.New("who is to read the backup? a recipient is wanted, an age public key")
	}
	var parsed []age.Recipient
	for _, text := range all {
		r, err := age.ParseRecipients(bytes.NewReader([]byte(text)))
		if err != nil || len(r) != 1 {
			return nil, fmt.Errorf("recipient %.80q: age1 and what follows is wanted, the public key of an age identity", text)
		}
		parsed = append(parsed, r[0])
	}
	return parsed, nil
}

// Create begins a backup.
func Create(w io.Writer, recipients []age.Recipient, m Manifest) (*Writer, error) {
	seal, err := age.Encrypt(w, recipients...)
	if err != nil {
		return nil, fmt.Errorf("encrypting the backup: %w", err)
	}
	b := &Writer{seal, tar.NewWriter(seal), m.MadeAt}
	m.Format = format
	text, err := json.MarshalIndent(m, "", "  ")
	if err == nil {
		err = b.Add(manifestName, text)
	}
	return b, err
}

// Add puts a small file in.
func (b *Writer) Add(name string, data []byte) error {
	if len(data) > MaxFile {
		return fmt.Errorf("%s has %d bytes, at most %d are taken", name, len(data), MaxFile)
	}
	err := b.tar.WriteHeader(&tar.Header{Name: name, Size: int64(len(data)), Mode: 0o600, ModTime: b.now, Format: tar.FormatPAX})
	if err == nil {
		_, err = b.tar.Write(data)
	}
	return err
}

// Database puts in what dump writes, right after the manifest.
func (b *Writer) Database(dump func(io.Writer) error) error {
	w := &chunks{b: b}
	if err := dump(w); err != nil {
		return err
	}
	return w.flush()
}

// chunks make entries of what comes, whose length nobody knows before.
type chunks struct {
	b    *Writer
	held []byte
}

func (c *chunks) Write(p []byte) (n int, err error) {
	for n = len(p); len(p) > 0; {
		some := min(chunk-len(c.held), len(p))
		c.held, p = append(c.held, p[:some]...), p[some:]
		if len(c.held) == chunk {
			if err := c.flush(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

func (c *chunks) flush() error {
	defer func() { c.held = c.held[:0] }()
	return c.b.Add(databaseName, c.held)
}

// Close ends the backup; without it the file is none.
func (b *Writer) Close() error { return errors.Join(b.tar.Close(), b.seal.Close()) }

// A Backup is what was read.
type Backup struct {
	Manifest Manifest
	Files    map[string][]byte
	Digest   [sha256.Size]byte // of the file as it lies there
}

// Names are those of its files.
func (b *Backup) Names() []string { return slices.Sorted(maps.Keys(b.Files)) }

// Read reads a whole backup. database, unless it is nil, is given the dump to read
// to its end; only when Read returns without an error is the file known to be
// whole: read it once with nil first.
func Read(r io.Reader, identities []age.Identity, database func(io.Reader) error) (*Backup, error) {
	sum := sha256.New()
	r = io.TeeReader(r, sum)
	open, err := age.Decrypt(r, identities...)
	var none *age.NoIdentityMatchError
	switch {
	case errors.As(err, &none):
		return nil, ErrKey
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	b := &Backup{Files: map[string][]byte{}}
	t := &entries{tar: tar.NewReader(open)}
	if err := b.read(t, database); err != nil {
		return nil, err
	}
	// What tar left: zeros to its end, and age's word that this is all.
	if n, err := io.Copy(io.Discard, open); err != nil || n > 1<<20 {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, errors.Join(err, errTrailing(n)))
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		return nil, err
	}
	sum.Sum(b.Digest[:0])
	return b, nil
}

func errTrailing(n int64) error {
	if n > 1<<20 {
		return errors.New("more follows its end")
	}
	return nil
}

func (b *Backup) read(t *entries, database func(io.Reader) error) error {
	text, err := t.file(manifestName, maxManifest)
	if err == nil {
		err = json.Unmarshal(text, &b.Manifest)
	}
	if err != nil {
		return fmt.Errorf("%w: its manifest: %w", ErrDamaged, err)
	}
	if b.Manifest.Format != format {
		return fmt.Errorf("the backup is of form %d, this program reads %d; use the program that made it, version %.40q", b.Manifest.Format, format, b.Manifest.Version)
	}
	dump := &databaseReader{t: t}
	if database != nil {
		if err := database(dump); err != nil {
			return err
		}
	}
	if _, err := io.Copy(io.Discard, dump); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	for len(b.Files) < maxFiles {
		h, err := t.peek()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		if b.Files[h.Name], err = t.file(h.Name, MaxFile); err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
	}
	return fmt.Errorf("%w: more than %d files are in it", ErrDamaged, maxFiles)
}

// entries are tar's, the next of which can be looked at.
type entries struct {
	tar  *tar.Reader
	next *tar.Header
}

func (t *entries) peek() (*tar.Header, error) {
	if t.next != nil {
		return t.next, nil
	}
	h, err := t.tar.Next()
	if err == nil && (h.Typeflag != tar.TypeReg || h.Size < 0 || h.Size > MaxFile) {
		err = fmt.Errorf("%.80q in it is no file, or too long", h.Name)
	}
	if err != nil {
		return nil, err
	}
	t.next = h
	return h, nil
}

// file reads the next entry, which must have this name.
func (t *entries) file(name string, most int64) ([]byte, error) {
	h, err := t.peek()
	if err != nil {
		return nil, err
	}
	t.next = nil
	if h.Name != name || h.Size > most {
		return nil, fmt.Errorf("%.80q of %d bytes is where %s should be", h.Name, h.Size, name)
	}
	return io.ReadAll(t.tar)
}

// A databaseReader reads the entries of the dump on, as one.
type databaseReader struct {
	t  *entries
	in bool
}

func (d *databaseReader) Read(p []byte) (int, error) {
	for {
		if !d.in {
			h, err := d.t.peek()
			if err != nil {
				return 0, err
			}
			if h.Name != databaseName {
				return 0, io.EOF
			}
			d.t.next, d.in = nil, true
		}
		n, err := d.t.tar.Read(p)
		if err == io.EOF {
			d.in = false
			if n == 0 {
				continue
			}
			err = nil
		}
		return n, err
	}
}

// NewIdentity makes the key that opens backups, as a file of age's, and its
// recipient.
func NewIdentity() (file []byte, recipient string, err error) {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, "", err
	}
	recipient = identity.Recipient().String()
	return fmt.Appendf(nil, "# public key: %s\n%s\n", recipient, identity), recipient, nil
}

// ParseIdentities reads such a file.
func ParseIdentities(file []byte) ([]age.Identity, error) {
	all, err := age.ParseIdentities(bytes.NewReader(file))
	if err != nil { // which may repeat what is in it
		return nil, errors.New("it holds no age identity, AGE-SECRET-KEY-1 and what follows")
	}
	return all, nil
}
