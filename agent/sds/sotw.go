package sds

import (
	"context"
	"slices"
	"strconv"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secret "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/caller"
)

// StreamSecrets sends all secrets of the names asked for, at once and at each
// change of one of them (xDS, state of the world).
func (s *Server) StreamSecrets(stream secret.SecretDiscoveryService_StreamSecretsServer) error {
	return run(s, stream, newWhole())
}

// FetchSecrets answers once.
func (s *Server) FetchSecrets(ctx context.Context, q *discovery.DiscoveryRequest) (*discovery.DiscoveryResponse, error) {
	p, err := caller.Required(ctx)
	if err != nil {
		return nil, err
	}
	if err := check(q); err != nil {
		return nil, err
	}
	c := newWhole()
	if _, err := c.take(q); err != nil {
		return nil, err
	}
	view := s.cfg.Identities(p)
	defer view.Close()
	u, err := view.Next(ctx)
	if err != nil {
		return nil, agent.StatusOf(ctx, s.cfg.Log, err)
	}
	m, err := c.answer(s.catalogOf(u, plain(q.GetNode(), s.cfg.DisableSPIFFECertValidation)))
	if err != nil {
		return nil, s.statusOf(ctx, err)
	}
	m.Nonce = "" // there is nothing to acknowledge
	return m, nil
}

// whole is the session of a stream that gets the state of the world.
type whole struct {
	begun  bool
	names  []string
	all    bool
	due    bool              // an answer, though nothing has changed
	given  map[string]bool   // names that were, on this stream
	has    map[string]string // versions by name, as of the last response
	sent   uint64            // responses
	open   bool              // the last of them is neither acknowledged nor refused
	latest string            // its version
}

func newWhole() *whole { return &whole{given: make(map[string]bool)} }

// take implements session. A request that answers an earlier response than the
// last one is out of date: the client has yet to see that one, and will say
// again what it wants.
func (c *whole) take(q *discovery.DiscoveryRequest) (refused string, err error) {
	answers := q.GetResponseNonce()
	if c.begun && answers != "" && answers != c.nonce() {
		return "", nil
	}
	if c.begun && answers != "" && c.open {
		c.open = false
		if q.GetErrorDetail() != nil {
			refused = c.latest
		}
	}
	names := slices.Compact(slices.Sorted(slices.Values(q.GetResourceNames())))
	if len(names) > maxNames {
		return "", tooMany()
	}
	if err := checkNames(names...); err != nil {
		return "", err
	}
	// No name means all, but for a stream that had named some.
	all := slices.Contains(names, everything) || len(names) == 0 && (!c.begun || c.all)
	names = slices.DeleteFunc(names, func(n string) bool { return n == everything })
	added := slices.ContainsFunc(names, func(n string) bool { return !slices.Contains(c.names, n) })
	c.due = c.due || !c.begun || added || all && !c.all
	c.begun, c.names, c.all = true, names, all
	return refused, nil
}

func (c *whole) nonce() string { return strconv.FormatUint(c.sent, 10) }

// answer implements session. A name that was given on this stream and is not
// any more is left out of what the others get; where it is the only one, the
// stream ends, for an empty response would say that nothing is wrong.
func (c *whole) answer(cat *catalog) (*discovery.DiscoveryResponse, error) {
	names := slices.Clone(c.names)
	if c.all {
		names = append(names, cat.all()...)
		names = slices.Compact(slices.Sorted(slices.Values(names)))
	}
	if len(names) == 0 {
		c.due = false
		return nil, nil
	}
	m, versions, changed := &discovery.DiscoveryResponse{TypeUrl: typeURL}, make(map[string]string), c.due
	for _, name := range names {
		r, err := cat.find(name)
		if err != nil && !c.given[name] {
			return nil, err
		}
		changed = changed || r.version != c.has[name]
		if err == nil {
			versions[name] = r.version
			m.Resources = append(m.Resources, r.body)
		}
	}
	if len(m.Resources) == 0 {
		return nil, status.Errorf(codes.PermissionDenied, "%q was given to this process and is not any more", brief(names[0]))
	}
	if !changed {
		return nil, nil
	}
	for name := range versions {
		c.given[name] = true
	}
	c.sent++
	c.due, c.open, c.has, c.latest = false, true, versions, versionOf(versions)
	m.VersionInfo, m.Nonce = c.latest, c.nonce()
	return m, nil
}
