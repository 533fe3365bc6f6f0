//go:build unix

package workloadcmd

import (
	"context"
	"fmt"
	"time"

	agentapi "github.com/credence-id/credence/agent/api"
	"github.com/credence-id/credence/cmd/cli"
)

// waitTime is longer than the agent waits for a provider.
const waitTime = 4 * time.Minute

// waitFor fetches a credential with patience, and tells why it takes so long:
// to a terminal at once, elsewhere after a second.
func (p *verbs) waitFor(ctx context.Context, client agentapi.CredentialsClient, r *agentapi.FetchRequest) (*agentapi.FetchResponse, error) {
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
		if now := m.GetProgress(); cli.IsTerminal(p.Err) || now.GetNext() > start.Unix() {
			fmt.Fprintf(p.Err, "%s: %s: %s\n", p.name, r.GetTarget(), now.GetText())
		}
	}
}
