package unix

import (
	"container/list"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

const (
	maxDigests = 1024
	// settled is how long a file must have been left alone for its digest to be
	// remembered: two changes within one tick of its file system's clock look
	// like one.
	settled = 2 * time.Second
)

// A version is a file in one state: any change of what it holds changes ctime,
// which nobody but the kernel sets.
type version struct {
	dev, inode   uint64
	size         int64
	mtime, ctime time.Time
}

// digests reads each version of an executable once, and for each uid one file
// at a time, so that no user can make the agent busy for all.
type digests struct {
	max int64
	now func() time.Time

	mu    sync.Mutex // guards all below
	known map[version]*list.Element
	order *list.List       // of digest, the last used first
	turns map[uint32]*turn // of the uids of which a file is being read
}

type digest struct {
	of  version
	hex string
}

type turn struct {
	free    chan struct{} // holds one token while nobody reads
	waiting int
}

func newDigests(max int64, now func() time.Time) *digests {
	return &digests{max: max, now: now, known: map[version]*list.Element{}, order: list.New(), turns: map[uint32]*turn{}}
}

// of returns the SHA-256 of f, which is an executable of a process of that uid.
func (d *digests) of(ctx context.Context, uid uint32, f *os.File) (string, error) {
	v, err := versionOf(f)
	if err != nil {
		return "", err
	}
	if v.size > d.max {
		return "", fmt.Errorf("hashing an executable of %d bytes: more than %d", v.size, d.max)
	}
	if h, ok := d.recall(v); ok {
		return h, nil
	}
	done, err := d.take(ctx, uid)
	if err != nil {
		return "", err
	}
	defer done()
	if h, ok := d.recall(v); ok { // read by whom we waited for
		return h, nil
	}
	h, err := d.read(ctx, f)
	if err != nil {
		return "", err
	}
	after, err := versionOf(f)
	if err != nil {
		return "", err
	}
	if after != v {
		return "", errors.New("hashing an executable: it changed meanwhile")
	}
	if d.now().Sub(v.ctime) > settled {
		d.remember(v, h)
	}
	return h, nil
}

func (d *digests) read(ctx context.Context, f *os.File) (string, error) {
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(reader{ctx, f}, d.max+1))
	if err != nil {
		return "", fmt.Errorf("hashing an executable: %w", err)
	}
	if n > d.max {
		return "", fmt.Errorf("hashing an executable: more than %d bytes", d.max)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// reader stops when its context does.
type reader struct {
	ctx context.Context
	f   *os.File
}

func (r reader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.f.Read(b)
}

// take waits for uid's turn to read, and returns how to end it.
func (d *digests) take(ctx context.Context, uid uint32) (done func(), err error) {
	d.mu.Lock()
	t := d.turns[uid]
	if t == nil {
		t = &turn{free: make(chan struct{}, 1)}
		t.free <- struct{}{}
		d.turns[uid] = t
	}
	t.waiting++
	d.mu.Unlock()
	select {
	case <-t.free:
		return func() { t.free <- struct{}{}; d.leave(uid, t) }, nil
	case <-ctx.Done():
		d.leave(uid, t)
		return nil, fmt.Errorf("waiting to hash an executable of uid %d: %w", uid, ctx.Err())
	}
}

func (d *digests) leave(uid uint32, t *turn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if t.waiting--; t.waiting == 0 {
		delete(d.turns, uid)
	}
}

func (d *digests) recall(v version) (string, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e, ok := d.known[v]
	if !ok {
		return "", false
	}
	d.order.MoveToFront(e)
	return e.Value.(digest).hex, true
}

func (d *digests) remember(v version, h string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.known[v]; ok {
		return
	}
	d.known[v] = d.order.PushFront(digest{v, h})
	if d.order.Len() > maxDigests {
		last := d.order.Remove(d.order.Back()).(digest)
		delete(d.known, last.of)
	}
}
