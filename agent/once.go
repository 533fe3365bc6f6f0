package agent

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/broker/api"
)

// onceSkew is how much longer than it was asked for an SVID may seem to live by
// this machine's clock.
const onceSkew = time.Minute

// X509Once returns X509-SVIDs of a caller, attested afresh, that live as long as
// is asked for, and the bundles that go with them. The broker makes them for
// this call, with keys made here; none is kept, served again or lent. The error
// is ErrDenied where the broker gives none of such a life.
func (a *Agent) X509Once(ctx context.Context, p *caller.Process, ttl time.Duration) (Update, error) {
	t, err := a.attestOnce(ctx, p)
	if err != nil {
		return Update{}, err
	}
	u, err := a.x509Once(ctx, t.workload(), ttl)
	if err == nil {
		err = a.stillOnce(p)
	}
	if err != nil {
		return Update{}, blame(err, t.Failed)
	}
	return u, nil
}

func (a *Agent) x509Once(ctx context.Context, w *api.Workload, ttl time.Duration) (Update, error) {
	q := question{set: &set{workload: w}}
	item := &api.IssueX509Request_Item{Workload: w, Ttl: int64(ttl / time.Second)}
	for range mostKeys {
		key, der, err := newKey()
		if err != nil {
			return Update{}, err
		}
		q.keys, item.PublicKeys = append(q.keys, key), append(item.PublicKeys, der)
	}
	response, err := a.issueX509(ctx, &api.IssueX509Request{Items: []*api.IssueX509Request_Item{item}})
	if status.Code(err) == codes.InvalidArgument {
		return Update{}, &Denied{Reason: "the broker refuses what is asked for: " + status.Convert(err).Message(), Code: RequestRefused}
	}
	if err != nil {
		return Update{}, a.unavailable(err)
	}
	r := response.GetResults()[0]
	if d := r.GetDenial(); d != nil {
		return Update{}, deniedOnce(w, d, ttl)
	}
	if r.GetKeysNeeded() > 0 {
		return Update{}, &Denied{Reason: fmt.Sprintf("this process has more than %d identities, which is too many for one call", mostKeys), Code: RequestRefused}
	}
	svids, err := a.svids(q, r.GetSvids())
	if err != nil || len(svids) == 0 {
		return Update{}, fmt.Errorf("the broker's answer is not used: %w", errors.Join(err, ErrUnavailable))
	}
	for _, v := range svids {
		if err := a.asShort(v.ID, v.Certificates[0].NotAfter, ttl); err != nil {
			return Update{}, err
		}
	}
	u, ok := a.update(svids, a.cfg.Now())
	if !ok {
		return Update{}, &Unavailable{AgentUnavailable, "it knows no bundle of its trust domain", nil}
	}
	return u, nil
}

// JWTOnce is JWT with a life that is asked for. The broker makes the tokens for
// this call; none is kept.
func (a *Agent) JWTOnce(ctx context.Context, p *caller.Process, audiences []string, id spiffeid.ID, ttl time.Duration) ([]JWTSVID, error) {
	t, err := a.attestOnce(ctx, p)
	if err != nil {
		return nil, err
	}
	request := &api.IssueJWTRequest{Workload: t.workload(), Audiences: audiences, Ttl: int64(ttl / time.Second)}
	if !id.IsZero() {
		request.SpiffeId = id.String()
	}
	svids, err := a.jwtOnce(ctx, request, ttl)
	if err == nil {
		err = a.stillOnce(p)
	}
	if err != nil {
		return nil, blame(err, t.Failed)
	}
	return svids, nil
}

func (a *Agent) jwtOnce(ctx context.Context, request *api.IssueJWTRequest, ttl time.Duration) ([]JWTSVID, error) {
	got, err := a.issueJWT(ctx, request, nil) // which the broker records, audited or not
	if err != nil {
		return nil, err
	}
	svids := got.told()
	for _, v := range svids {
		if err := a.asShort(v.ID, v.Expires, ttl); err != nil {
			return nil, err
		}
	}
	return svids, nil
}

// attestOnce attests a caller once this node has joined: what is asked of the
// broker alone needs it.
func (a *Agent) attestOnce(ctx context.Context, p *caller.Process) (Attestation, error) {
	late := time.NewTimer(a.cfg.Patience)
	defer late.Stop()
	select {
	case <-a.ready:
	case <-a.ended:
	case <-ctx.Done():
		return Attestation{}, ctx.Err()
	case <-late.C:
		return Attestation{}, a.unavailable(nil)
	}
	if err := a.sets.ended(); err != nil {
		return Attestation{}, err
	}
	return a.Attest(ctx, p)
}

// stillOnce looks again before anything is handed out: the broker's answer took
// a while.
func (a *Agent) stillOnce(p *caller.Process) error {
	if err := a.sets.ended(); err != nil {
		return err
	}
	if p.Check() != nil {
		a.reports.refused(nil, notTheSame, "")
		return errChanged()
	}
	return nil
}

// asShort refuses what lives longer than was asked for: whoever asked reckons
// with that.
func (a *Agent) asShort(id spiffeid.ID, ends time.Time, ttl time.Duration) error {
	if left := ends.Sub(a.cfg.Now()); left > ttl+onceSkew {
		return &Unavailable{BrokerFailed, fmt.Sprintf("the broker's SVID of %s lives %s, and %s was asked for", id, left.Round(time.Second), ttl), nil}
	}
	return nil
}

// deniedOnce is a denial of X509-SVIDs of such a life.
func deniedOnce(w *api.Workload, d *api.Denial, ttl time.Duration) *Denied {
	if denied := lifeDenied(d, ttl); denied != nil {
		return denied
	}
	return &Denied{Record: d.GetRecord(), Reason: "no identity is granted to " + bearer(w)}
}

// lifeDenied names the bound that a life breaks; nil: that is not why.
func lifeDenied(d *api.Denial, ttl time.Duration) *Denied {
	seconds := func(n int64) string { return (time.Duration(n) * time.Second).String() }
	asked := "a life of " + ttl.String() + " is asked for, and "
	switch {
	case d.GetMostTtl() > 0:
		return &Denied{
			Record: d.GetRecord(), Code: LifeRefused, Reason: asked + "the identity gives at most " + seconds(d.GetMostTtl()),
			Meta: map[string]string{"most": strconv.FormatInt(d.GetMostTtl(), 10)},
		}
	case d.GetLeastTtl() > 0:
		return &Denied{
			Record: d.GetRecord(), Code: LifeRefused, Reason: asked + "the broker gives none under " + seconds(d.GetLeastTtl()),
			Meta: map[string]string{"least": strconv.FormatInt(d.GetLeastTtl(), 10)},
		}
	}
	return nil
}
