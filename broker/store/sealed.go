package store

import (
	"bufio"
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/google/renameio/v2"
)

// A Snapshot is a file with what a broker starts from while its database is away:
// a dump (ToStart), sealed.
//
// The seal keeps from who reads the file, on a disk or in a copy of it, who gets
// which identity and what wraps the JWT keys; and from who writes there, that a
// broker starts from what they like. It is as good as the key: one that lies beside
// the file, where the keys are in a KMS, keeps nothing from who has the whole
// directory. An older snapshot that is put back is believed up to maxAge, if the
// database is away too: what is revoked stands in the deny file besides.
type Snapshot struct {
	Path        string
	TrustDomain string
	// Keys are secrets of 16 bytes or more: the first seals, any opens.
	Keys [][]byte
}

// The file is sealedMagic, a salt, when it was made (Unix milliseconds), and chunks
// of so many bytes, of which the last is shorter, or empty: each AES-256-GCM under
// a key of the salt's, its number the nonce, with the head, the trust domain and
// whether it is the last as additional data.
const (
	sealedMagic = "credence sealed 1\n"
	sealedSalt  = 32
	sealedHead  = len(sealedMagic) + sealedSalt + 8
	sealedChunk = 64 << 10
)

var errSealed = errors.New("it is damaged, or was sealed by another key or for another trust domain")

// seal is one direction.
type seal struct {
	aead   cipher.AEAD
	about  []byte // additional data, but for the last byte
	number uint64
}

