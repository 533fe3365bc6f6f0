package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/renameio/v2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/exchangers"
)

// Bounds of the spool. A node whose broker is away for long loses its oldest
// reports, never its workloads' credentials.
const (
	maxSpooled   = 4096
	maxSpoolFile = 64 << 20 // more than maxSpooled can fill
	shipAtOnce   = 128
)

// spool keeps what happened on this node until the broker's record has it, on
// disk as soon as the disk takes it.
type spool struct {
	path string
	wake chan struct{} // of capacity 1

	mu      sync.Mutex // guards pending and lost
	pending []*api.Exchange
	lost    uint64
}

func openSpool(dir string) (*spool, error) {
	s := &spool{path: filepath.Join(dir, "spool.jsonl"), wake: make(chan struct{}, 1)}
	info, err := os.Stat(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	if info.Size() > maxSpoolFile {
		return nil, fmt.Errorf("%s has %d bytes: not ours; move it away", s.path, info.Size())
	}
	text, err := os.ReadFile(s.path)
	if err != nil {
		return nil, err
	}
	for line := range bytes.Lines(text) {
		e := &api.Exchange{}
		// A torn last line is a report that was never promised to be kept.
		if protojson.Unmarshal(line, e) == nil && len(s.pending) < maxSpooled {
			s.pending = append(s.pending, e)
		}
	}
	s.nudge()
	return s, nil
}

func (s *spool) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// exchange spools one exchange. It doesn't block on the disk or the broker.
func (s *spool) exchange(e exchangers.Event, identity string) {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails (crypto/rand.Read)
	m := &api.Exchange{
		Id: hex.EncodeToString(id[:]), SpiffeId: e.SPIFFEID.String(), Target: e.Target, Time: e.Time.Unix(), Ok: e.OK,
		Class: string(e.Class), Code: exchangers.Clean(e.Code), RequestId: exchangers.Clean(e.RequestID), Identity: identity,
	}
	if !e.Expires.IsZero() {
		m.Expires = e.Expires.Unix()
	}
	s.mu.Lock()
	if len(s.pending) >= maxSpooled {
		s.pending, s.lost = s.pending[1:], s.lost+1
	}
	s.pending = append(s.pending, m)
	s.mu.Unlock()
	s.nudge()
}

func (s *spool) first(n int) []*api.Exchange {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*api.Exchange(nil), s.pending[:min(n, len(s.pending))]...)
}

// shipped forgets what the record has.
func (s *spool) shipped(done []*api.Exchange) {
	ids := make(map[string]bool, len(done))
	for _, e := range done {
		ids[e.GetId()] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var left []*api.Exchange
	for _, e := range s.pending {
		if !ids[e.GetId()] {
			left = append(left, e)
		}
	}
	s.pending = left
}

// write replaces the file by what is pending.
func (s *spool) write() error {
	var text bytes.Buffer
	for _, e := range s.first(maxSpooled) {
		line, err := protojson.Marshal(e)
		if err != nil {
			return fmt.Errorf("spooling: %w", err)
		}
		text.Write(line)
		text.WriteByte('\n')
	}
	if err := renameio.WriteFile(s.path, text.Bytes(), 0o600, renameio.WithTempDir(filepath.Dir(s.path))); err != nil {
		return fmt.Errorf("spooling: %w", err)
	}
	return nil
}

// ship hands spooled reports to the broker, until ctx ends. What could not be
// shipped is on disk for the next start.
func (a *Agent) ship(ctx context.Context) error {
	wait := time.Hour
	for {
		select {
		case <-ctx.Done():
			return nil // stop saves
		case <-a.spool.wake:
		case <-time.After(wait):
		}
		wait = time.Hour
		a.save(ctx)
		if n := a.spool.dropped(); n > 0 {
			a.cfg.Log.WarnContext(ctx, "oldest reports dropped: the broker has been away for long", "reports", n)
		}
		if err := a.shipPending(ctx); err != nil && ctx.Err() == nil {
			a.cfg.Log.WarnContext(ctx, "reports not shipped", "error", err)
			wait = maxPause/2 + mathrand.N(maxPause)
		}
	}
}

// dropped returns how many were lost since it was last called.
func (s *spool) dropped() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.lost
	s.lost = 0
	return n
}

func (a *Agent) save(ctx context.Context) {
	if err := a.spool.write(); err != nil {
		a.cfg.Log.WarnContext(ctx, "reports not spooled", "error", err)
	}
}

func (a *Agent) shipPending(ctx context.Context) error {
	for {
		reports := a.spool.first(shipAtOnce)
		if len(reports) == 0 {
			return nil
		}
		callCtx, cancel := context.WithTimeout(ctx, callTime)
		_, err := api.NewNodeClient(a.link.Load().conn).Report(callCtx, &api.ReportRequest{Exchanges: reports})
		cancel()
		// What the broker refuses as malformed it would refuse for ever.
		if err != nil && status.Code(err) != codes.InvalidArgument {
			return err
		}
		a.spool.shipped(reports)
		a.save(ctx)
	}
}
