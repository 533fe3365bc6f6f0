package agenttest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"maps"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/broker/api"
)

// Record is of every denial.
const Record = "r-4711"

// A Grant is one identity of a workload.
type Grant struct {
	Identity      string
	Path          string        // of the SPIFFE ID
	TTL           time.Duration // 0: an hour
	Hint          string
	FederatesWith []string
	Audiences     []string
	Uses          map[string]string // of audiences: "audited", "single_use"
	JWTTTL        time.Duration     // 0: five minutes
	Targets       []*api.Target
	Depends       []string // names of facts; empty: workload.unix.uid
	Deaf          bool     // to a life that is asked for
	Cheap         bool     // the certificate is another's but for the key: it costs nothing, and does not verify

	Spoil func(*api.X509SVID) `json:"-"` // changes the answer; nil: it is good
}

func (g Grant) digest() []byte {
	text, err := json.Marshal(g)
	must(err)
	sum := sha256.Sum256(text)
	return sum[:]
}

func (g Grant) depends(w *api.Workload) map[string]*api.Values {
	names := g.Depends
	if len(names) == 0 {
		names = []string{"workload.unix.uid"}
	}
	m := make(map[string]*api.Values)
	for _, name := range names {
		m[name] = &api.Values{Values: w.GetFacts()[name].GetValues()}
	}
	return m
}

func (b *Broker) granted(w *api.Workload) []Grant {
	b.mu.Lock()
	decide := b.decide
	b.mu.Unlock()
	return decide(w)
}

// IssueX509 answers each item by what the test decides.
func (b *Broker) IssueX509(_ context.Context, r *api.IssueX509Request) (*api.IssueX509Response, error) {
	response := &api.IssueX509Response{}
	for _, item := range r.GetItems() {
		if item.GetWorkload().GetFacts()["workload.test.malformed"] != nil {
			return nil, status.Error(codes.InvalidArgument, "a fact that no broker takes")
		}
		result, err := b.result(item)
		if err != nil {
			return nil, err
		}
		response.Results = append(response.Results, result)
	}
	return response, nil
}

func (b *Broker) result(item *api.IssueX509Request_Item) (*api.IssueX509Response_Result, error) {
	grants := b.granted(item.GetWorkload())
	result := &api.IssueX509Response_Result{}
	if len(grants) == 0 {
		result.Denial = &api.Denial{Record: Record, Code: "denied"}
	}
	if d := refusedLife(grants, item.GetTtl(), time.Hour); d != nil {
		return &api.IssueX509Response_Result{Denial: d}, nil
	}
	for n, g := range grants {
		if item.GetTtl() > 0 && !g.Deaf {
			g.TTL = time.Duration(item.GetTtl()) * time.Second
		}
		svid := &api.X509SVID{
			Identity: g.Identity, SpiffeId: spiffeid.RequireFromPath(b.TrustDomain, g.Path).String(), Hint: g.Hint, Digest: g.digest(),
			FederatesWith: g.FederatesWith, Targets: g.Targets, JwtAudiences: g.Audiences, Depends: g.depends(item.GetWorkload()),
		}
		for _, name := range slices.Sorted(maps.Keys(g.Uses)) {
			svid.JwtUses = append(svid.JwtUses, &api.AudienceUse{Audience: name, Use: g.Uses[name]})
		}
		switch {
		case holds(item.GetHeld(), svid):
		case n >= len(item.GetPublicKeys()):
			result.KeysNeeded++
			continue
		case g.Cheap:
			svid.Chain, svid.PublicKey = [][]byte{b.copied(svid.GetSpiffeId(), g.TTL, item.GetPublicKeys()[n])}, uint32(n)
		default:
			if err := b.sign(svid, item, n, g.TTL); err != nil {
				return nil, err
			}
		}
		if g.Spoil != nil {
			g.Spoil(svid)
		}
		result.Svids = append(result.Svids, svid)
	}
	return result, nil
}

// refusedLife is the denial of a life over a grant's; nil: it is given, or none
// was asked for.
func refusedLife(grants []Grant, seconds int64, most time.Duration) *api.Denial {
	for _, g := range grants {
		if g.TTL != 0 {
			most = min(most, g.TTL)
		}
		if seconds > 0 && seconds > int64(most/time.Second) && !g.Deaf {
			return &api.Denial{Record: Record, Code: "ttl_refused", MostTtl: int64(most / time.Second)}
		}
	}
	return nil
}

