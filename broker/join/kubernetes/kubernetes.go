// Package kubernetes is the join method of pods: a node shows the token of its
// service account that the kubelet put into a file of it (a projected volume of
// kind serviceAccountToken), made for us.
//
// It trusts the API server of one cluster: by the keys that the cluster's issuer
// publishes (issuer), by keys that the operator was given (jwks), or by asking it
// at each join (token_review). No token chooses which. A token must be for our
// audience alone, by default credence://TRUST DOMAIN/join, young, and bound to a
// pod; those of Secrets, which never end, are nothing. What the cluster's users may
// make it say (which account a pod has) is as safe as the cluster's rules about who
// may make pods in a namespace.
//
// The kubelet replaces a token after four fifths of its life, so the same one is
// shown again by an agent that starts anew: it is taken again where it yields the
// same node, the same pod, until it ends, and by no other rule that would make
// another node of it. Who steals one can therefore be that pod's agent: what stops
// it is the audience (a token of ours is nothing to the API server and to others,
// theirs nothing here), the age, and with token_review the pod's end, which the
// other two ways do not see. A stolen one shows as a second agent whose SVIDs the
// first finds replaced.
//
// A node is banned by what is hardest to get anew: the cluster and the UID of the
// Kubernetes node, where the token names it (Kubernetes 1.29 and later), else the
// pod's. Two pods of one Kubernetes node are two nodes here that are banned
// together; a pod that replaces another is a new one. A node comes back by itself,
// by the token that is in the file then.
package kubernetes

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/bearer"
)

// Method is the method's name, and its facts are node.kubernetes.*.
const Method = "kubernetes"

const prefix = "node." + Method

// A Spend takes what a digest stands for, until it ends, from one holder as often
// as that one comes. An error for which Config.Spent holds means that another has
// it.
type Spend func(ctx context.Context, digest [sha256.Size]byte, holder string, ends, now time.Time) error

// Config is the wiring of a method. All fields are required unless noted.
type Config struct {
	Settings *Settings
	Audience string     // unless the settings say otherwise
	Get      bearer.Get // asks an issuer
	Spend    Spend
	Spent    func(error) bool
	Patience time.Duration // for the API server's answer to a review; 0: 5 s
	Now      func() time.Time
}

// A Cluster is the join method of one rule.
type Cluster struct {
	cfg      Config
	keys     oidc.KeySet // nil: tokens are reviewed
	reviewer *reviewer
}

// New returns the method of a rule. It keeps the issuer's keys, and connections to
// the API server, so one rule has one method for as long as it stands.
func New(cfg Config) (*Cluster, error) {
	s := cfg.Settings
	if err := s.Validate(); err != nil {
		return nil, err
	}
	if s.Audience != "" {
		cfg.Audience = s.Audience
	}
	if cfg.Audience == "" {
		return nil, errors.New("joining by kubernetes: an audience is required")
	}
	m := &Cluster{cfg: cfg}
	var err error
	switch {
	case s.TokenReview != nil:
		m.reviewer, err = newReviewer(s.TokenReview, cfg.Patience)
	case s.JWKS != "":
		if m.keys, err = bearer.NewStatic([]byte(s.JWKS)); err != nil {
			err = fmt.Errorf("jwks: %w", err)
		}
	default:
		m.keys = bearer.NewRemote(s.Issuer, cfg.Get, cfg.Now)
	}
	return m, err
}

// Join takes a token.
func (m *Cluster) Join(ctx context.Context, evidence []byte, _ join.Challenge) (join.Proof, error) {
	token, who, err := m.verify(ctx, evidence, m.cfg.Audience)
	if err != nil {
		return join.Proof{}, err
	}
	if who.pod.uid == "" && !m.cfg.Settings.Unbound {
		return join.Proof{}, fmt.Errorf("%w: it is bound to no pod: it is not of a projected volume (unbound: true would take it)", join.ErrEvidence)
	}
	proof, err := m.proof(who)
	if err != nil {
		return join.Proof{}, err
	}
	holder := join.Durable(Method, proof.DurableKey, proof.Instance)
	if err := m.cfg.Spend(ctx, token.Digest, holder, token.Expires.Add(bearer.Skew), m.cfg.Now()); err != nil {
		if m.cfg.Spent(err) {
			err = errors.Join(join.ErrEvidence, errors.New("the token made another node before"))
		}
		return join.Proof{}, err
	}
	return proof, nil
}

