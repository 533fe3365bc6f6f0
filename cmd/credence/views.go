package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/cmd/cli"
	"github.com/credence-id/credence/federation"
)

type resourceView struct {
	Kind      string          `json:"kind"`
	Name      string          `json:"name"`
	Revision  uint64          `json:"revision"`
	Owner     string          `json:"owner"`
	WrittenBy string          `json:"written_by"`
	WrittenAt cli.Moment      `json:"written_at"`
	Resource  json.RawMessage `json:"resource"` // as apply takes it
}

func viewResources(all []*api.Resource) ([]resourceView, error) {
	views := []resourceView{}
	for _, r := range all {
		body, err := document(r.GetYaml())
		if err != nil {
			return nil, fmt.Errorf("reading %s %s: %w", r.GetKind(), r.GetName(), err)
		}
		views = append(views, resourceView{r.GetKind(), r.GetName(), r.GetRevision(), r.GetOwner(), r.GetActor(), cli.Moment(r.GetWrittenAt()), body})
	}
	return views, nil
}

// document is one YAML document as JSON; none is null.
func document(text []byte) (json.RawMessage, error) {
	if len(text) == 0 {
		return json.RawMessage("null"), nil
	}
	return yaml.YAMLToJSON(text)
}

type applyView struct {
	DryRun   bool          `json:"dry_run"`
	Revision uint64        `json:"revision"`
	Applied  []appliedView `json:"applied"`
	Owned    uint32        `json:"owned"`     // how many stood before, of the owner or of what was rolled back
	NeedsYes bool          `json:"needs_yes"` // more than a tenth of them is deleted
	Warnings []string      `json:"warnings"`
}

type appliedView struct {
	Kind        string          `json:"kind"`
	Name        string          `json:"name"`
	Action      string          `json:"action"` // created, changed, unchanged, deleted
	Owner       string          `json:"owner"`
	TakenFrom   string          `json:"taken_from"`
	Outstanding uint64          `json:"outstanding"` // SVIDs that have not ended, in a plan
	Before      json.RawMessage `json:"before"`
	After       json.RawMessage `json:"after"`
}

func viewApply(r *api.ApplyResponse, dry bool) (applyView, error) {
	v := applyView{DryRun: dry, Revision: r.GetRevision(), Owned: r.GetOwned(), NeedsYes: r.GetNeedsYes(), Warnings: list(r.GetWarnings())}
	var err error
	v.Applied, err = viewApplied(r.GetApplied())
	return v, err
}

func viewApplied(all []*api.ApplyResponse_Applied) ([]appliedView, error) {
	views := []appliedView{}
	for _, a := range all {
		before, err := document(a.GetBefore())
		if err != nil {
			return nil, err
		}
		after, err := document(a.GetAfter())
		if err != nil {
			return nil, err
		}
		views = append(views, appliedView{a.GetKind(), a.GetName(), a.GetAction(), a.GetOwner(), a.GetTakenFrom(), a.GetOutstanding(), before, after})
	}
	return views, nil
}

// list is never null.
func list(all []string) []string { return append([]string{}, all...) }

type nodeView struct {
	ID           string              `json:"id"`
	Name         string              `json:"name"`
	Method       string              `json:"method"`
	JoinRule     string              `json:"join_rule"`
	State        string              `json:"state"` // connected, away, refused (a recovery), evicted
	Connected    bool                `json:"connected"`
	JoinedAt     cli.Moment          `json:"joined_at"`
	ExpiresAt    cli.Moment          `json:"expires_at"`
	EvictedAt    cli.Moment          `json:"evicted_at"`
	Acknowledged uint64              `json:"acknowledged"` // the revision that it holds
	Facts        map[string][]string `json:"facts"`
	EvictReason  string              `json:"evict_reason"`
	Joins        uint64              `json:"joins"`      // where its method counts them
	Recoveries   uint64              `json:"recoveries"` // of these, without the state of the one before
	RefusedAt    cli.Moment          `json:"refused_at"` // one more of those
}

func viewNode(n *api.NodeInfo) nodeView {
	v := nodeView{
		n.GetId(), n.GetName(), n.GetMethod(), n.GetJoinRule(), nodeState(n), n.GetConnected(),
		cli.Moment(n.GetJoinedAt()), cli.Moment(n.GetExpiresAt()), cli.Moment(n.GetEvictedAt()), n.GetAcknowledged(), map[string][]string{},
		n.GetEvictReason(), n.GetJoins(), n.GetRecoveries(), cli.Moment(n.GetRefusedAt()),
	}
	for name, values := range n.GetFacts() {
		v.Facts[name] = list(values.GetValues())
	}
	return v
}

func nodeState(n *api.NodeInfo) string {
	switch {
	case n.GetEvictedAt() != 0:
		return "evicted"
	case n.GetConnected():
		return "connected"
	case n.GetRefusedAt() != 0:
		return "refused"
	}
	return "away"
}