func holds(held []*api.Held, svid *api.X509SVID) bool {
	for _, h := range held {
		if h.GetIdentity() == svid.GetIdentity() && bytes.Equal(h.GetDigest(), svid.GetDigest()) {
			return true
		}
	}
	return false
}

func (b *Broker) sign(svid *api.X509SVID, item *api.IssueX509Request_Item, n int, ttl time.Duration) error {
	key, err := publicKey(item.GetPublicKeys()[n])
	if err != nil {
		return err
	}
	if ttl == 0 {
		ttl = time.Hour
	}
	leaf := b.Sign(spiffeid.RequireFromString(svid.GetSpiffeId()), key, time.Now().Add(ttl))
	svid.Chain, svid.PublicKey = [][]byte{leaf.Raw}, uint32(n)
	return nil
}

// copied is a leaf for a key that nobody signed: of each ID one is signed.
func (b *Broker) copied(id string, ttl time.Duration, key []byte) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	leaf := b.leaves[id]
	if leaf == nil {
		leaf = b.Sign(spiffeid.RequireFromString(id), newKey().Public(), time.Now().Add(ttl))
		b.leaves[id] = leaf
	}
	return bytes.Replace(leaf.Raw, leaf.RawSubjectPublicKeyInfo, key, 1)
}

// Once is an audience whose tokens are used once.
const Once = "once"

// IssueJWT makes tokens for the identities that list the audience or target.
func (b *Broker) IssueJWT(_ context.Context, r *api.IssueJWTRequest) (*api.IssueJWTResponse, error) {
	b.mu.Lock()
	if b.onJWT != nil {
		b.onJWT(r)
	}
	b.mu.Unlock()
	response := &api.IssueJWTResponse{}
	if d := refusedLife(b.granted(r.GetWorkload()), r.GetTtl(), 5*time.Minute); d != nil {
		return &api.IssueJWTResponse{Denial: d}, nil
	}
	for _, g := range b.granted(r.GetWorkload()) {
		id := spiffeid.RequireFromPath(b.TrustDomain, g.Path).String()
		if r.GetSpiffeId() != "" && r.GetSpiffeId() != id || len(g.Audiences) == 0 && r.GetTarget() == "" {
			continue
		}
		audiences := r.GetAudiences()
		if r.GetTarget() != "" {
			audiences = []string{"target:" + r.GetTarget()}
		}
		life := g.JWTTTL
		if life == 0 {
			life = 5 * time.Minute
		}
		expires := time.Now().Add(life)
		if r.GetTtl() > 0 && !g.Deaf {
			expires = time.Now().Add(time.Duration(r.GetTtl()) * time.Second)
		}
		if r.GetToFile() {
			expires = time.Now().Add(time.Hour)
		}
		use := ""
		for _, a := range r.GetAudiences() {
			if u := g.Uses[a]; u != "" && use != "single_use" {
				use = u
			}
		}
		response.Svids = append(response.Svids, &api.JWTSVID{
			Use:      map[bool]string{true: use}[use == "audited"],
			Identity: g.Identity, SpiffeId: id, Hint: g.Hint, Expires: expires.Unix(), Depends: g.depends(r.GetWorkload()),
			SingleUse: slices.Contains(audiences, Once) || use == "single_use" || use == "audited" && !r.GetAudits(),
			Token:     b.JWT(map[string]any{"sub": id, "aud": audiences, "exp": expires.Unix(), "jti": serial().String()}),
		})
	}
	if len(response.Svids) == 0 {
		response.Denial = &api.Denial{Record: Record, Code: b.refusal(r)}
	}
	return response, nil
}

// refusal is a broker's code for why no token is made.
func (b *Broker) refusal(r *api.IssueJWTRequest) string {
	switch grants := b.granted(r.GetWorkload()); {
	case len(grants) == 0:
		return "denied"
	case r.GetTarget() != "":
		return "target_not_listed"
	case r.GetSpiffeId() != "" && !slices.ContainsFunc(grants, func(g Grant) bool {
		return r.GetSpiffeId() == spiffeid.RequireFromPath(b.TrustDomain, g.Path).String()
	}):
		return "spiffe_id_not_granted"
	}
	return "audience_not_listed"
}

// JWT signs claims as a JWT-SVID.
func (ca *CA) JWT(claims map[string]any) string {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: ca.JWTKey, KeyID: ca.JWTKeyID}}, (&jose.SignerOptions{}).WithType("JWT"))
	must(err)
	payload, err := json.Marshal(claims)
	must(err)
	signed, err := signer.Sign(payload)
	must(err)
	token, err := signed.CompactSerialize()
	must(err)
	return token
}
