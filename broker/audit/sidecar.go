package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/google/renameio/v2"
)

// A sidecar stands beside a file of the record that is not written any more and
// says for each few records of it which values cannot be in them, so that a
// Search reads little. It is made from the file, names its size and the hash of
// its last record, and is believed for nothing but what may be skipped; without
// one that fits, the file itself is searched. It is:
//
//	magic, first sequence, size of the file, last hash, number of blocks;
//	for each block: offset, first sequence, oldest and newest time, bytes of
//	its filter, filter;
//	SHA-256 of all that.
//
// Numbers are 8 bytes, big endian; times are Unix nanoseconds. A filter is a
// Bloom filter of [bloomHashes] bits a value.
type sidecar struct {
	first  uint64
	size   int64
	last   [32]byte
	blocks []block
}

type block struct {
	offset         int64
	first          uint64
	oldest, newest int64
	filter         []byte
}

const (
	sidecarMagic  = "credence audit index 1\n"
	sidecarSuffix = ".idx"
	headerLen     = len(sidecarMagic) + 8 + 8 + 32 + 8
	blockLen      = 5 * 8

	blockRecords = 256
	bloomBits    = 14 // a value
	bloomHashes  = 10
)

var errSidecar = errors.New("it is not an index that the record made of this file")

func sidecarName(path string) string { return strings.TrimSuffix(path, suffix) + sidecarSuffix }

// end is where a block ends.
func (x *sidecar) end(i int) int64 {
	if i+1 < len(x.blocks) {
		return x.blocks[i+1].offset
	}
	return x.size
}

// mayHold says whether a block must be read.
func (b *block) mayHold(q Query, want []uint64) bool {
	switch {
	case q.Below > 0 && b.first >= q.Below, q.Sequence > 0 && (b.first > q.Sequence || b.first+blockRecords <= q.Sequence):
		return false
	case !q.Since.IsZero() && b.newest < nanos(q.Since), !q.Until.IsZero() && b.oldest > nanos(q.Until):
		return false
	}
	for _, h := range want {
		if !hasBit(b.filter, h) {
			return false
		}
	}
	return true
}

// begins says whether the block begins with the record that it says.
func (b *block) begins(f *os.File) bool {
	want := append([]byte("\n"+lineStart), strconv.FormatUint(b.first, 10)+","...)
	if b.offset == 0 {
		want = want[1:]
	}
	have := make([]byte, len(want))
	_, err := f.ReadAt(have, max(b.offset-1, 0))
	return err == nil && bytes.Equal(have, want)
}

// nanos are Unix nanoseconds, or as many as there can be.
func nanos(t time.Time) int64 {
	switch {
	case t.Before(time.Unix(0, math.MinInt64)):
		return math.MinInt64
	case t.After(time.Unix(0, math.MaxInt64)):
		return math.MaxInt64
	}
	return t.UnixNano()
}

// The values that a filter holds, by the first byte of what is hashed.
func valueHash(field byte, value string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte{field})
	_, _ = io.WriteString(h, value)
	// FNV alone spreads its last bytes too little.
	x := h.Sum64()
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// hashes are what a block's filter must have for q.
func (q Query) hashes() (all []uint64) {
	add := func(field byte, value string) {
		if value != "" {
			all = append(all, valueHash(field, valid(value)))
		}
	}
	add('i', q.SPIFFEID)
	add('p', q.Identity)
	add('n', q.Node)
	add('s', q.Serial)
	add('k', q.Kind)
	add('t', q.Target)
	add('a', q.Actor)
	if q.OK != nil {
		add('o', fmt.Sprint(*q.OK))
	}
	return all
}

// indexed is what of a record is in a filter.
type indexed struct {
	Time                                        time.Time
	OK                                          bool
	Kind, Node, Identity, Serial, Target, Actor string
	SPIFFEID                                    string `json:"spiffe_id"`
}