// A Pod is what a token says that is bound to one.
type Pod struct {
	Namespace, ServiceAccount, Name, UID string
	Node, NodeUID                        string // empty: it names none
	Ends                                 time.Time
}

// Pod says to which pod a token for an audience is bound, by the same rules as a
// node's. It spends nothing: who shows one of a workload shows it again. Errors are
// as of Join.
func (m *Cluster) Pod(ctx context.Context, token []byte, audience string) (Pod, error) {
	t, who, err := m.verify(ctx, token, audience)
	if err != nil {
		return Pod{}, err
	}
	if who.pod.uid == "" {
		return Pod{}, fmt.Errorf("%w: it is bound to no pod", join.ErrEvidence)
	}
	return Pod{
		Namespace: who.namespace, ServiceAccount: who.account.name, Name: who.pod.name, UID: who.pod.uid,
		Node: who.node.name, NodeUID: who.node.uid, Ends: t.Expires,
	}, nil
}

// PodOf is Pod by those of the rules that are of a cluster: they are all the
// operator's word about it, so one that takes the token is enough. of gives the
// method of a rule.
func PodOf(ctx context.Context, rules []join.Rule, cluster string, of func(join.Rule) (join.Method, error), token []byte, audience string) (Pod, error) {
	refused := fmt.Errorf("%w: no JoinRule is of cluster %.80q", join.ErrEvidence, cluster)
	var away error
	for _, r := range rules {
		if s, ok := r.Settings.(*Settings); !ok || s.Cluster != cluster {
			continue
		}
		m, err := of(r)
		if err != nil {
			away = err
			continue
		}
		c, ok := m.(*Cluster)
		if !ok {
			return Pod{}, fmt.Errorf("join rule %s: %T is no method of this package", r.Name, m)
		}
		pod, err := c.Pod(ctx, token, audience)
		switch {
		case err == nil:
			return pod, nil
		case errors.Is(err, join.ErrEvidence):
			refused = fmt.Errorf("by rule %s: %w", r.Name, err)
		default:
			away = fmt.Errorf("by rule %s: %w", r.Name, err)
		}
	}
	if away != nil {
		return Pod{}, away
	}
	return Pod{}, refused
}

// verify is whom a token for an audience is of. Errors are as of bearer's Verify.
func (m *Cluster) verify(ctx context.Context, token []byte, audience string) (bearer.Token, subject, error) {
	var review *review
	keys := m.keys
	if m.reviewer != nil {
		review = m.reviewer.of(audience)
		keys = review
	}
	v, err := bearer.New(bearer.Config{
		Issuer: m.cfg.Settings.Issuer, AnyIssuer: m.cfg.Settings.Issuer == "", Audience: audience, Keys: keys,
		MaxAge: time.Duration(m.cfg.Settings.MaxAge), Now: m.cfg.Now,
	})
	if err != nil {
		return bearer.Token{}, subject{}, err
	}
	t, err := v.Verify(ctx, token)
	if err != nil {
		return bearer.Token{}, subject{}, err
	}
	who, err := readSubject(t)
	if err == nil && review != nil {
		err = review.agrees(who)
	}
	if err != nil {
		return bearer.Token{}, subject{}, fmt.Errorf("%w: %w", join.ErrEvidence, err)
	}
	return t, who, nil
}

// proof is what being that subject proves.
func (m *Cluster) proof(s subject) (join.Proof, error) {
	cluster := m.cfg.Settings.Cluster
	facts := map[string][]string{}
	for name, value := range map[string]string{
		"cluster": cluster, "namespace": s.namespace, "service_account": s.account.name, "service_account_uid": s.account.uid,
		"pod": s.pod.name, "pod_uid": s.pod.uid, "node": s.node.name, "node_uid": s.node.uid,
	} {
		if value != "" {
			facts[prefix+"."+name] = []string{value}
		}
	}
	p := join.Proof{Instance: s.pod.uid}
	key := []string{cluster, "service_account", s.account.uid}
	p.Name = s.account.name
	switch {
	case s.node.uid != "":
		key, p.Name = []string{cluster, "node", s.node.uid}, s.node.name
	case s.pod.uid != "":
		key, p.Name = []string{cluster, "pod", s.pod.uid}, s.pod.name
	}
	p.DurableKey = join.Durable(key...)
	var err error
	p.Facts, err = identity.NewFacts(prefix, facts)
	return p, err
}
