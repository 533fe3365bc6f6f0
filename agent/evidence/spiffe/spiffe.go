// Package spiffe asks another agent, SPIRE's say, for the X509-SVID by which a node
// joins: over the SPIFFE Workload API, as this process.
package spiffe

import (
	"context"
	"crypto/tls"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// Pair returns what the Workload API at a socket, a path, gives us at present: of
// several SVIDs the first, which is the default one (SPIFFE Workload API §5.3).
func Pair(socket string) func(context.Context) (tls.Certificate, error) {
	return func(ctx context.Context) (tls.Certificate, error) {
		svid, err := workloadapi.FetchX509SVID(ctx, workloadapi.WithAddr("unix://"+socket))
		if err != nil {
			return tls.Certificate{}, fmt.Errorf("asking the Workload API at join.socket: %w", err)
		}
		pair := tls.Certificate{PrivateKey: svid.PrivateKey}
		for _, c := range svid.Certificates {
			pair.Certificate = append(pair.Certificate, c.Raw)
		}
		return pair, nil
	}
}
