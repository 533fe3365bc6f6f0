package agent

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/google/renameio/v2"
)

// How many heads are kept of each broker's record: one of each minute of the last
// hour, of each hour of two days, and of each day of ninety.
const (
	headsByMinute = time.Hour
	headsByHour   = 48 * time.Hour
	headsByDay    = 90 * 24 * time.Hour

	maxHeadLine   = 16 << 10
	maxHeadsFile  = 64 << 20
	maxHeadsSent  = 4 << 20
	maxOrigins    = 16 // brokers of a trust domain whose heads are kept
	maxHeadsSkew  = 10 * time.Minute
	headsSlack    = 512 // lines that the file may have more than are kept
	headsFileName = "heads.jsonl"
)

// heads are how far brokers' records had got, as each signed it. This node keeps
// them for whoever verifies a record: a broker that wrote its own anew cannot make
// the nodes forget what it said. What is kept already is never displaced by what
// comes later.
type heads struct {
	path  string
	wake  chan struct{} // of capacity 1: there is more to write
	trust string
	now   func() time.Time

	mu       sync.Mutex // guards what follows
	byOrigin map[string][]keptHead
	unsaved  [][]byte
	lines    int // in the file
}

// A keptHead is a line as the broker signed it, and what it says.
type keptHead struct {
	line []byte
	at   time.Time
	head
}

type head struct {
	TrustDomain string    `json:"trust_domain"`
	Origin      string    `json:"origin"`
	Sequence    uint64    `json:"sequence"`
	Hash        string    `json:"hash"`
	Time        time.Time `json:"time"`
}

func parseHead(line []byte, trust string) (keptHead, error) {
	k := keptHead{line: bytes.Clone(line)}
	if len(line) >= maxHeadLine || bytes.ContainsAny(line, "\r\n") {
		return k, errors.New("a head is one line, of at most 16 KiB")
	}
	if err := json.Unmarshal(line, &k.head); err != nil {
		return k, fmt.Errorf("no head: %w", err)
	}
	if raw, err := hex.DecodeString(k.Hash); err != nil || len(raw) != 32 || k.Sequence == 0 || k.Origin == "" || len(k.Origin) > 63 || k.TrustDomain != trust || k.Time.IsZero() {
		return k, errors.New("no head of a record of this trust domain")
	}
	k.at = k.Time
	return k, nil
}

// open takes up what an earlier run kept. A line that is no head was cut off by a
// crash, and is passed over.
func (h *heads) open(cfg Config) error {
	h.path, h.trust, h.now = filepath.Join(cfg.Data, headsFileName), cfg.TrustDomain.Name(), cfg.Now
	h.wake, h.byOrigin = make(chan struct{}, 1), make(map[string][]keptHead)
	f, err := os.Open(h.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading heads of the broker's record: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxHeadsFile))
	if err != nil {
		return fmt.Errorf("reading heads of the broker's record: %w", err)
	}
	for line := range bytes.Lines(text) {
		h.lines++
		if k, err := parseHead(bytes.TrimSuffix(line, []byte("\n")), h.trust); err == nil {
			h.keep(k)
		}
	}
	if len(text) > 0 && text[len(text)-1] != '\n' {
		h.lines += headsSlack // so that the file is written anew
	}
	return nil
}

// take keeps a head that a broker told. The error says why it is not kept.
func (h *heads) take(line []byte) error {
	k, err := parseHead(line, h.trust)
	if err != nil {
		return err
	}
	now := h.now()
	if skew := k.Time.Sub(now).Abs(); skew > maxHeadsSkew {
		return fmt.Errorf("a head of %s is %s from this machine's clock", k.Time.UTC().Format(time.RFC3339), skew.Round(time.Second))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	k.at = now
	if !h.keep(k) {
		return fmt.Errorf("heads of %d brokers are kept, and no more: %.63q is another", maxOrigins, k.Origin)
	}
	h.unsaved = append(h.unsaved, k.line)
	select {
	case h.wake <- struct{}{}:
	default:
	}
	return nil
}

// keep adds a head in its place and thins the others. The caller holds mu, or is
// the only one.
func (h *heads) keep(k keptHead) bool {
	have, known := h.byOrigin[k.Origin]
	if !known {
		h.forget()
	}
	if !known && len(h.byOrigin) >= maxOrigins {
		return false
	}
	for _, old := range have {
		if old.Sequence == k.Sequence && old.Hash == k.Hash {
			return true
		}
	}
	all := append(have, k)
	slices.SortStableFunc(all, func(x, y keptHead) int { return x.at.Compare(y.at) })
	h.byOrigin[k.Origin] = thin(all, h.now())
	return true
}

// forget gives the places of brokers free that are gone: whose last head is too old
// to be kept. Brokers of a cluster may get a new name with each start. The caller
// holds mu, or is the only one.
func (h *heads) forget() {
	now := h.now()
	for origin, have := range h.byOrigin {
		if n := len(have); n == 0 || now.Sub(have[n-1].at) > headsByDay {
			delete(h.byOrigin, origin)
		}
	}
}

// thin returns what is kept of heads in the order in which they came: of each span
// the first, and the newest.
func thin(all []keptHead, now time.Time) (kept []keptHead) {
	var last [2]int64 // span and its number
	for i, k := range all {
		span := time.Minute
		switch age := now.Sub(k.at); {
		case age > headsByDay:
			continue
		case age > headsByHour:
			span = 24 * time.Hour
		case age > headsByMinute:
			span = time.Hour
		}
		here := [2]int64{int64(span), k.at.UnixNano() / int64(span)}
		if here != last || i == len(all)-1 {
			kept = append(kept, k)
		}
		last = here
	}
	return kept
}

// told returns the lines that are kept, the newest first, as many as go into one
// message.
func (h *heads) told() (lines [][]byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	size := 0
	for _, k := range h.all() {
		if size += len(k.line); size > maxHeadsSent {
			break
		}
		lines = append(lines, k.line)
	}
	return lines
}

// all returns what is kept, the newest first. The caller holds mu.
func (h *heads) all() (all []keptHead) {
	for _, some := range h.byOrigin {
		all = append(all, some...)
	}
	slices.SortFunc(all, func(x, y keptHead) int { return cmp.Or(y.at.Compare(x.at), cmp.Compare(x.Origin, y.Origin)) })
	return all
}

// keeping writes what was taken until ctx ends. The stream does not wait for it.
func (h *heads) keeping(ctx context.Context, failed func(error)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.wake:
		}
		if err := h.save(); err != nil {
			failed(err)
		}
	}
}

// save appends to the file, or writes it anew where much of it is kept no more.
func (h *heads) save() error {
	h.mu.Lock()
	lines, all := h.unsaved, h.all()
	h.unsaved = nil
	anew := h.lines+len(lines) > len(all)+headsSlack
	if anew {
		h.lines = len(all)
	} else {
		h.lines += len(lines)
	}
	h.mu.Unlock()
	if err := h.write(lines, all, anew); err != nil {
		h.mu.Lock()
		h.lines = maxHeadsFile // the next one writes all anew
		h.mu.Unlock()
		return fmt.Errorf("keeping heads of the broker's record: %w", err)
	}
	return nil
}

func (h *heads) write(lines [][]byte, all []keptHead, anew bool) error {
	var text []byte
	if anew {
		for _, k := range slices.Backward(all) {
			text = append(append(text, k.line...), '\n')
		}
		return renameio.WriteFile(h.path, text, 0o600, renameio.WithStaticPermissions(0o600))
	}
	for _, line := range lines {
		text = append(append(text, line...), '\n')
	}
	f, err := os.OpenFile(h.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
