//go:build unix

package main

import (
	"context"
	"fmt"
	"io"
	"time"

	agentapi "github.com/credence-id/credence/agent/api"
)

// waitTime is longer than the agent waits for a provider.
const waitTime = 4 * time.Minute

// waitFor fetches a credential with patience, and tells why it takes so long:
// to a terminal at once, elsewhere after a second.
func waitFor(ctx context.Context, client agentapi.CredentialsClient, r *agentapi.FetchRequest, to io.Writer) (*agentapi.FetchResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, waitTime)
	defer cancel()
	start := time.Now()
	stream, err := client.Wait(ctx, r)
	if err != nil {
		return nil, err
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		if c := m.GetCredential(); c != nil {
			return c, nil
		}
		if p := m.GetProgress(); isTerminal(to) || p.GetNext() > start.Unix() {
			fmt.Fprintf(to, "credence: %s: %s\n", r.GetTarget(), p.GetText())
		}
	}
}
