package sds

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpc "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/credence-id/credence/agent/caller"
)

// Bounds of what callers ask for.
const (
	maxNames = 256
	maxName  = 2048 // bytes: a SPIFFE ID's, SPIFFE ID §2.3
)

// typeURL is that of the only resources there are.
const typeURL = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

// everything is the name that means all resources (xDS, "How the client
// specifies what resources to return").
const everything = "*"

// request is what both forms of a request have.
type request interface {
	GetNode() *core.Node
	GetTypeUrl() string
	GetResponseNonce() string
	GetErrorDetail() *rpc.Status
}

// check refuses what cannot be answered as it was meant.
func check(q request) error {
	if t := q.GetTypeUrl(); t != "" && t != typeURL {
		return status.Errorf(codes.InvalidArgument, "type_url %q: only %s is served", brief(t), typeURL)
	}
	var locators int
	switch q := q.(type) {
	case *discovery.DiscoveryRequest:
		locators = len(q.GetResourceLocators())
	case *discovery.DeltaDiscoveryRequest:
		locators = len(q.GetResourceLocatorsSubscribe()) + len(q.GetResourceLocatorsUnsubscribe())
	}
	if locators > 0 {
		return status.Error(codes.InvalidArgument, "resource locators are not taken: ask by name")
	}
	return nil
}

func checkNames(names ...string) error {
	for _, name := range names {
		if name == "" || len(name) > maxName {
			return status.Errorf(codes.InvalidArgument, "resource name %q: one has 1 to %d bytes", brief(name), maxName)
		}
	}
	return nil
}

func tooMany() error {
	return status.Errorf(codes.InvalidArgument, "at most %d resource names are taken on one stream", maxNames)
}

// brief is the beginning of what a caller sent, for one who reads a message.
func brief(s string) string {
	const most = 128
	if len(s) > most {
		s = s[:most] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}

// plain says whether a node wants roots as trusted_ca instead of the SPIFFE
// certificate validator. Who doesn't say which Envoy it is may not know it, and
// would take a context without trusted_ca for one that verifies nothing.
func plain(n *core.Node, disabled bool) bool {
	if v := n.GetUserAgentBuildVersion().GetVersion(); v.GetMajorNumber() < 1 || v.GetMajorNumber() == 1 && v.GetMinorNumber() < 18 {
		return true
	}
	switch v := n.GetMetadata().GetFields()["disable_spiffe_cert_validation"].GetKind().(type) {
	case *structpb.Value_BoolValue:
		return v.BoolValue
	case *structpb.Value_StringValue:
		if b, err := strconv.ParseBool(v.StringValue); err == nil {
			return b
		}
	}
	return disabled
}

// Bounds of what is logged of callers' refusals.
const (
	maxRefusals = 10 // of one uid, in a minute
	maxDetail   = 512
)

// refusals says which refusals are logged.
type refusals struct {
	mu     sync.Mutex // guards what follows
	since  time.Time
	counts map[uint32]int // by uid
}

// count is the how manieth of a uid's in this minute one is.
func (r *refusals) count(uid uint32, now time.Time) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.counts == nil || now.Sub(r.since) >= time.Minute || now.Before(r.since) {
		r.since, r.counts = now, make(map[uint32]int)
	}
	r.counts[uid]++
	return r.counts[uid]
}

// refused logs that a caller didn't take what it was sent, and why. It gets
// nothing new for that: what it has stays in force there.
func (s *Server) refused(ctx context.Context, p *caller.Process, version string, detail *rpc.Status) {
	n := s.refusals.count(p.UID(), s.cfg.Now())
	if n > maxRefusals {
		return
	}
	text := detail.GetMessage()
	if len(text) > maxDetail {
		text = text[:maxDetail] + "..."
	}
	s.cfg.Log.WarnContext(ctx, "secrets refused by the caller, which goes on with those before",
		"pid", p.PID(), "uid", p.UID(), "version", version, "code", detail.GetCode(), "detail", strings.ToValidUTF8(text, "?"))
	if n == maxRefusals {
		s.cfg.Log.WarnContext(ctx, "further refusals of this user are not logged for a minute", "uid", p.UID())
	}
}
