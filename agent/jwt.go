package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/federation"
)

// JWT returns JWT-SVIDs of a caller, attested afresh, for audiences: of one
// identity, or with a zero id of all that may have them. The error is
// ErrDenied where none may. While the broker is away, those that are held are
// served until they end.
func (a *Agent) JWT(ctx context.Context, p *caller.Process, audiences []string, id spiffeid.ID) ([]JWTSVID, error) {
	st, _, err := a.granted(ctx, p)
	if err != nil {
		return nil, err
	}
	defer func() { a.sets.release(st, a.cfg.Now()) }()
	got, err := a.jwt(ctx, st, audiences, id)
	if err == nil && p.Check() != nil {
		a.reports.refused(st, notTheSame, "")
		return nil, errChanged()
	}
	return got.told(), err
}

// jwt is JWT of a set that is held.
func (a *Agent) jwt(ctx context.Context, st *set, audiences []string, id spiffeid.ID) (tokenEntry, error) {
	return a.token(ctx, st, tokenKey{set: st.id, audiences: joined(audiences...), id: id}, askFor(a.asks(ctx, st), audiences, id))
}

func askFor(w *api.Workload, audiences []string, id spiffeid.ID) *api.IssueJWTRequest {
	request := &api.IssueJWTRequest{Workload: w, Audiences: audiences, Audits: true}
	if !id.IsZero() {
		request.SpiffeId = id.String()
	}
	return request
}

// TargetToken returns the JWT-SVID of a caller, attested afresh, for a target,
// for an SDK that makes the exchange by itself; toFile makes it live longer. It
// is kept as those of JWT are. The broker's record has it: nothing of it is an
// exchange to report. The error is ErrDenied where no identity of the caller
// lists the target, or the target takes the X509-SVID.
func (a *Agent) TargetToken(ctx context.Context, p *caller.Process, target string, toFile bool) (JWTSVID, Target, error) {
	st, u, err := a.granted(ctx, p)
	if err != nil {
		return JWTSVID{}, Target{}, err
	}
	defer func() { a.sets.release(st, a.cfg.Now()) }()
	token, t, err := a.targetToken(ctx, st, u, target, toFile)
	if err == nil && p.Check() != nil {
		a.reports.refused(st, notTheSame, target)
		return JWTSVID{}, Target{}, errChanged()
	}
	return token, t, err
}

// targetToken is TargetToken on what a set holds.
func (a *Agent) targetToken(ctx context.Context, st *set, u Update, target string, toFile bool) (JWTSVID, Target, error) {
	v, t, err := a.listed(st, u, target)
	if err != nil {
		return JWTSVID{}, Target{}, err
	}
	got, err := a.token(ctx, st, tokenKey{set: st.id, id: v.ID, target: t.Name, revision: t.Revision, toFile: toFile},
		&api.IssueJWTRequest{Workload: a.asks(ctx, st), Target: t.Name, SpiffeId: v.ID.String(), ToFile: toFile})
	if err != nil {
		return JWTSVID{}, Target{}, err
	}
	svids := got.told()
	if len(svids) != 1 || svids[0].ID != v.ID {
		return JWTSVID{}, Target{}, fmt.Errorf("the broker answered with %d JWT-SVIDs for %s, want one of %s", len(svids), target, v.ID)
	}
	return svids[0], t, nil
}

// token serves what is held under k, or asks the broker. What is audited is
// reported before it is returned.
func (a *Agent) token(ctx context.Context, st *set, k tokenKey, request *api.IssueJWTRequest) (tokenEntry, error) {
	svids := a.sets.held(st)
	known := usesOf(svids, request.GetAudiences(), k.id)
	if known == useAudited {
		if err := a.reports.auditable(ctx); err != nil {
			return tokenEntry{}, err
		}
	}
	got, err := a.heldOrAsked(ctx, st, svids, k, request, known)
	if err != nil {
		return tokenEntry{}, err
	}
	if got.use == useAudited {
		if err := a.reports.handOut(ctx, st, request.GetAudiences(), got); err != nil {
			return tokenEntry{}, err
		}
	}
	return got, nil
}

