package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/store"
)

// Bounds of what one call reads of the record.
const (
	maxTail  = 100_000 // records that one tail looks back
	maxFound = 10_000  // that one query finds
	maxKept  = 1_000   // that are held until they can be sent the oldest first

	maxSearches = 4 // at once; others wait
	searchTime  = 2 * time.Minute
)

// search finds records when its turn has come.
func (a adminService) search(ctx context.Context, q audit.Query, found func(audit.Record) error) error {
	ctx, cancel := context.WithTimeout(ctx, searchTime)
	defer cancel()
	select {
	case a.s.searches <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("waiting for other searches of the record: %w", context.Cause(ctx))
	}
	defer func() { <-a.s.searches }()
	for record, err := range a.s.cfg.Audit.Search(ctx, q) {
		if err == nil {
			err = found(record)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// untilClosing is a stream's context that ends with the server too.
func (a adminService) untilClosing(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	go func() { // ends with the call
		select {
		case <-a.s.closing:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// sendRecords sends each record as it stands in its file.
func sendRecords(stream grpc.ServerStreamingServer[api.AuditRecord]) func(audit.Record) error {
	return func(record audit.Record) error {
		text, err := record.Line()
		if err != nil {
			return err
		}
		return stream.Send(&api.AuditRecord{Json: text})
	}
}

// TailAudit sends the last records and, if asked, follows.
func (a adminService) TailAudit(r *api.TailAuditRequest, stream grpc.ServerStreamingServer[api.AuditRecord]) error {
	ctx, cancel := a.untilClosing(stream.Context())
	defer cancel()
	send := sendRecords(stream)
	if r.GetFilter() != nil {
		return a.fail(ctx, a.tailSome(ctx, r, send))
	}
	last, own := int(min(r.GetLast(), maxTail)), ownRecord(ctx)
	if own+uint64(last) > a.s.cfg.Audit.Head().Sequence && own > 0 && last > 0 {
		last++ // what it tells is not that it is read
		all := send
		send = func(record audit.Record) error {
			if record.Sequence == own {
				return nil
			}
			return all(record)
		}
	}
	if r.GetFollow() {
		return a.fail(ctx, a.s.cfg.Audit.Follow(ctx, last, send))
	}
	for record, err := range audit.Tail(ctx, a.s.cfg.AuditDir, last) {
		if err == nil {
			err = send(record)
		}
		if err != nil {
			return a.fail(ctx, err)
		}
	}
	return nil
}

// tailSome sends the last records that a filter lets through, and follows.
func (a adminService) tailSome(ctx context.Context, r *api.TailAuditRequest, send func(audit.Record) error) error {
	q, err := a.query(r.GetFilter())
	if err != nil {
		return err
	}
	head := a.s.cfg.Audit.Head()
	if n := min(r.GetLast(), maxKept); n > 0 {
		past := q
		past.Below, past.Limit = head.Sequence+1, int(n)
		var found []audit.Record
		if err := a.search(ctx, past, func(record audit.Record) error { found = append(found, record); return nil }); err != nil {
			return err
		}
		for _, record := range slices.Backward(found) {
			if err := send(record); err != nil {
				return err
			}
		}
	}
	if !r.GetFollow() {
		return nil
	}
	return a.s.cfg.Audit.FollowAfter(ctx, head, func(record audit.Record) error {
		if !q.Matches(record) {
			return nil
		}
		return send(record)
	})
}

// query reads a filter.
func (a adminService) query(f *api.AuditFilter) (audit.Query, error) {
	q := audit.Query{
		Sequence: f.GetSequence(), SPIFFEID: f.GetSpiffeId(), Identity: f.GetIdentity(), Node: f.GetNode(), Serial: f.GetSerial(),
		Kind: f.GetKind(), Target: f.GetTarget(), Actor: f.GetActor(), Since: fromUnixNano(f.GetSince()), Until: fromUnixNano(f.GetUntil()),
	}
	switch ok := f.GetOutcome() == "ok"; f.GetOutcome() {
	case "":
	case "ok", "denied":
		q.OK = &ok
	default:
		return q, fmt.Errorf("%w: outcome %.32q: ok or denied is wanted", broker.ErrRequest, f.GetOutcome())
	}
	if q.Node != "" {
		if n, err := a.findNode(q.Node); err == nil {
			q.Node = n.ID // by its name; one that is gone stays as it was typed
		}
	}
	return q, nil
}

func fromUnixNano(nanos int64) time.Time {
	if nanos == 0 {
		return time.Time{}
	}
	return time.Unix(0, nanos)
}

// QueryAudit sends the records that are wanted, the newest first.
func (a adminService) QueryAudit(r *api.QueryAuditRequest, stream grpc.ServerStreamingServer[api.AuditRecord]) error {
	ctx, cancel := a.untilClosing(stream.Context())
	defer cancel()
	q, err := a.query(r.GetFilter())
	if err == nil {
		err = a.s.isOurs(ctx, r.GetOrigin(), max(q.Sequence, r.GetBelow()))
	}
	if err != nil {
		return a.fail(ctx, err)
	}
	q.Below, q.NoIndex, q.Limit = r.GetBelow(), r.GetNoIndex(), int(min(r.GetLimit(), maxFound))
	if q.Limit == 0 {
		q.Limit = 100
	}
	origin := a.s.cfg.Broker.Origin()
	return a.fail(ctx, a.search(ctx, q, func(record audit.Record) error {
		text, err := record.Line()
		if err != nil {
			return err
		}
		return stream.Send(&api.AuditRecord{Json: text, Origin: origin})
	}))
}

// isOurs refuses to look in this broker's record for what is in another's, and
// says where to look.
func (s *Server) isOurs(ctx context.Context, origin string, sequence uint64) error {
	ours := s.cfg.Broker.Origin()
	if origin == "" || origin == ours {
		return nil
	}
	id := audit.Ref{Sequence: sequence}.ID()
	text := fmt.Sprintf("record %s is in the record of broker %.63q, and this is %q", id, origin, ours)
	known, err := s.brokers(ctx)
	seen, there := known[origin]
	names := slices.Sorted(maps.Keys(known))
	switch {
	case err != nil:
		text += fmt.Sprintf(": ask there: credence audit query %s@%s (the brokers are not known: %v)", id, origin, err)
	case there && s.cfg.Now().Sub(seen) > store.GoneAfter:
		text += fmt.Sprintf(", which was last seen at %s: on its machine, credence audit query %s --data DIR reads its files", stamp(seen), id)
	case there:
		text += fmt.Sprintf(": ask there: credence audit query %s@%s, on its machine or with --broker HOST:PORT", id, origin)
	case len(names) > 0:
		text += fmt.Sprintf("; no broker of that name shares this database, but %s: where its files are, credence audit query %s --data DIR", strings.Join(names, ", "), id)
	default:
		text += fmt.Sprintf(", which shares its database with none: where the files of %s are, credence audit query %s --data DIR", origin, id)
	}
	return fmt.Errorf("%w: %s", broker.ErrRequest, text)
}

// brokers are those that ever shared the store, and when each was last seen.
func (s *Server) brokers(ctx context.Context) (map[string]time.Time, error) {
	if s.cfg.Replica == nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, statusTime)
	defer cancel()
	all, err := s.cfg.Store.Replicas(ctx, ever)
	known := make(map[string]time.Time, len(all))
	for _, r := range all {
		known[r.Name] = r.SeenAt
	}
	return known, err
}

// ever is how long ago a broker may have been there.
const ever = 20 * 365 * 24 * time.Hour

// ExportAudit sends every record after a place, in order, as they stand, so that
// who receives them can follow their chain. It waits for a slow receiver, and
// nobody waits for it.
func (a adminService) ExportAudit(r *api.ExportAuditRequest, stream grpc.ServerStreamingServer[api.AuditRecord]) error {
	ctx, cancel := a.untilClosing(stream.Context())
	defer cancel()
	after, err := a.exportFrom(r)
	if err != nil {
		return a.fail(ctx, err)
	}
	head, send := a.s.cfg.Audit.Head(), sendRecords(stream)
	if !r.GetFollow() && after.Sequence == head.Sequence && (after == head || after.Hash == [32]byte{}) {
		return nil
	}
	done := errors.New("all is sent")
	err = a.s.cfg.Audit.FollowAfter(ctx, after, func(record audit.Record) error {
		if err := send(record); err != nil {
			return err
		}
		if !r.GetFollow() && record.Sequence >= head.Sequence {
			return done
		}
		return nil
	})
	if errors.Is(err, done) {
		return nil
	}
	return a.fail(ctx, err)
}

func (a adminService) exportFrom(r *api.ExportAuditRequest) (after audit.Ref, err error) {
	if r.GetSequence() == 0 {
		return a.s.cfg.Audit.Oldest()
	}
	after.Sequence = r.GetSequence()
	if copy(after.Hash[:], r.GetHash()) != len(after.Hash) || len(r.GetHash()) != len(after.Hash) {
		return after, fmt.Errorf("%w: a record's hash has %d bytes, not %d", broker.ErrRequest, len(after.Hash), len(r.GetHash()))
	}
	return after, nil
}

// TruncateAudit removes whole files of records that are older than a time, but
// for what somebody still has to read.
func (a adminService) TruncateAudit(ctx context.Context, r *api.TruncateAuditRequest) (*api.TruncateAuditResponse, error) {
	before := fromUnixNano(r.GetBefore())
	switch {
	case before.IsZero() || before.After(a.s.cfg.Now()):
		return nil, a.fail(ctx, fmt.Errorf("%w: a time that is over is wanted", broker.ErrRequest))
	case len(r.GetReason()) > 1024:
		return nil, a.fail(ctx, fmt.Errorf("%w: a reason of %d bytes: 1024 are taken", broker.ErrRequest, len(r.GetReason())))
	case a.s.cfg.AuditHolds == nil:
		return nil, a.fail(ctx, errors.New("truncating the audit record: who reads it is not known"))
	}
	holds, err := a.s.cfg.AuditHolds(ctx)
	if err != nil {
		return nil, a.fail(ctx, err)
	}
	done, err := a.s.cfg.Audit.Truncate(ctx, audit.TruncateConfig{Before: before, Holds: holds, Actor: a.s.actor(ctx), Reason: r.GetReason()})
	if err != nil {
		return nil, a.fail(ctx, err)
	}
	response := &api.TruncateAuditResponse{Files: uint32(done.Files), Records: done.Records, Last: done.Last.Sequence}
	if done.Held != nil {
		response.HeldBy, response.HeldAt = done.Held.Name, done.Held.Sequence
	}
	return response, nil
}
