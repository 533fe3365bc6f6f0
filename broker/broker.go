// Package broker joins nodes and issues SVIDs: evidence becomes a node, facts
// become a decision, a decision a signature, and nothing leaves before its
// record is durable.
//
// Who has an SVID and no agent exchanges it. It is evidence and never an identity
// to sign: one of ours stands for the Identity that the issuance index says it
// was issued under, if that is unchanged, not denied and on a welcome node; a
// peer's is facts, peer.*, on which Decide finds one Identity or none.
//
// A person logs in and has neither node nor process: facts, user.*, which a login
// provider vouched for, decide what X509-SVIDs they get.
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
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/trace"

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

// A Store keeps the nodes and what is revoked. Each call is one transaction,
// durable when it returns.
type Store interface {
	Nodes(context.Context) ([]Node, error)
	// Node returns one; the error wraps ErrNotFound where there is none.
	Node(ctx context.Context, id string) (Node, error)
	// SaveNode writes a node that joined or renewed, and returns it with its
	// new revision and its step made. It refuses with ErrConflict where the durable key is
	// banned, or another than the one that has the ID; and, unless the node's
	// revision is zero (a join), where that is not what stands.
	SaveNode(context.Context, Node) (Node, error)
	// EvictNode marks the node evicted and bans its durable key.
	EvictNode(ctx context.Context, id string, at time.Time) (Node, error)
	// AllowNode forgets an evicted node and lifts its ban. Its next join may show
	// anything, but counts on.
	AllowNode(ctx context.Context, id string) error
	// ForgetNodes removes some of the nodes that match, with how far they have
	// reported, and returns their IDs. One that is evicted stays, for it is banned, and one whose
	// joins are told apart: an operator may have to allow the next.
	ForgetNodes(context.Context, Ended) (ids []string, err error)
	// RefuseJoin notes when a node was refused a recovery, if it wasn't since it
	// joined last.
	RefuseJoin(ctx context.Context, id string, at time.Time) (Node, error)
	// ForgetRecoveries lets a node recover as often as if it never had; the next join
	// of one that was refused may show anything. The error wraps ErrNotFound where
	// that changes nothing.
	ForgetRecoveries(ctx context.Context, id string) (Node, error)
	// SaveCutoff keeps a cut-off, unless one of the same kind and value reaches
	// as far.
	SaveCutoff(context.Context, Cutoff) error
	// Cutoffs returns those written after a revision, and the revision of the
	// last one.
	Cutoffs(ctx context.Context, after uint64) ([]Cutoff, uint64, error)
	// SpendEvidence spends what a digest stands for, once, until it ends: of any
	// number of callers exactly one succeeds, and the others' error wraps
	// ErrSpent.
	SpendEvidence(ctx context.Context, digest [32]byte, ends, now time.Time) error
	// ForgetCutoffs removes those that reach no further than a time.
	ForgetCutoffs(ctx context.Context, upTo time.Time) error
}

// Ended are nodes whose SVIDs have ended and that joined by a JoinRule: all who
// did so long ago, and the former ones of a durable key that has a later node,
// as the jobs of a repository.
type Ended struct {
	Before       time.Time
	FormerBefore time.Time
	Most         int // how many
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

	// SHA-256 of the public keys (SubjectPublicKeyInfo, DER) of these two, so
	// that nobody who can sign as one of our issuing CAs makes himself a node's
	// SVID. Empty: not known.
	Key, PreviousKey []byte

	// When these two were issued, and by which authority. Zero and empty, not
	// known, fall under every cut-off.
	IssuedAt, PreviousIssuedAt   time.Time
	Authority, PreviousAuthority string

	Joins join.State // what is known of its joins, if its method tells them apart
	Step  *join.Step // that a join makes, to be saved
}

// Policy is what decisions are made on. It is immutable and swapped whole.
type Policy struct {
	Revision uint64
	Set      *identity.Set
	Rules    []join.Rule
	Targets  map[string]Target
	// Difference is between the Set that stood before and this one, where
	// nothing else changed; nil: anything may have.
	Difference *identity.Difference
}

// A Target is what an agent is told of one: opaque here.
type Target struct {
	Name     string
	Revision uint64
	Flow     string
	Settings []byte // JSON
}

// NodeLife is how long a node's SVID lives by default: so long a node goes on
// that no broker renews.
const NodeLife = 4 * time.Hour

// Config is the wiring of a Broker. Fields are required unless noted.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	Method      func(join.Rule) (join.Method, error) // the caller's switch on the rule's kind
	Issuer      Issuer
	Store       Store
	Audit       Recorder
	Record      Follower // what Audit wrote, for the index
	Index       Index
	CRLs        Lister
	Origin      string // this broker's name in the index
	DenyFile    string // on this broker's disk: what is revoked, also without the store
	Policy      *Policy
	Away        func() error     // why the store takes no writes now; nil: it is not known before one is tried
	NodeTTL     time.Duration    // 0: NodeLife
	LongestLife time.Duration    // of any SVID: a cut-off stands for so long; 0: 56 h
	JoinTime    time.Duration    // how long one join may take; 0: 10 s
	Tracer      trace.Tracer     // of what a decision takes; nil: nothing is traced
	Observe     func(Event)      // told what happened, while the caller waits; nil: nobody is
	Log         *slog.Logger     // nil discards
	Now         func() time.Time // nil means time.Now
}

