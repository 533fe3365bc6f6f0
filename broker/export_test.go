package broker

import (
	"context"
	"log/slog"
	"os"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// ParseDenyFile reads a deny file with a text.
func ParseDenyFile(path string, td spiffeid.TrustDomain, text []byte) ([]Cutoff, error) {
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return nil, err
	}
	_, all, err := openDenyFile(path, td)
	return all, err
}

// MaxDenyFile is the most that is read of a deny file.
const MaxDenyFile = maxDenyFile

// DenyFileSize is how long a broker takes its deny file to be.
func DenyFileSize(b *Broker) *int { return &b.file.size }

// RunIndexer copies a record to an index until ctx ends.
func RunIndexer(ctx context.Context, record Follower, index Index) {
	newIndexer(Config{Record: record, Index: index, Origin: "b1", Log: slog.New(slog.DiscardHandler)}).run(ctx)
}

// StorePolicy is SetPolicy before it comes to the first session.
func (b *Broker) StorePolicy(p *Policy) { b.policy.Store(p) }
