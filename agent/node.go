package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/federation"
)

// maxKept bounds what is read back from the data directory.
const maxKept = 1 << 20

// nodeState is the node's own SVID and the trust bundle, kept over a restart
// in two files, each replaced whole: the SVID with its key, and the bundle.
type nodeState struct {
	dir string

	mu      sync.Mutex // guards what follows
	cert    *tls.Certificate
	renewAt time.Time
	bundle  *spiffebundle.Bundle // nil: the first contact is by pin

	heeded   revocation // for which it was renewed last
	disowned bool       // the broker does not take it

	restarted bool // there was one when the agent began

	due chan struct{} // of capacity 1: renew it now
}

func (n *nodeState) svidFile() string   { return filepath.Join(n.dir, "node.pem") }
func (n *nodeState) bundleFile() string { return filepath.Join(n.dir, "bundle.json") }

// load takes up what was kept. What is absent is obtained anew; what cannot be
// read is an error, for it may be mended by a person.
func (n *nodeState) load(cfg Config) error {
	n.dir = cfg.Data
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return err
	}
	text, err := readKept(n.bundleFile())
	switch {
	case err == nil:
		if n.bundle, err = parseBundle(cfg.TrustDomain, text); err != nil {
			return fmt.Errorf("%s: %w", n.bundleFile(), err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	case len(cfg.Bundle) > 0:
		if n.bundle, err = parseTrust(cfg.TrustDomain, cfg.Bundle); err != nil {
			return err
		}
	case len(cfg.CAPins) == 0:
		return errors.New("neither trust.ca_pin nor trust.bundle is set: without one of them any server could pose as the broker")
	}
	for _, pin := range cfg.CAPins {
		if err := CheckPin(pin); err != nil {
			return err
		}
	}
	text, err = readKept(n.svidFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	cert, err := readSVID(text)
	if err != nil {
		return fmt.Errorf("%s: %w; remove it to join again", n.svidFile(), err)
	}
	id, err := federation.CheckForm(cert.Leaf)
	if err != nil || id.TrustDomain() != cfg.TrustDomain {
		return fmt.Errorf("%s: it is not the SVID of a node of %s; remove it to join again", n.svidFile(), cfg.TrustDomain)
	}
	// One that has ended says who this node was.
	n.cert, n.renewAt, n.restarted = &cert, halfLife(cert.Leaf.NotBefore, cert.Leaf.NotAfter), true
	return nil
}

// readSVID reads what write wrote: certificates and one key that fits, in
// PKCS #8. crypto/tls would take other forms of key too.
func readSVID(text []byte) (tls.Certificate, error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case "CERTIFICATE":
		case "PRIVATE KEY":
			if _, err := x509.ParsePKCS8PrivateKey(block.Bytes); err != nil {
				return tls.Certificate{}, fmt.Errorf("its key is not in PKCS #8: %w", err)
			}
		default:
			return tls.Certificate{}, fmt.Errorf("it holds a PEM block %q", block.Type)
		}
	}
	return tls.X509KeyPair(text, text)
}

func readKept(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxKept {
		return nil, fmt.Errorf("%s has %d bytes: not ours", path, info.Size())
	}
	return os.ReadFile(path)
}

func (n *nodeState) certificate() *tls.Certificate {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cert
}

// Why a node must join: what it has is good for nothing.
var (
	errMustJoin = errors.New("this node must join")
	errNever    = fmt.Errorf("%w: it has not yet", errMustJoin)
	errOver     = fmt.Errorf("%w again: its SVID has ended", errMustJoin)
	errDisowned = fmt.Errorf("%w again: the broker does not take its SVID, which has not ended", errMustJoin)
)

// mustJoin is nil while the SVID is good.
func (n *nodeState) mustJoin(now time.Time) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.cert == nil:
		return errNever
	case !now.Before(n.cert.Leaf.NotAfter):
		return errOver
	case n.disowned:
		return errDisowned
	}
	return nil
}

// disown notes that the broker does not take the SVID.
func (n *nodeState) disown() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.disowned = true
}

// nudge has the SVID looked at: it may be due.
func (n *nodeState) nudge() {
	select {
	case n.due <- struct{}{}:
	default:
	}
}

// drop forgets an SVID that the broker no longer takes.
func (n *nodeState) drop() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cert = nil
	_ = os.Remove(n.svidFile())
}

// keep makes an answer of the broker the node's own, on disk first.
func (a *Agent) keep(joined *api.Joined, key *ecdsa.PrivateKey) error {
	cert := &tls.Certificate{PrivateKey: key, Certificate: joined.GetChain()}
	if len(joined.GetChain()) == 0 || len(joined.GetChain()) > maxChain {
		return fmt.Errorf("the broker sent a chain of %d certificates", len(joined.GetChain()))
	}
	leaf, err := x509.ParseCertificate(joined.GetChain()[0])
	if err != nil {
		return fmt.Errorf("parsing the node's SVID: %w", err)
	}
	cert.Leaf = leaf
	id, err := federation.CheckForm(leaf)
	if err != nil {
		return fmt.Errorf("the node's SVID: %w", err)
	}
	if id.String() != joined.GetNodeId() || id.TrustDomain() != a.cfg.TrustDomain || !key.PublicKey.Equal(leaf.PublicKey) {
		return fmt.Errorf("the broker sent an SVID of %s that is not this node's", id)
	}
	if now := a.cfg.Now(); !now.Before(leaf.NotAfter) {
		return fmt.Errorf("the node's SVID ended at %s, and it is %s here: is this machine's clock right?", leaf.NotAfter, now)
	}
	bundle, err := parseBundle(a.cfg.TrustDomain, joined.GetBundle())
	if err != nil {
		return fmt.Errorf("parsing the trust bundle: %w", err)
	}
	if len(bundle.X509Authorities()) == 0 {
		return errors.New("the broker sent a trust bundle without an X.509 authority")
	}
	if err := a.node.write(cert, key, joined.GetBundle()); err != nil {
		return err
	}
	a.node.mu.Lock()
	a.node.cert, a.node.renewAt, a.node.bundle, a.node.disowned = cert, halfLife(a.cfg.Now(), leaf.NotAfter), bundle, false
	a.node.mu.Unlock()
	a.bundles.own(a.cfg.TrustDomain, bundle)
	a.triedNode(nil)
	return nil
}