type authorityView struct {
	ID          string     `json:"id"`
	Use         string     `json:"use"`
	Alg         string     `json:"alg"`
	State       string     `json:"state"`
	PublishedAt cli.Moment `json:"published_at"`
	ActivatedAt cli.Moment `json:"activated_at"`
	LastExpiry  cli.Moment `json:"last_expiry"`
	NotAfter    cli.Moment `json:"not_after"`
	Next        string     `json:"next"`
	NextAt      cli.Moment `json:"next_at"`
	Outstanding uint64     `json:"outstanding"`

	Subject   string   `json:"subject"`
	KeySource string   `json:"key_source"`
	OwnKey    bool     `json:"own_key"`
	DependsOn []string `json:"depends_on"`
	Problem   string   `json:"problem"`
	Notes     []string `json:"notes"`
	Broker    string   `json:"broker"` // whose issuing CA; empty: it is shared
}

func viewAuthority(a *api.AuthorityInfo) authorityView {
	return authorityView{
		a.GetId(), a.GetUse(), a.GetAlg(), a.GetState(), cli.Moment(a.GetPublishedAt()), cli.Moment(a.GetActivatedAt()),
		cli.Moment(a.GetLastExpiry()), cli.Moment(a.GetNotAfter()), a.GetNext(), cli.Moment(a.GetNextAt()), a.GetOutstanding(),
		a.GetSubject(), a.GetKeySource(), a.GetOwnKey(), append([]string{}, a.GetWaits()...), a.GetProblem(), append([]string{}, a.GetBelieved()...), a.GetBroker(),
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

type bundleView struct {
	TrustDomain     string       `json:"trust_domain"`
	Sequence        *uint64      `json:"sequence"`
	RefreshHint     *int64       `json:"refresh_hint"` // seconds
	Fingerprint     string       `json:"fingerprint"`  // of its X.509 keys together
	Words           []string     `json:"words"`        // of the fingerprint, to compare by phone
	X509Authorities []caView     `json:"x509_authorities"`
	JWTAuthorities  []jwtKeyView `json:"jwt_authorities"`
	FetchedAt       cli.Moment   `json:"fetched_at"` // a peer's
	ConfirmedAt     cli.Moment   `json:"confirmed_at"`
	LastError       string       `json:"last_error"`
}

type caView struct {
	Subject  string     `json:"subject"`
	Pin      string     `json:"pin"` // as ca_pin and fingerprint take it
	NotAfter cli.Moment `json:"not_after"`
}

type jwtKeyView struct {
	KeyID string `json:"key_id"`
}

func viewBundle(r *api.ShowBundleResponse, b *spiffebundle.Bundle) bundleView {
	v := bundleView{
		TrustDomain: r.GetTrustDomain(), X509Authorities: []caView{}, JWTAuthorities: []jwtKeyView{},
		FetchedAt: cli.Moment(r.GetFetchedAt()), ConfirmedAt: cli.Moment(r.GetConfirmedAt()), LastError: r.GetLastError(),
		Fingerprint: federation.BundleFingerprint(b),
	}
	v.Words = list(federation.FingerprintWords(v.Fingerprint))
	if n, ok := b.SequenceNumber(); ok {
		v.Sequence = &n
	}
	if hint, ok := b.RefreshHint(); ok {
		seconds := int64(hint / time.Second)
		v.RefreshHint = &seconds
	}
	for _, c := range b.X509Authorities() {
		sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
		v.X509Authorities = append(v.X509Authorities, caView{c.Subject.String(), "sha256:" + hex.EncodeToString(sum[:]), cli.Moment(c.NotAfter.Unix())})
	}
	for _, id := range sortedKeys(b.JWTAuthorities()) {
		v.JWTAuthorities = append(v.JWTAuthorities, jwtKeyView{id})
	}
	return v
}

func (v bundleView) fields() [][2]string {
	rows := [][2]string{{"trust domain", v.TrustDomain}}
	if v.Sequence != nil {
		rows = append(rows, [2]string{"sequence", fmt.Sprint(*v.Sequence)})
	}
	if v.Fingerprint != "" {
		rows = append(rows, [2]string{"fingerprint", v.Fingerprint}, [2]string{"words", strings.Join(v.Words, " ")})
	}
	for _, c := range v.X509Authorities {
		rows = append(rows, [2]string{"X.509 root", c.Subject + " " + c.Pin + " until " + cli.When(int64(c.NotAfter))})
	}
	for _, k := range v.JWTAuthorities {
		rows = append(rows, [2]string{"JWT key", k.KeyID})
	}
	if v.FetchedAt != 0 {
		rows = append(rows, [2]string{"fetched", cli.When(int64(v.FetchedAt))}, [2]string{"confirmed", cli.When(int64(v.ConfirmedAt))})
	}
	if v.LastError != "" {
		rows = append(rows, [2]string{"problem", v.LastError})
	}
	return rows
}
