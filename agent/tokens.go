package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/federation"
)

// maxTokens bounds the cache of JWT-SVIDs.
const maxTokens = 4096

// A JWTSVID is a token and whom it names.
type JWTSVID struct {
	ID      spiffeid.ID
	Hint    string
	Token   string
	Expires time.Time
}

type tokenKey struct {
	set       [sha256.Size]byte
	audiences string // joined
	id        spiffeid.ID

	// Of a token for a target, which has no audiences asked for.
	target   string
	revision uint64
	toFile   bool
}

type tokenEntry struct {
	svids         []JWTSVID
	renewAt, ends time.Time
}

// tokens are the JWT-SVIDs of the Workload API, each served until half of its
// life.
type tokens struct {
	mu  sync.Mutex // guards all and generation
	all map[tokenKey]tokenEntry
	// generation counts what was forgotten: an answer asked for before is not
	// kept.
	generation uint64
}

func (t *tokens) init() { t.all = make(map[tokenKey]tokenEntry) }

// forget drops the tokens of a set of facts; an empty id means all.
func (t *tokens) forget(set []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.generation++
	if len(set) == 0 {
		clear(t.all)
		return
	}
	for k := range t.all {
		if string(k.set[:]) == string(set) {
			delete(t.all, k)
		}
	}
}

// get returns what is held and still valid, and whether it is time to ask for
// newer ones.
func (t *tokens) get(k tokenKey, now time.Time) (held []JWTSVID, due bool, generation uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.all[k]
	if !ok || !now.Before(e.ends) {
		return nil, true, t.generation
	}
	return e.svids, !now.Before(e.renewAt), t.generation
}

// put keeps tokens, if nothing was forgotten since they were asked for.
func (t *tokens) put(k tokenKey, svids []JWTSVID, now time.Time, generation uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if generation != t.generation {
		return
	}
	if len(t.all) >= maxTokens {
		for old, e := range t.all {
			if !now.Before(e.renewAt) || len(t.all) >= maxTokens {
				delete(t.all, old)
			}
		}
	}
	least := svids[0].Expires
	for _, v := range svids[1:] {
		if v.Expires.Before(least) {
			least = v.Expires
		}
	}
	t.all[k] = tokenEntry{svids, now.Add(least.Sub(now) / 2), least}
}

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
	svids, err := a.jwt(ctx, st, audiences, id)
	if err == nil && p.Check() != nil {
		a.reports.refused(st, notTheSame, "")
		return nil, errChanged()
	}
	return svids, err
}

// jwt is JWT of a set that is held.
func (a *Agent) jwt(ctx context.Context, st *set, audiences []string, id spiffeid.ID) ([]JWTSVID, error) {
	request := &api.IssueJWTRequest{Workload: st.workload, Audiences: audiences}
	if !id.IsZero() {
		request.SpiffeId = id.String()
	}
	return a.token(ctx, tokenKey{set: st.id, audiences: joined(audiences...), id: id}, request)
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
	svids, err := a.token(ctx, tokenKey{set: st.id, id: v.ID, target: t.Name, revision: t.Revision, toFile: toFile},
		&api.IssueJWTRequest{Workload: st.workload, Target: t.Name, SpiffeId: v.ID.String(), ToFile: toFile})
	if err != nil {
		return JWTSVID{}, Target{}, err
	}
	if len(svids) != 1 || svids[0].ID != v.ID {
		return JWTSVID{}, Target{}, fmt.Errorf("the broker answered with %d JWT-SVIDs for %s, want one of %s", len(svids), target, v.ID)
	}
	return svids[0], t, nil
}

// token serves what is held under k, or asks the broker.
func (a *Agent) token(ctx context.Context, k tokenKey, request *api.IssueJWTRequest) ([]JWTSVID, error) {
	held, due, generation := a.tokens.get(k, a.cfg.Now())
	if !due {
		return held, nil
	}
	svids, single, err := a.issueJWT(ctx, request)
	if errors.Is(err, ErrUnavailable) && held != nil {
		// It may have been forgotten meanwhile.
		if held, _, _ = a.tokens.get(k, a.cfg.Now()); held != nil {
			return held, nil
		}
	}
	if err != nil {
		return nil, err
	}
	if !single {
		a.tokens.put(k, svids, a.cfg.Now(), generation)
	}
	return svids, nil
}

// issueJWT asks the broker, and reads the answer.
func (a *Agent) issueJWT(ctx context.Context, request *api.IssueJWTRequest) (svids []JWTSVID, single bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	response, err := api.NewNodeClient(a.link.Load().conn).IssueJWT(ctx, request)
	if err != nil {
		s := status.Convert(err)
		if s.Code() == codes.InvalidArgument {
			return nil, false, &Denied{Reason: "the broker refuses what is asked for: " + s.Message(), Code: RequestRefused}
		}
		return nil, false, a.unavailable(err)
	}
	if d := response.GetDenial(); d != nil {
		return nil, false, notListed(request, d)
	}
	if len(response.GetSvids()) == 0 {
		return nil, false, fmt.Errorf("%w: the broker answered with nothing", ErrUnavailable)
	}
	for _, m := range response.GetSvids() {
		id, err := federation.ParseID(m.GetSpiffeId())
		if err != nil || id.TrustDomain() != a.cfg.TrustDomain || m.GetToken() == "" {
			return nil, false, fmt.Errorf("the broker answered with a JWT-SVID of %q and %d bytes", m.GetSpiffeId(), len(m.GetToken()))
		}
		single = single || m.GetSingleUse()
		svids = append(svids, JWTSVID{id, m.GetHint(), m.GetToken(), time.Unix(m.GetExpires(), 0)})
	}
	return svids, single, nil
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
