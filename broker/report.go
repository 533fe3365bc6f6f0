package broker

import (
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"hash/maphash"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/credence-id/credence/broker/audit"
)

// The kinds of record that tell what a node reported: its word, not ours.
const (
	RecordExchange = "exchange"   // of an SVID for a credential, good or bad
	RecordRefusal  = "refusal"    // of a caller, made on the node
	RecordHandOut  = "handout"    // of an audited JWT-SVID to one caller
	RecordGap      = "report.gap" // reports that the node has lost
)

// ReportDetail is the detail that names a report in its record.
const ReportDetail = "report"

// A Mark is how far a node's reports stand in the record.
type Mark struct {
	Node   string // SPIFFE ID
	Spool  string // of the node, whose numbers these are
	Number uint64 // all up to this one are in the record
}

// Marks are a projection of the audit records, as the index is.
type Marks interface {
	// Mark returns how far a node's reports stand in the record; zero: none do.
	Mark(ctx context.Context, node string) (Mark, error)
	// SaveMarks moves marks on, never back but for another spool.
	SaveMarks(ctx context.Context, marks []Mark) error
}

// A Report is one event on a node, numbered by its spool.
type Report struct {
	Number uint64
	Event  audit.Event
}

// ReportID names a report: by its node's spool, and its number there.
func ReportID(spool string, number uint64) string { return fmt.Sprintf("%s-%d", spool, number) }

// ParseReportID reads what ReportID wrote. The error wraps ErrRequest.
func ParseReportID(id string) (spool string, number uint64, err error) {
	spool, digits, _ := strings.Cut(id, "-")
	number, err = strconv.ParseUint(digits, 10, 63)
	raw, notHex := hex.DecodeString(spool)
	if err != nil || notHex != nil || len(raw) != 8 || number == 0 || ReportID(strings.ToLower(spool), number) != id {
		return "", 0, requestError("report %.64q: SPOOL-NUMBER is wanted, a spool of 16 hex digits", id)
	}
	return spool, number, nil
}

// reporters remember what this process has recorded of each node, ahead of the
// index.
type reporters struct {
	seed   maphash.Seed
	shards [64]reporterShard
	before uint64 // records of an earlier process: they must be in the index
}

type reporterShard struct {
	turn chan struct{} // of capacity 1: held while a node's reports are recorded

	mu    sync.Mutex // guards marks
	marks map[string]Mark
}

func newReporters(before uint64) *reporters {
	r := &reporters{seed: maphash.MakeSeed(), before: before}
	for i := range r.shards {
		r.shards[i].turn, r.shards[i].marks = make(chan struct{}, 1), make(map[string]Mark)
	}
	return r
}

func (r *reporters) shard(node string) *reporterShard {
	return &r.shards[maphash.String(r.seed, node)%uint64(len(r.shards))]
}

func (s *reporterShard) recorded(node string) Mark {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.marks[node]
}

func (s *reporterShard) keep(m Mark) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.marks[m.Node] = m
}

// Report records what a node reports, each once: a node that had no answer
// sends the same again. It returns how many were new. On an error none is.
func (b *Broker) Report(ctx context.Context, node Node, spool string, reports []Report) (int, error) {
	shard := b.reporters.shard(node.ID)
	select {
	case shard.turn <- struct{}{}:
		defer func() { <-shard.turn }()
	case <-ctx.Done():
		return 0, fmt.Errorf("waiting for earlier reports of %s: %w", node.ID, ctx.Err())
	}
	done, err := b.mark(ctx, shard, node.ID, spool)
	if err != nil {
		return 0, err
	}
	var events []audit.Event
	slices.SortStableFunc(reports, func(x, y Report) int { return cmp.Compare(x.Number, y.Number) })
	for _, r := range reports {
		if r.Number > done {
			r.Event.Spare = true // the node keeps it until it is here
			events, done = append(events, r.Event), r.Number
		}
	}
	if len(events) == 0 {
		return 0, nil
	}
	// That the node gives up does not end it: whether it was recorded must be
	// known before the node comes again.
	if _, err := b.cfg.Audit.Append(context.WithoutCancel(ctx), events...); err != nil {
		return 0, fmt.Errorf("recording reports of %s: %w", node.ID, err)
	}
	shard.keep(Mark{node.ID, spool, done})
	return len(events), nil
}

// mark returns how far this spool's reports stand in the record.
func (b *Broker) mark(ctx context.Context, shard *reporterShard, node, spool string) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, briefly)
	defer cancel()
	if !b.indexer.wait(ctx, b.reporters.before) {
		return 0, fmt.Errorf("%w: what was reported before is not known yet", audit.ErrUnavailable)
	}
	stored, err := b.cfg.Index.Mark(ctx, node)
	if err != nil {
		return 0, fmt.Errorf("%w: reading what %s has reported: %w", audit.ErrUnavailable, node, err)
	}
	done := uint64(0)
	for _, m := range []Mark{stored, shard.recorded(node)} {
		if m.Spool == spool {
			done = max(done, m.Number)
		}
	}
	return done, nil
}

// marks gathers what records say about reports, the last of each node.
type marks map[string]Mark

func (m marks) take(r audit.Record) bool {
	switch r.Kind {
	case RecordExchange, RecordRefusal, RecordHandOut, RecordGap:
	default:
		return false
	}
	spool, number, err := ParseReportID(r.Detail[ReportDetail])
	if err != nil || r.Node == "" {
		return false
	}
	if have := m[r.Node]; have.Spool != spool || have.Number < number {
		m[r.Node] = Mark{r.Node, spool, number}
	}
	return true
}

func (m marks) all() []Mark {
	var all []Mark
	for _, mark := range m {
		all = append(all, mark)
	}
	slices.SortFunc(all, func(x, y Mark) int { return cmp.Compare(x.Node, y.Node) })
	return all
}
