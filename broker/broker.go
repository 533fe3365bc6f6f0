// Package broker joins nodes and issues SVIDs: evidence becomes a node, facts
// become a decision, a decision a signature, and nothing leaves before its
// record is durable.
//
// It trusts a joined node's word about the workloads on it (never about the
// node itself: those facts were proven at the join), the join methods' proofs,
// and the operator who writes the resources. Policy is left to
// broker/identity, keys to broker/authority, the record to broker/audit, the
// wire to broker/server.
//
// SPIFFE's own draft "Broker API" is an agent-side protocol; this broker is the
// control plane.
package broker

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
)

// Errors that callers tell apart; everything else is a fault of ours.
var (
	ErrNotFound = errors.New("not found")
	ErrConflict = errors.New("conflict") // somebody else wrote first: read again
	ErrSpent    = errors.New("already spent")
	ErrRequest  = errors.New("bad request") // what was asked breaks a stated bound
)

// An Issuer signs what has been granted. It refuses the zero Grant, one made
// more than 30 s ago, and one for another key. The chain is leaf first, without
// the root.
type Issuer interface {
	SignX509(context.Context, identity.Grant, crypto.PublicKey) ([]*x509.Certificate, error)
	SignJWT(context.Context, identity.Grant) (string, error)
}

// A Recorder makes events durable, all of them or none, before it returns.
// What it cannot make durable is not released.
type Recorder interface {
	Append(context.Context, ...audit.Event) ([]audit.Ref, error)
}

// A Store keeps the nodes. Each call is one transaction, durable when it
// returns.
type Store interface {
	Nodes(context.Context) ([]Node, error)
	// SaveNode writes a node that joined or renewed, and returns it with its
	// new revision. It refuses with ErrConflict where the durable key is
	// banned, or another than the one that has the ID; and, unless the node's
	// revision is zero (a join), where that is not what stands.
	SaveNode(context.Context, Node) (Node, error)
	// EvictNode marks the node evicted and bans its durable key.
	EvictNode(ctx context.Context, id string, at time.Time) (Node, error)
	// AllowNode forgets an evicted node and lifts its ban.
	AllowNode(ctx context.Context, id string) error
}

// A Node is a machine that joined.
type Node struct {
	ID             string // SPIFFE ID, spiffe://<trust domain>/credence/node/<id>
	Revision       uint64
	Name           string // node.name
	Method         string
	JoinRule       string
	DurableKey     string         // by which it is banned, with its method
	Facts          identity.Facts // node.*, as proven at its last join
	JoinedAt       time.Time
	Serial         []byte // of its last SVID
	PreviousSerial []byte // of the last but one, which a lost answer leaves in use
	ExpiresAt      time.Time
	EvictedAt      time.Time // zero: it is welcome
}

// Policy is what decisions are made on. It is immutable and swapped whole.
type Policy struct {
	Revision uint64
	Set      *identity.Set
	X509     map[string]identity.X509 // by Identity: what its X509-SVIDs say
	Rules    []join.Rule
	Targets  map[string]Target
}

// A Target is what an agent is told of one: opaque here.
type Target struct {
	Name     string
	Revision uint64
	Flow     string
	Settings []byte // JSON
}

// Config is the wiring of a Broker. Fields are required unless noted.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	Method      func(join.Rule) (join.Method, error) // the caller's switch on the rule's kind
	Issuer      Issuer
	Store       Store
	Audit       Recorder
	Policy      *Policy
	NodeTTL     time.Duration    // 0: 4 h
	JoinTime    time.Duration    // how long one join may take; 0: 10 s
	Log         *slog.Logger     // nil discards
	Now         func() time.Time // nil means time.Now
}

// A Broker joins nodes and issues SVIDs. Its methods may be called
// concurrently.
type Broker struct {
	cfg       Config
	policy    atomic.Pointer[Policy]
	denials   *audit.Folder
	strangers *audit.Counter

	mu       sync.RWMutex // guards nodes and sessions
	nodes    map[string]Node
	sessions map[string][]*Session // by node ID
}

// New returns a Broker that knows the nodes in the store. Close it before the
// record that it writes to.
func New(ctx context.Context, cfg Config) (*Broker, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.NodeTTL == 0 {
		cfg.NodeTTL = 4 * time.Hour
	}
	if cfg.JoinTime == 0 {
		cfg.JoinTime = 10 * time.Second
	}
	if cfg.Policy == nil {
		return nil, errors.New("making a broker: no policy")
	}
	nodes, err := cfg.Store.Nodes(ctx)
	if err != nil {
		return nil, fmt.Errorf("loading nodes: %w", err)
	}
	b := &Broker{cfg: cfg, nodes: make(map[string]Node, len(nodes)), sessions: make(map[string][]*Session)}
	if b.denials, err = audit.NewFolder(audit.FolderConfig{Log: cfg.Audit, Now: cfg.Now, Logger: cfg.Log}); err != nil {
		return nil, err
	}
	if b.strangers, err = audit.NewCounter(audit.CounterConfig{Log: cfg.Audit, Logger: cfg.Log}); err != nil {
		return nil, errors.Join(err, b.denials.Close())
	}
	for _, n := range nodes {
		b.nodes[n.ID] = n
	}
	b.policy.Store(cfg.Policy)
	return b, nil
}

// Close writes the counts that are still to be recorded. No other method may be
// called after it.
func (b *Broker) Close() error {
	return errors.Join(b.strangers.Close(), b.denials.Close())
}
