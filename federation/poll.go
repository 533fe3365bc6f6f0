package federation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
)

// errChanged: the Peer's text changed under a fetch, whose outcome is void.
var errChanged = errors.New("the Peer changed meanwhile")

// poll fetches at once and then at each interval, also after a failure: never
// more than one request an interval, but for those asked for (SPIFFE Federation
// §6.2).
func (r *Refresher) poll(ctx context.Context, p *poller) {
	for ctx.Err() == nil && !p.removed() {
		err := r.fetch(ctx, p)
		if errors.Is(err, errChanged) {
			continue // from the new text, or not at all
		}
		r.enforce(p)
		wait := r.jitter(p.interval())
		p.note(err, r.now().Add(wait))
		p.answer(err)
		r.rest(ctx, p, wait)
	}
	p.answer(ctx.Err())
}

// rest waits for the next poll, or until somebody asks for one, and closes the
// domain if its time comes meanwhile.
func (r *Refresher) rest(ctx context.Context, p *poller, wait time.Duration) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	var closing <-chan time.Time
	if at := p.closesAt(); !at.IsZero() {
		deadline := time.NewTimer(max(at.Sub(r.now()), 0))
		defer deadline.Stop()
		closing = deadline.C
	}
	for {
		select {
		case <-closing:
			closing = nil
			r.enforce(p)
			continue
		case <-timer.C:
		case <-p.ask:
		case <-p.gone:
		case <-ctx.Done():
		}
		return
	}
}

// fetch asks the endpoint once and believes its answer or not. Every fetch is
// logged (SPIFFE Federation §7.6).
func (r *Refresher) fetch(ctx context.Context, p *poller) error {
	start := r.now()
	j := p.begin(start)
	resp, err := r.ask(ctx, j)
	result := "failed"
	if err == nil {
		result, err = r.take(ctx, p, j, resp)
	}
	if err != nil {
		err = fmt.Errorf("fetching the bundle of %s: %w", p.trustDomain, err)
	}
	r.report(ctx, p, j, resp, result, err)
	return err
}

func (r *Refresher) ask(ctx context.Context, j job) (Response, error) {
	req := Request{URL: j.peer.URL, HTTPSWeb: j.peer.HTTPSWeb, AllowPrivate: j.peer.AllowPrivate}
	if j.held != nil {
		req.IfNoneMatch = j.etag
	}
	if j.peer.HTTPSSPIFFE != nil {
		auth, err := r.authentication(j)
		if err != nil {
			return Response{}, err
		}
		req.HTTPSSPIFFE = auth
	}
	return r.fetcher.Fetch(ctx, req)
}

// authentication says by what an https_spiffe endpoint is verified: where it
// serves its own trust domain by the bootstrap the first time and by the latest
// bundle ever after, else by the bundle of the endpoint's trust domain (SPIFFE
// Federation §5.2.2.4).
func (r *Refresher) authentication(j job) (*Authentication, error) {
	h := j.peer.HTTPSSPIFFE
	auth := &Authentication{EndpointID: h.EndpointID}
	switch td := h.EndpointID.TrustDomain(); {
	case td == j.peer.TrustDomain && !j.bootstrap:
		auth.Bundle = j.held.bundle.X509Bundle()
	case td == j.peer.TrustDomain && h.Fingerprint != "":
		auth.Fingerprint = h.Fingerprint
	case td == j.peer.TrustDomain:
		b, err := ParseAny(td, h.Bundle)
		if err != nil {
			return nil, err
		}
		auth.Bundle = b.X509Bundle()
	case td == r.own:
		auth.Bundle = r.ownBundle()
	default:
		if b, ok := r.set.Get(td); ok {
			auth.Bundle = b.X509Bundle()
		}
	}
	switch {
	case auth.Fingerprint != "":
	case auth.Bundle == nil:
		return nil, fmt.Errorf("no bundle of %s to verify the endpoint by: apply a Peer for it", h.EndpointID.TrustDomain())
	case auth.Bundle.Empty():
		return nil, fmt.Errorf("the bundle of %s holds no X.509 authority to verify the endpoint by: "+
			"apply the Peer with a new bootstrap", h.EndpointID.TrustDomain())
	}
	return auth, nil
}