// triedNode notes how a try to get the node's SVID ended.
func (a *Agent) triedNode(err error) {
	a.contact.renewed(err)
	a.observe(Event{What: EventNode, Outcome: outcomeOf(err)})
}

func (n *nodeState) write(cert *tls.Certificate, key *ecdsa.PrivateKey, bundle []byte) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	var text bytes.Buffer
	for _, c := range cert.Certificate {
		_ = pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: c}) // a Buffer takes everything
	}
	_ = pem.Encode(&text, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err := renameio.WriteFile(n.bundleFile(), bundle, 0o600, renameio.WithTempDir(n.dir)); err != nil {
		return fmt.Errorf("keeping the trust bundle: %w", err)
	}
	if err := renameio.WriteFile(n.svidFile(), text.Bytes(), 0o600, renameio.WithTempDir(n.dir)); err != nil {
		return fmt.Errorf("keeping the node's SVID: %w", err)
	}
	return nil
}

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("making a key: %w", err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, nil, fmt.Errorf("making a key: %w", err)
	}
	return key, der, nil
}

// keepNode renews the node's SVID at a jittered half of its life. Each renewal
// brings a new connection: the broker takes the last serial and the last but
// one.
func (a *Agent) keepNode(ctx context.Context) error {
	wait := a.node.renewIn(a.cfg.Now())
	for {
		a.pulses.node.rest()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		case <-a.node.due:
		}
		a.pulses.node.work(a.cfg.Now())
		if a.node.mustJoin(a.cfg.Now()) != nil {
			a.link.Load().replace() // the watch loop joins again
			wait = lookForEvidence
			continue
		}
		if wait = a.node.renewIn(a.cfg.Now()); wait > time.Second {
			continue
		}
		err := a.renewNode(ctx)
		wait = a.node.renewIn(a.cfg.Now())
		if err != nil && ctx.Err() == nil {
			a.triedNode(err)
			a.cfg.Log.WarnContext(ctx, "node's SVID not renewed", "error", err)
			wait = max(wait, maxPause/2+mathrand.N(maxPause/2))
		}
	}
}

func (n *nodeState) renewIn(now time.Time) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cert == nil {
		return time.Second
	}
	return max(n.renewAt.Sub(now), time.Second)
}

// renewIfRevoked has the SVID renewed at once where its issuing CA is revoked:
// the broker still takes it, knowing its key. Once for each revocation: of a CA
// that goes on signing, the next SVID may be from the same second.
func (n *nodeState) renewIfRevoked(c *Cutoffs, now time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if c == nil || n.cert == nil {
		return
	}
	signer := signerOf(n.cert)
	r := revocation{signer, c.authorities[signer]}
	issued := n.cert.Leaf.NotBefore.Add(backdate) // in whole seconds
	if r.before.IsZero() || issued.After(r.before) || r == n.heeded {
		return
	}
	n.heeded, n.renewAt = r, now
	n.nudge()
}

// A revocation is of what an authority signed before a time.
type revocation struct {
	authority string
	before    time.Time
}

// signerOf is the ID of the authority that signed an SVID, as brokers name it.
func signerOf(cert *tls.Certificate) string {
	if len(cert.Certificate) < 2 { // an anchor
		return hex.EncodeToString(cert.Leaf.AuthorityKeyId[:min(16, len(cert.Leaf.AuthorityKeyId))])
	}
	issuer, err := x509.ParseCertificate(cert.Certificate[1])
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(issuer.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:16])
}

// renewNode gets the node its next SVID: by the one it has if a token made it a
// node, for that is spent; else by proving anew what it is.
func (a *Agent) renewNode(ctx context.Context) error {
	if a.cfg.Join.Method != tokenMethod {
		evidence, err := a.evidence(ctx)
		if err != nil {
			return err
		}
		if err := a.join(ctx, evidence); err != nil {
			return err
		}
		return a.relink()
	}
	key, der, err := newKey()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	joined, err := api.NewNodeClient(a.fresh().conn).Renew(ctx, &api.RenewRequest{PublicKey: der})
	if err != nil {
		return err
	}
	if err := a.keep(joined, key); err != nil {
		return err
	}
	return a.relink()
}

// keepBundle replaces the kept trust bundle.
func (n *nodeState) keepBundle(document []byte, parsed *spiffebundle.Bundle) error {
	if err := renameio.WriteFile(n.bundleFile(), document, 0o600, renameio.WithTempDir(n.dir)); err != nil {
		return fmt.Errorf("keeping the trust bundle: %w", err)
	}
	n.mu.Lock()
	n.bundle = parsed
	n.mu.Unlock()
	return nil
}

// NodeID is the node's SPIFFE ID, empty before it has joined.
func (a *Agent) NodeID() string {
	cert := a.node.certificate()
	if cert == nil {
		return ""
	}
	return cert.Leaf.URIs[0].String()
}