func (r indexed) addTo(values map[uint64]struct{}) {
	add := func(field byte, value string) {
		if value != "" {
			values[valueHash(field, value)] = struct{}{}
		}
	}
	add('i', r.SPIFFEID)
	add('p', r.Identity)
	add('n', r.Node)
	add('n', lastPart(r.Node))
	add('s', r.Serial)
	add('k', r.Kind)
	add('k', family(r.Kind))
	add('t', r.Target)
	add('a', r.Actor)
	add('o', fmt.Sprint(r.OK))
}

func bit(filter []byte, h uint64, i int) (at uint64, mask byte) {
	h1, h2 := h>>32, h&math.MaxUint32|1
	n := (h1 + uint64(i)*h2) % uint64(8*len(filter))
	return n / 8, 1 << (n % 8)
}

func hasBit(filter []byte, h uint64) bool {
	for i := range bloomHashes {
		if at, mask := bit(filter, h, i); filter[at]&mask == 0 {
			return false
		}
	}
	return true
}

func filterOf(values map[uint64]struct{}) []byte {
	filter := make([]byte, (len(values)*bloomBits+7)/8)
	for h := range values {
		for i := range bloomHashes {
			at, mask := bit(filter, h, i)
			filter[at] |= mask
		}
	}
	return filter
}

// makeSidecar reads a file that is not written any more, and checks it.
func makeSidecar(ctx context.Context, path string, first uint64) (*sidecar, error) {
	size, err := sizeOf(path)
	if err != nil {
		return nil, err
	}
	x := &sidecar{first: first, size: size}
	c := chain{head: Ref{Sequence: first - 1}, open: first > 1}
	var b block
	var at int64
	values := make(map[uint64]struct{})
	flush := func() {
		if len(values) > 0 {
			b.filter = filterOf(values)
			x.blocks = append(x.blocks, b)
			clear(values)
		}
	}
	s, err := scan(path, size, false, &c, func(line []byte) error {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		var r indexed
		if err := json.Unmarshal(line, &r); err != nil {
			return &badLine{err}
		}
		if (c.head.Sequence-first)%blockRecords == 0 {
			flush()
			b = block{offset: at, first: c.head.Sequence, oldest: math.MaxInt64, newest: math.MinInt64}
		}
		b.oldest, b.newest = min(b.oldest, nanos(r.Time)), max(b.newest, nanos(r.Time))
		r.addTo(values)
		at += int64(len(line)) + 1
		return nil
	})
	flush()
	if err == nil && s.end != size {
		err = &BrokenError{File: path, Err: errors.New("its end is missing")}
	}
	x.last = c.head.Hash
	return x, err
}