func (s Snapshot) seal(key, head []byte) (*seal, error) {
	if len(key) < 16 || s.TrustDomain == "" {
		return nil, errors.New("sealing a snapshot: a key of 16 bytes or more, and a trust domain, are required")
	}
	derived, err := hkdf.Key(sha256.New, key, head[len(sealedMagic):][:sealedSalt], "credence snapshot of the database", 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(derived)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	return &seal{aead: aead, about: append(bytes.Clone(head), s.TrustDomain...)}, err
}

func (s *seal) next(last bool) (nonce, about []byte) {
	nonce = make([]byte, s.aead.NonceSize())
	binary.BigEndian.PutUint64(nonce[len(nonce)-8:], s.number)
	s.number++
	if last {
		return nonce, append(s.about, 1)
	}
	return nonce, append(s.about, 0)
}

// write seals what dump writes.
func (s Snapshot) write(w io.Writer, made time.Time, dump func(io.Writer) error) error {
	if len(s.Keys) == 0 {
		return errors.New("sealing a snapshot: no key is given")
	}
	head := make([]byte, sealedHead)
	copy(head, sealedMagic)
	_, _ = rand.Read(head[len(sealedMagic):][:sealedSalt]) // never fails (crypto/rand.Read)
	binary.BigEndian.PutUint64(head[sealedHead-8:], uint64(made.UnixMilli()))
	seal, err := s.seal(s.Keys[0], head)
	if err != nil {
		return err
	}
	if _, err := w.Write(head); err != nil {
		return err
	}
	out := &sealer{w: w, seal: seal}
	if err := dump(out); err != nil {
		return err
	}
	return out.flush(true)
}

type sealer struct {
	w     io.Writer
	seal  *seal
	chunk []byte
}

func (s *sealer) Write(p []byte) (n int, err error) {
	for n = len(p); len(p) > 0; {
		some := min(len(p), sealedChunk-len(s.chunk))
		s.chunk, p = append(s.chunk, p[:some]...), p[some:]
		if len(s.chunk) == sealedChunk {
			if err := s.flush(false); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

func (s *sealer) flush(last bool) error {
	nonce, about := s.seal.next(last)
	_, err := s.w.Write(s.seal.aead.Seal(nil, nonce, s.chunk, about))
	s.chunk = s.chunk[:0]
	return err
}

// open returns when a snapshot was made, and what it is: to be believed up to
// where reading it gives no error.
func (s Snapshot) open(r io.Reader, now time.Time) (made time.Time, plain io.Reader, err error) {
	fail := func(err error) (time.Time, io.Reader, error) {
		return time.Time{}, nil, fmt.Errorf("the snapshot %s: %w; start when the database is there", s.Path, err)
	}
	head := make([]byte, sealedHead)
	if _, err := io.ReadFull(r, head); err != nil || string(head[:len(sealedMagic)]) != sealedMagic {
		return fail(errSealed)
	}
	in := &unsealer{r: bufio.NewReaderSize(r, 2*sealedChunk)}
	if in.chunk, in.last, err = in.read(); err != nil {
		return fail(err)
	}
	for _, key := range s.Keys { // the first chunk says which it is
		if in.seal, err = s.seal(key, head); err != nil {
			return fail(err)
		}
		if in.plain, err = in.open(); err == nil {
			break
		}
	}
	if len(s.Keys) == 0 || err != nil {
		return fail(errSealed)
	}
	made = time.UnixMilli(int64(binary.BigEndian.Uint64(head[sealedHead-8:]))).UTC()
	if age := now.Sub(made); age > maxAge {
		return fail(fmt.Errorf("it is of %s, and older than %d days", made.Format(time.RFC3339), int(maxAge.Hours()/24)))
	}
	return made, in, nil
}

type unsealer struct {
	r     *bufio.Reader
	seal  *seal
	chunk []byte // sealed
	last  bool
	plain []byte // of it, not yet read
}

// read reads a sealed chunk, and says whether it is the last.
func (u *unsealer) read() (chunk []byte, last bool, err error) {
	const overhead = 16
	chunk = make([]byte, sealedChunk+overhead)
	n, err := io.ReadFull(u.r, chunk)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, false, err
	}
	return chunk[:n], n < len(chunk), nil
}

func (u *unsealer) open() ([]byte, error) {
	nonce, about := u.seal.next(u.last)
	plain, err := u.seal.aead.Open(nil, nonce, u.chunk, about)
	if err != nil {
		return nil, errSealed
	}
	return plain, nil
}

func (u *unsealer) Read(p []byte) (n int, err error) {
	for len(u.plain) == 0 {
		if u.last {
			return 0, io.EOF
		}
		if u.chunk, u.last, err = u.read(); err != nil {
			return 0, err
		}
		if u.plain, err = u.open(); err != nil {
			return 0, err
		}
	}
	n = copy(p, u.plain)
	u.plain = u.plain[n:]
	return n, nil
}

// When a snapshot is made anew.
const (
	snapshotLook   = time.Second
	snapshotAfter  = 5 * time.Second  // of a change: others come with it
	snapshotEvery  = 10 * time.Minute // though nothing changed: its age tells how long the database has been away
	snapshotPause  = 15 * time.Second // from one to the next,
	snapshotShare  = 20               // and so many times as long as it took
	snapshotUnhurt = 10 * time.Minute // one may take
)

// A Keeper keeps a snapshot of a store up to date.
type Keeper struct {
	Store    *Store
	Snapshot Snapshot
	Log      *slog.Logger     // nil discards
	Now      func() time.Time // nil means time.Now

	hurry atomic.Bool
	kept  atomic.Uint64
}

// Hurry has Run write the next snapshot now, whatever the last one took.
func (k *Keeper) Hurry() { k.hurry.Store(true) }

// Kept is the revision up to which the snapshot goes: 0 where there is none yet.
func (k *Keeper) Kept() uint64 {
	if r := k.kept.Load(); r != 0 {
		return r
	}
	file, err := os.Open(k.Snapshot.Path)
	if err != nil {
		return 0
	}
	defer file.Close()
	_, plain, err := k.Snapshot.open(file, now(k.Now)())
	if err != nil {
		return 0
	}
	head, err := (&dumpReader{r: bufio.NewReaderSize(plain, 4<<10)}).head()
	if err != nil {
		return 0
	}
	k.kept.CompareAndSwap(0, head.Revision) // Run may have made one
	return k.kept.Load()
}

// Run writes the snapshot until ctx ends: a few seconds after what Revision or Beat
// saw change, and every ten minutes. It asks the store nothing to find that out.
func (k *Keeper) Run(ctx context.Context) error {
	log := k.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	clock := now(k.Now)
	var last Made
	var changed, next time.Time
	failing := false
	for wait := time.Duration(0); ; wait = snapshotLook {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		at := clock()
		if _, away := k.Store.Away(); away || at.Before(next) && !k.hurry.Load() {
			continue
		}
		hurry := k.hurry.Swap(false)
		switch {
		case hurry, last.At.IsZero(), at.Sub(last.At).Abs() >= snapshotEvery:
		case k.Store.Seen() <= last.Revision:
			changed = time.Time{}
			continue
		case changed.IsZero():
			changed = at
			continue
		case at.Sub(changed) < snapshotAfter:
			continue
		}
		made, err := k.Make(ctx)
		changed, next = time.Time{}, clock().Add(max(snapshotPause, snapshotShare*clock().Sub(at)))
		if err == nil {
			last = made
		}
		if err != nil && !failing && ctx.Err() == nil {
			log.WarnContext(ctx, "the snapshot to start from without the database is not up to date", "error", err)
		}
		failing = err != nil
	}
}

func now(f func() time.Time) func() time.Time {
	if f == nil {
		return time.Now
	}
	return f
}

// Made is a snapshot that was made.
type Made struct {
	At       time.Time
	Revision uint64
}

// Make writes the snapshot in place of the one before, whole or not at all.
func (k *Keeper) Make(ctx context.Context) (made Made, err error) {
	fail := func(err error) (Made, error) {
		return Made{}, fmt.Errorf("writing the snapshot %s: %w", k.Snapshot.Path, err)
	}
	ctx, cancel := context.WithTimeout(ctx, snapshotUnhurt)
	defer cancel()
	made.At = now(k.Now)()
	file, err := renameio.NewPendingFile(k.Snapshot.Path, renameio.WithStaticPermissions(0o600))
	if err != nil {
		return fail(err)
	}
	defer file.Cleanup() // after CloseAtomicallyReplace it does nothing
	buffered := bufio.NewWriterSize(file, 256<<10)
	err = k.Snapshot.write(buffered, made.At, func(w io.Writer) error {
		head, err := k.Store.Dump(ctx, w, ToStart())
		made.Revision = head.Revision
		return err
	})
	if err == nil {
		err = buffered.Flush()
	}
	if err == nil {
		err = file.CloseAtomicallyReplace() // which syncs it
	}
	if err == nil {
		err = syncDir(filepath.Dir(k.Snapshot.Path))
	}
	if err != nil {
		return fail(err)
	}
	k.kept.Store(made.Revision)
	return made, nil
}
