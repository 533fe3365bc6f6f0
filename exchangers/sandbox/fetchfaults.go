package sandbox

import (
	"context"
	"fmt"
	"net/http"
	"slices"
)

// A FetchFault is what goes wrong when a cloud fetches an issuer's key set.
type FetchFault string

// The faults of a fetch.
const (
	FetchSlow  FetchFault = "slow-jwks" // no answer within the cloud's timeout
	FetchError FetchFault = "jwks-500"
)

// QueueFetch makes the next n fetches of key sets, after those already queued,
// fail. What is cached would hide them, so it is forgotten.
func (i *Issuers) QueueFetch(n int, fault FetchFault) {
	i.mu.Lock()
	for range n {
		i.queue = append(i.queue, fault)
	}
	i.mu.Unlock()
	i.Forget()
}

// QueuedFetches returns the faults that wait, first first.
func (i *Issuers) QueuedFetches() []FetchFault {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.queue)
}

// ClearFetches forgets the faults that are still queued.
func (i *Issuers) ClearFetches() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.queue = nil
}

// Forget drops what is cached of all issuers, as if MaxAge had passed.
func (i *Issuers) Forget() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.known = map[string]*issuer{}
}

// keySet gets a key set, or what is queued in its place.
func (i *Issuers) keySet(ctx context.Context, client *http.Client, uri string) ([]byte, error) {
	i.mu.Lock()
	var fault FetchFault
	if len(i.queue) > 0 {
		fault, i.queue = i.queue[0], i.queue[1:]
	}
	i.mu.Unlock()
	switch fault {
	case "":
		return i.get(ctx, client, uri)
	case FetchSlow:
		ctx, cancel := context.WithTimeout(ctx, i.cfg.Timeout)
		defer cancel()
		<-ctx.Done()
		return nil, fmt.Errorf("getting %s: %w", uri, ctx.Err())
	}
	return nil, fmt.Errorf("getting %s: status %d", uri, http.StatusInternalServerError)
}