func (x *sidecar) marshal() []byte {
	put := binary.BigEndian.AppendUint64
	b := append([]byte(nil), sidecarMagic...)
	b = put(put(b, x.first), uint64(x.size))
	b = put(append(b, x.last[:]...), uint64(len(x.blocks)))
	for _, one := range x.blocks {
		b = put(put(b, uint64(one.offset)), one.first)
		b = put(put(b, uint64(one.oldest)), uint64(one.newest))
		b = append(put(b, uint64(len(one.filter))), one.filter...)
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// parseSidecar reads what marshal wrote: blocks that lie in order in the file,
// each with a filter.
func parseSidecar(data []byte) (*sidecar, error) {
	if len(data) < headerLen+32 || !bytes.HasPrefix(data, []byte(sidecarMagic)) {
		return nil, errSidecar
	}
	body := data[:len(data)-32]
	if sha256.Sum256(body) != [32]byte(data[len(body):]) {
		return nil, errSidecar
	}
	get := binary.BigEndian.Uint64
	head := body[len(sidecarMagic):]
	x := &sidecar{first: get(head), size: int64(get(head[8:])), last: [32]byte(head[16:48])}
	n, rest := get(head[48:]), head[56:]
	if n > uint64(len(rest)/blockLen) || x.size < 0 || x.first == 0 {
		return nil, errSidecar
	}
	for i := range n {
		if len(rest) < blockLen {
			return nil, errSidecar
		}
		b := block{offset: int64(get(rest)), first: get(rest[8:]), oldest: int64(get(rest[16:])), newest: int64(get(rest[24:]))}
		length := get(rest[32:])
		if rest = rest[blockLen:]; length == 0 || length > uint64(len(rest)) {
			return nil, errSidecar
		}
		b.filter, rest = rest[:length], rest[length:]
		if b.first != x.first+i*blockRecords || b.offset < 0 || b.offset >= x.size || (i == 0) != (b.offset == 0) ||
			i > 0 && b.offset <= x.blocks[i-1].offset || b.oldest > b.newest {
			return nil, errSidecar
		}
		x.blocks = append(x.blocks, b)
	}
	if len(rest) > 0 || len(x.blocks) == 0 {
		return nil, errSidecar
	}
	for i := range x.blocks { // what a block can be is what is read at once
		if x.end(i)-x.blocks[i].offset > blockRecords*MaxLine {
			return nil, errSidecar
		}
	}
	return x, nil
}

// sidecarOf returns the sidecar of a file, or nil if the file itself is to be
// searched.
func sidecarOf(f *os.File, path string, first uint64, size int64, without bool) *sidecar {
	if without {
		return nil
	}
	x, err := readSidecar(f, path, first, size)
	if err != nil {
		return nil
	}
	return x
}

func readSidecar(f *os.File, path string, first uint64, size int64) (*sidecar, error) {
	side, err := os.Open(sidecarName(path))
	if err != nil {
		return nil, err
	}
	defer side.Close()
	info, err := side.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() > size+int64(headerLen)+blockLen+1024 {
		return nil, errSidecar
	}
	data := make([]byte, info.Size())
	if _, err := io.ReadFull(side, data); err != nil {
		return nil, err
	}
	x, err := parseSidecar(data)
	if err != nil {
		return nil, err
	}
	last, err := lastHash(f, size)
	if err != nil || x.first != first || x.size != size || x.last != last {
		return nil, errSidecar
	}
	return x, nil
}

// lastHash returns the hash that the last line says it has.
func lastHash(f *os.File, size int64) (hash [32]byte, err error) {
	tail := make([]byte, hashLen+1)
	if _, err := f.ReadAt(tail, max(size-int64(len(tail)), 0)); err != nil {
		return hash, err
	}
	if !hexMember(hash[:], bytes.TrimSuffix(tail, []byte("\n")), hashMember, lineEnd) {
		return hash, errSidecar
	}
	return hash, nil
}

// KeepIndex makes the sidecars that are missing, and then one for each file
// that the record has done with, until ctx ends or the Log is closed. What it
// cannot make is said in the log; searches then take longer.
func (l *Log) KeepIndex(ctx context.Context) error {
	made, newest := make(map[uint64]bool), uint64(0)
	for {
		at, changed := l.state()
		if at.first != newest {
			if err := l.makeSidecars(ctx, at.first, made); err != nil {
				if ctx.Err() != nil {
					return fmt.Errorf("indexing the audit record: %w", context.Cause(ctx))
				}
				l.log.WarnContext(ctx, "audit record: a file could not be indexed; searching it takes longer", "error", err)
			}
			newest = at.first
		}
		if at.closed {
			return ErrClosed
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("indexing the audit record: %w", context.Cause(ctx))
		case <-changed:
		}
	}
}

// makeSidecars makes what is missing of files before the newest, but for those that
// it has made or read already: a long record has many, and each is read whole.
func (l *Log) makeSidecars(ctx context.Context, newest uint64, made map[uint64]bool) error {
	dir := l.lock.Name()
	firsts, err := list(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, first := range firsts {
		if first >= newest || ctx.Err() != nil {
			break
		}
		if made[first] {
			continue
		}
		if err := makeSidecarOf(ctx, fileName(dir, first), first); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
			continue
		}
		made[first] = true
	}
	return errors.Join(append(errs, context.Cause(ctx))...)
}

func makeSidecarOf(ctx context.Context, path string, first uint64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := sizeOf(path)
	if err != nil {
		return err
	}
	if _, err := readSidecar(f, path, first, size); err == nil {
		return nil
	}
	x, err := makeSidecar(ctx, path, first)
	if err != nil {
		return err
	}
	return renameio.WriteFile(sidecarName(path), x.marshal(), 0o600)
}
