package sds

import (
	"maps"
	"slices"
	"strconv"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secret "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// DeltaSecrets sends the secrets subscribed to, at once, and later those that
// have changed (xDS, incremental).
func (s *Server) DeltaSecrets(stream secret.SecretDiscoveryService_DeltaSecretsServer) error {
	return run(s, stream, newDelta())
}

// delta is the session of a stream that gets changes.
type delta struct {
	begun  bool
	names  map[string]bool
	all    bool
	known  map[string]string // to the client: versions by name
	given  map[string]bool   // names that the client has had
	first  bool              // nothing has been answered
	sent   uint64
	open   bool // the last response is neither acknowledged nor refused
	latest string
}

func newDelta() *delta {
	return &delta{names: make(map[string]bool), known: make(map[string]string), given: make(map[string]bool)}
}

// take implements session. Subscriptions count whatever response the request
// answers; what a client took or didn't take changes nothing: it is sent again
// when it has changed, or is subscribed to anew.
func (c *delta) take(q *discovery.DeltaDiscoveryRequest) (refused string, err error) {
	if c.open && q.GetResponseNonce() == c.nonce() {
		c.open = false
		if q.GetErrorDetail() != nil {
			refused = c.latest
		}
	}
	subscribed := q.GetResourceNamesSubscribe()
	if len(subscribed) > maxNames || len(q.GetInitialResourceVersions()) > maxNames {
		return "", tooMany()
	}
	if err := checkNames(subscribed...); err != nil {
		return "", err
	}
	if !c.begun {
		if err := c.resume(q.GetInitialResourceVersions()); err != nil {
			return "", err
		}
		c.all = len(subscribed) == 0
	}
	for _, name := range subscribed {
		if name == everything {
			c.all = true
			continue
		}
		c.names[name] = true
		if c.begun {
			delete(c.known, name) // it may have been dropped there
		}
	}
	for _, name := range q.GetResourceNamesUnsubscribe() {
		if name == everything {
			c.all = false
		}
		delete(c.names, name)
		delete(c.known, name)
	}
	c.begun = true
	if len(c.names) > maxNames {
		return "", tooMany()
	}
	return refused, nil
}

// resume takes in what a client has from an earlier stream.
func (c *delta) resume(versions map[string]string) error {
	for name, version := range versions {
		if err := checkNames(name); err != nil {
			return err
		}
		if len(version) > maxName {
			return status.Errorf(codes.InvalidArgument, "resource version %q: too long", brief(version))
		}
		c.known[name], c.given[name] = version, true
	}
	c.first = true
	return nil
}

func (c *delta) nonce() string { return strconv.FormatUint(c.sent, 10) }

// answer implements session. What the client has had and gets no more is told
// as removed.
func (c *delta) answer(cat *catalog) (*discovery.DeltaDiscoveryResponse, error) {
	names := slices.Collect(maps.Keys(c.names))
	if c.all {
		names = append(names, cat.all()...)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	m := &discovery.DeltaDiscoveryResponse{TypeUrl: typeURL}
	changed := make(map[string]string)
	for _, name := range names {
		r, err := cat.find(name)
		switch {
		case err != nil && (!c.given[name] || c.first && status.Code(err) == codes.Unavailable):
			return nil, err // a bundle that has yet to come is not one that has gone
		case err != nil:
			continue
		}
		if c.known[name] != r.version {
			changed[name] = r.version
			m.Resources = append(m.Resources, &discovery.Resource{Name: name, Version: r.version, Resource: r.body})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.known)) {
		_, err := cat.find(name)
		if err != nil {
			m.RemovedResources = append(m.RemovedResources, name)
		}
		if err != nil || !slices.Contains(names, name) {
			delete(c.known, name)
		}
	}
	c.first = false
	if len(m.Resources) == 0 && len(m.RemovedResources) == 0 {
		return nil, nil
	}
	for name, version := range changed {
		c.known[name], c.given[name] = version, true
	}
	c.sent++
	c.open, c.latest = true, versionOf(changed)
	m.SystemVersionInfo, m.Nonce = c.latest, c.nonce()
	return m, nil
}