func (r *Refresher) ownBundle() *x509bundle.Bundle {
	if r.ownKeys == nil {
		return nil
	}
	return r.ownKeys()
}

// take believes an authenticated answer: durable first, then for all to see.
func (r *Refresher) take(ctx context.Context, p *poller, j job, resp Response) (result string, err error) {
	r.writing.Lock()
	defer r.writing.Unlock()
	if now, ok := r.poller(p.trustDomain); !ok || now != p || p.changedSince(j) {
		return "void", errChanged
	}
	now := r.now()
	if resp.NotModified {
		if j.held == nil || j.etag == "" {
			return "refused", errors.New("endpoint says that nothing changed, but we have nothing")
		}
		return "unchanged", r.confirm(ctx, p, j, j.etag, now)
	}
	if j.held != nil && bytes.Equal(j.held.Document, resp.Document) {
		return "unchanged", r.confirm(ctx, p, j, resp.ETag, now)
	}
	b, err := ParseBundle(p.trustDomain, resp.Document)
	if err != nil {
		return "refused", err
	}
	if j.held != nil {
		if j.held.bundle.Equal(b.Bundle) {
			return "unchanged", r.confirm(ctx, p, j, resp.ETag, now)
		}
		if err := checkOrder(j.held.bundle, b); err != nil {
			return "refused", err
		}
		if mustHold(j, b) {
			return "held", r.hold(ctx, p, j, b)
		}
	}
	sequence, _ := b.SequenceNumber()
	next := &held{bundle: b, Stored: Stored{
		TrustDomain: p.trustDomain, Sequence: sequence, Document: b.document, FetchedAt: now, ConfirmedAt: now,
	}}
	if err := r.store.SaveBundle(ctx, next.Stored); err != nil {
		return "not stored", err
	}
	p.believe(next, resp.ETag)
	r.set.Put(b)
	r.alarm(j, b)
	return "updated", nil
}

// confirm notes that the bundle we hold is still the endpoint's.
func (r *Refresher) confirm(ctx context.Context, p *poller, j job, etag string, now time.Time) error {
	same := *j.held
	same.ConfirmedAt = now
	same.Held, same.HeldAt, same.waiting = nil, time.Time{}, nil // the endpoint took it back
	if err := r.store.SaveBundle(ctx, same.Stored); err != nil {
		return err
	}
	p.believe(&same, etag)
	return nil
}

// checkOrder refuses an older bundle, such as a cache may serve (SPIFFE
// Federation §4.2). Without a number on both sides the last fetched is the newest.
func checkOrder(old, b *Bundle) error {
	before, had := old.SequenceNumber()
	now, has := b.SequenceNumber()
	if had && has && now < before {
		return fmt.Errorf("sequence %d is older than %d, which we have: if the peer starts anew, remove and apply its Peer", now, before)
	}
	return nil
}

// report writes the one line of a fetch. What stays stale is shouted.
func (r *Refresher) report(ctx context.Context, p *poller, j job, resp Response, result string, err error) {
	status := r.status(p)
	attrs := []slog.Attr{
		slog.String("trust_domain", p.trustDomain.Name()),
		slog.String("url", RedactURL(j.peer.URL)),
		slog.String("result", result),
		slog.Uint64("sequence", status.Sequence),
	}
	if !resp.PeerID.IsZero() {
		attrs = append(attrs, slog.String("spiffe_id", resp.PeerID.String()))
	}
	level := slog.LevelInfo
	if err != nil {
		level = slog.LevelWarn
		attrs = append(attrs, slog.Any("error", err))
	}
	if err != nil && status.Stale {
		level = slog.LevelError
		attrs = append(attrs, slog.Time("confirmed_at", status.ConfirmedAt))
	}
	r.log.LogAttrs(ctx, level, "bundle fetch", attrs...)
}
