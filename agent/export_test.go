package agent

import (
	"context"
	"crypto/x509"
	"time"

	"github.com/credence-id/credence/broker/api"
)

// NodeSigner is the ID of the authority that signed the node's SVID.
func (a *Agent) NodeSigner() string { return signerOf(a.node.certificate()) }

// ReadCRL is readCRL under one anchor, now.
func ReadCRL(m *api.CRL, anchor *x509.Certificate) error {
	pool := x509.NewCertPool()
	pool.AddCert(anchor)
	_, err := readCRL(m, pool, time.Now())
	return err
}

// Verify judges what a server shows.
func (a *Agent) Verify(shown ...*x509.Certificate) error { return a.verify(shown) }

// Fill spools a record that tells nothing.
func Fill(a *Agent, record []byte) error { return a.reports.Append(context.Background(), record) }

// Joined is joined.
var Joined = joined

// Digest is a Target's digest.
func (t Target) Digest() [32]byte { return t.digest() }

// PlainKey is the key of a seal where there is no keyring.
var PlainKey = plainKey

// MaxProving is how many are attested at once.
const MaxProving = maxProving

// A Pause is pause, for schedules.
type Pause struct{ p pause }

// Longer is how long to wait after another failure, among agents that are spread.
func (p *Pause) Longer(now time.Time, spread time.Duration) time.Duration {
	p.p.apart(spread)
	p.p.longer(now, maxPause)
	return p.p.until.Sub(now)
}

// SpreadOver is how long to wait before a contact that others make too.
func SpreadOver(now time.Time, d time.Duration) time.Duration {
	return spreadOver(now, d).until.Sub(now)
}

// HalfLife is halfLife.
var HalfLife = halfLife

// Tokens is how many JWT-SVIDs are held.
func (a *Agent) Tokens() int {
	a.tokens.mu.Lock()
	defer a.tokens.mu.Unlock()
	return a.tokens.count
}

// FillTokens fills the cache with tokens of others, from now on of such a life.
func (a *Agent) FillTokens(life time.Duration) {
	t, ends := &a.tokens, time.Now().Add(life)
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, held := range t.all {
		for k, e := range held {
			if k.target == "filler" {
				e.ends = ends
			}
		}
	}
	for n := 0; t.count < maxTokens; n++ {
		k := tokenKey{target: "filler", revision: uint64(n)}
		k.set[0] = byte(n % 64)
		if t.all[k.set] == nil {
			t.all[k.set] = make(map[tokenKey]*tokenEntry)
		}
		t.all[k.set][k] = &tokenEntry{ends: ends, renewAt: ends, stage: former}
		t.count++
	}
}

// Wake has reports shipped that wait.
func (a *Agent) Wake() { a.reports.Nudge() }

// Close ends an agent that has not run.
func Close(a *Agent) { a.reports.end() }

// Heads are those that an agent keeps.
type Heads struct{ h heads }

// OpenHeads reads what is kept in cfg.Data.
func OpenHeads(cfg Config) (*Heads, error) {
	h := &Heads{}
	return h, h.h.open(cfg)
}

func (h *Heads) Take(line []byte) error { return h.h.take(line) }
func (h *Heads) Told() [][]byte         { return h.h.told() }
func (h *Heads) Save() error            { return h.h.save() }