// heldOrAsked is token but for the reports. A broker that does not answer is not
// waited for as long as there is something to serve.
func (a *Agent) heldOrAsked(ctx context.Context, st *set, svids []*SVID, k tokenKey, request *api.IssueJWTRequest, known string) (tokenEntry, error) {
	var held tokenEntry
	var ok, due bool
	generation := a.tokens.now()
	if known != useSingle {
		if held, ok, due = a.tokens.get(k, svids, a.cfg.Now()); ok && held.ahead && due {
			a.tokens.nudge() // it is renewed meanwhile
			return held, nil
		}
		if ok && !due {
			return held, nil
		}
		if !ok {
			held, ok = a.tokens.lend(k, st.workload, svids, a.cfg.Now())
		}
	}
	asking, cancel := ctx, func() {}
	if ok {
		asking, cancel = context.WithTimeout(ctx, hungryPause)
	}
	fresh, err := a.issueJWT(asking, request, svids)
	cancel()
	switch {
	case err == nil:
		fresh.use = strictest(fresh.use, known)
		fresh.ahead = k.id.IsZero() && len(request.GetAudiences()) == 1 && slices.Contains(listedAhead(svids), request.GetAudiences()[0])
		a.tokens.put(k, fresh, a.cfg.Now(), generation)
		return fresh, nil
	case errors.Is(err, ErrUnavailable) && ok:
		// It may have been forgotten meanwhile.
		svids = a.sets.held(st)
		if held, ok, _ = a.tokens.get(k, svids, a.cfg.Now()); ok {
			return held, nil
		}
		if held, ok = a.tokens.lend(k, st.workload, svids, a.cfg.Now()); ok {
			return held, nil
		}
	case errors.Is(err, ErrUnavailable) && known == useSingle:
		var u *Unavailable
		if errors.As(err, &u) {
			return tokenEntry{}, &Unavailable{Code: u.Code, Meta: u.Meta, Reason: fmt.Sprintf(
				"a JWT-SVID for %q is made for each call and kept nowhere (use: single_use in jwt.audiences), and %s", request.GetAudiences(), u.Reason)}
		}
	}
	return tokenEntry{}, err
}

// issueJWT asks the broker for what a set that holds these SVIDs may have, and
// reads the answer.
func (a *Agent) issueJWT(ctx context.Context, request *api.IssueJWTRequest, holds []*SVID) (tokenEntry, error) {
	l := a.link.Load()
	if l == nil { // the node has not joined
		return tokenEntry{}, a.unavailable(nil)
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	response, err := api.NewNodeClient(l.conn).IssueJWT(ctx, request)
	if err != nil {
		s := status.Convert(err)
		if s.Code() == codes.InvalidArgument {
			return tokenEntry{}, &Denied{Reason: "the broker refuses what is asked for: " + s.Message(), Code: RequestRefused}
		}
		return tokenEntry{}, a.unavailable(err)
	}
	if d := response.GetDenial(); d != nil {
		return tokenEntry{}, notListed(request, d)
	}
	if len(response.GetSvids()) == 0 {
		return tokenEntry{}, fmt.Errorf("%w: the broker answered with nothing", ErrUnavailable)
	}
	got := tokenEntry{audiences: request.GetAudiences(), obtained: a.cfg.Now()}
	for _, m := range response.GetSvids() {
		v, err := a.readJWT(m)
		if err != nil {
			return tokenEntry{}, err
		}
		if i := slices.IndexFunc(holds, v.isOf); i >= 0 {
			v.digest = holds[i].digest
		}
		got.svids = append(got.svids, v)
		got.use = strictest(got.use, m.GetUse())
		if m.GetSingleUse() {
			got.use = useSingle
		}
	}
	got.lives()
	return got, nil
}

func (a *Agent) readJWT(m *api.JWTSVID) (heldJWT, error) {
	id, err := federation.ParseID(m.GetSpiffeId())
	if err != nil || id.TrustDomain() != a.cfg.TrustDomain || m.GetToken() == "" {
		return heldJWT{}, fmt.Errorf("the broker answered with a JWT-SVID of %q and %d bytes", m.GetSpiffeId(), len(m.GetToken()))
	}
	return heldJWT{
		JWTSVID:  JWTSVID{id, m.GetHint(), m.GetToken(), time.Unix(m.GetExpires(), 0)},
		identity: m.GetIdentity(), depends: m.GetDepends(),
	}, nil
}

// notListed names the field of an Identity that would have to grant a token.
func notListed(r *api.IssueJWTRequest, d *api.Denial) *Denied {
	if denied := lifeDenied(d, time.Duration(r.GetTtl())*time.Second); denied != nil {
		return denied
	}
	who := bearer(r.GetWorkload())
	denied := &Denied{Record: d.GetRecord(), Code: strings.ToUpper(d.GetCode())}
	switch denied.Code {
	case AudienceNotListed:
		denied.Reason = "no identity of " + who + " lists the audience in jwt.audiences"
	case TargetNotListed:
		denied.Reason = "no identity of " + who + " lists the target in targets"
	case TargetTakesX509:
		denied.Reason = "the target takes the X509-SVID of " + who + ", and has no token"
	case SPIFFEIDNotGranted:
		denied.Reason = "the SPIFFE ID asked for is not granted to " + who
	case NoIssuer:
		denied.Reason = "the broker has no issuer, so it makes no JWT-SVID"
	case RequestRefused:
		denied.Reason = "the broker takes no such request"
	default:
		denied.Code, denied.Reason = NoIdentity, "no identity is granted to "+who
	}
	return denied
}