// A Broker joins nodes and issues SVIDs. Its methods may be called
// concurrently.
type Broker struct {
	cfg        Config
	policy     atomic.Pointer[Policy]
	cuts       atomic.Pointer[cuts]
	indexer    *indexer
	listing    *listing
	reporters  *reporters
	contact    contact // of the store
	denials    *audit.Folder
	reads      *audit.Folder  // by operators
	strangers  *audit.Counter // who fail to join
	shown      *audit.Counter // what is shown in vain as evidence
	unnamed    *audit.Counter // who fail to log in
	unrecorded *audit.Counter // what was read all the same
	strange    strangeSVIDs

	read     atomic.Bool // the cut-offs in the store hold here
	revoking sync.Mutex  // guards what follows, and is taken before mu
	file     *denyFile
	unsaved  map[cutKey]Cutoff // not in the store yet
	unsure   map[string]bool   // of file.out, those that the store does not know, and that was logged

	mu       sync.RWMutex // guards nodes, leaving and sessions, and the swapping of cuts
	nodes    map[string]Node
	out      map[string]eviction   // made here, which the store does not have yet; by node ID
	leaving  map[string]int        // evictions under way, by node ID
	sessions map[string][]*Session // by node ID
}

func (c Config) check() error {
	for name, missing := range map[string]bool{
		"Policy": c.Policy == nil, "Record": c.Record == nil, "Index": c.Index == nil, "CRLs": c.CRLs == nil, "Origin": c.Origin == "", "DenyFile": c.DenyFile == "",
	} {
		if missing {
			return fmt.Errorf("making a broker: %s is required", name)
		}
	}
	return nil
}

// ground is what a decision for a node stands on, at one time.
type ground struct {
	*Policy
	cuts *cuts
	node string
}

func (b *Broker) ground(node string) ground { return ground{b.policy.Load(), b.cuts.Load(), node} }

// New returns a Broker that knows the nodes in the store, and what is revoked
// by its deny file and, if that answers, the store. Close it before the record
// that it writes to.
func New(ctx context.Context, cfg Config) (*Broker, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Away == nil {
		cfg.Away = func() error { return nil }
	}
	if cfg.NodeTTL == 0 {
		cfg.NodeTTL = NodeLife
	}
	if cfg.JoinTime == 0 {
		cfg.JoinTime = 10 * time.Second
	}
	if cfg.LongestLife == 0 {
		cfg.LongestLife = defaultLongest
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	nodes, err := cfg.Store.Nodes(ctx)
	if err != nil {
		return nil, fmt.Errorf("loading nodes: %w", err)
	}
	b := &Broker{cfg: cfg, nodes: make(map[string]Node, len(nodes)), leaving: make(map[string]int), sessions: make(map[string][]*Session), indexer: newIndexer(cfg), listing: newListing(), reporters: newReporters(cfg.Record.Head().Sequence)}
	b.indexer.added = b.indexed
	if err := b.loadCutoffs(ctx); err != nil {
		return nil, err
	}
	if b.denials, err = audit.NewFolder(audit.FolderConfig{Log: cfg.Audit, Now: cfg.Now, Logger: cfg.Log}); err != nil {
		return nil, err
	}
	if b.strangers, err = audit.NewCounter(audit.CounterConfig{Log: cfg.Audit, Logger: cfg.Log}); err != nil {
		return nil, errors.Join(err, b.denials.Close())
	}
	if b.shown, err = audit.NewCounter(audit.CounterConfig{Log: cfg.Audit, Kind: "exchange.refused", Logger: cfg.Log}); err != nil {
		return nil, errors.Join(err, b.strangers.Close(), b.denials.Close())
	}
	if b.unnamed, err = audit.NewCounter(audit.CounterConfig{Log: cfg.Audit, Kind: "login.refused", Logger: cfg.Log}); err != nil {
		return nil, errors.Join(err, b.shown.Close(), b.strangers.Close(), b.denials.Close())
	}
	if b.reads, err = audit.NewFolder(audit.FolderConfig{Log: cfg.Audit, Now: cfg.Now, Logger: cfg.Log}); err != nil {
		return nil, errors.Join(err, b.unnamed.Close(), b.shown.Close(), b.strangers.Close(), b.denials.Close())
	}
	if b.unrecorded, err = audit.NewCounter(audit.CounterConfig{Log: cfg.Audit, Kind: "admin.unrecorded", Code: "unrecorded", Logger: cfg.Log}); err != nil {
		return nil, errors.Join(err, b.reads.Close(), b.unnamed.Close(), b.shown.Close(), b.strangers.Close(), b.denials.Close())
	}
	b.out = maps.Clone(b.file.out)
	for _, n := range nodes {
		b.nodes[n.ID] = b.marked(n)
	}
	b.policy.Store(cfg.Policy)
	return b, nil
}

// Origin is this broker's name, by which others know its record.
func (b *Broker) Origin() string { return b.cfg.Origin }

// Close writes the counts that are still to be recorded. No other method may be
// called after it.
func (b *Broker) Close() error {
	return errors.Join(b.unrecorded.Close(), b.reads.Close(), b.unnamed.Close(), b.shown.Close(), b.strangers.Close(), b.denials.Close())
}
