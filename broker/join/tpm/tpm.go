// Package tpm is the join method of machines that have a TPM 2.0.
//
// A node shows its endorsement key (EK), by the certificate that the TPM's maker
// gave it or bare, and an attestation key (AK) that its TPM made a moment ago. The
// certificate is verified to the roots that the rule names, as the TCG EK Credential
// Profile has it; or the rule names the key's hash. The AK has to be byte for byte of
// the one form that we name: it never leaves its TPM, and signs what that TPM says and
// nothing else. We encrypt 32 random bytes to the EK and the AK's name
// (TPM2_MakeCredential): only the TPM that holds both gives them back, and whoever
// reads along has nothing. The AK then signs a quote over our domain, our trust
// domain, those bytes, and the key that the node's SVID is for. So a
// recording is nothing, neither is what was answered to another broker or for
// another key, and what we are answered is nothing elsewhere: the bytes never leave
// the node, and are asked for once, while this join lasts.
//
// What runs on the machine and may use its TPM is the machine. The quote has the
// PCRs that the rule asks for (SHA-256), as facts to allow by. An
// EK has no proper end, but its certificate may: one that ended, or has no key usage
// for EKs, does no more, and its TPM is named by its hash instead.
//
// A node is banned by its EK, which is the same after the TPM was cleared, and comes
// back by itself, on any disk. Most TPMs have two, of RSA and of an elliptic curve:
// where certificates count, one kind of them does.
package tpm

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
)

// Method is the method's name, and its facts are node.tpm.*.
const Method = "tpm"

const (
	prefix = "node." + Method + "."
	// warnBefore a root ends.
	warnBefore = 90 * 24 * time.Hour
	secretSize = 32
)

// Config is the wiring of a method. All fields are required unless noted.
type Config struct {
	Settings    *Settings
	TrustDomain string
	Now         func() time.Time
	Log         *slog.Logger // is told of roots that end soon; nil discards
}

type method struct {
	cfg   Config
	roots []*x509.Certificate
	pool  *x509.CertPool    // of them
	names map[string]string // of registered TPMs, by the hash of the EK

	mu     sync.Mutex // guards warned
	warned time.Time  // of roots that end
}

// New returns the method of a rule.
func New(cfg Config) (join.Method, error) {
	if err := cfg.Settings.Validate(); err != nil {
		return nil, err
	}
	if cfg.TrustDomain == "" {
		return nil, errors.New("joining by tpm: a trust domain is required")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	m := &method{cfg: cfg, names: map[string]string{}}
	for name, hash := range cfg.Settings.EKHashes {
		m.names[hash] = name
	}
	var err error
	if m.roots, err = cfg.Settings.roots(); err != nil {
		return nil, err
	}
	m.pool = x509.NewCertPool()
	for _, c := range m.roots {
		m.pool.AddCert(c)
	}
	return m, nil
}

// Join verifies an EK, then that the node's TPM has it, and signs for us.
func (m *method) Join(ctx context.Context, shown []byte, ask join.Challenge) (join.Proof, error) {
	key, ok := join.Key(ctx)
	if !ok {
		return join.Proof{}, errors.New("joining by tpm: no key of the node's is known to bind its proof to")
	}
	now := m.cfg.Now()
	m.warn(ctx, now)
	e, err := readEvidence(shown, m.cfg.TrustDomain)
	if err != nil {
		return join.Proof{}, refused(err)
	}
	who, err := m.known(e, now)
	if err != nil {
		return join.Proof{}, refused(err)
	}
	secret := make([]byte, secretSize)
	_, _ = rand.Read(secret) // never fails (crypto/rand.Read)
	challenge, err := m.challenge(e, secret)
	if err != nil {
		return join.Proof{}, refused(err)
	}
	answer, err := ask(ctx, challenge)
	if err != nil {
		return join.Proof{}, err
	}
	pcrs, err := m.quoted(answer, e.ak, m.signed(secret, key))
	if err != nil {
		return join.Proof{}, refused(err)
	}
	for n, index := range m.cfg.Settings.sorted() {
		who.facts["pcr_"+strconv.Itoa(index)] = []string{hex.EncodeToString(pcrs[n])}
	}
	return who.proof()
}

func refused(err error) error { return fmt.Errorf("%w: %w", join.ErrEvidence, err) }

// signed is what the quote is over: ours alone, once, and for one key.
func (m *method) signed(secret []byte, key identity.KeyDigest) []byte {
	sum := sha256.Sum256(slices.Concat([]byte("credence join "+Method+" 1\x00"), []byte(m.cfg.TrustDomain), []byte{0}, secret, key[:]))
	return sum[:]
}

// challenge is what only the TPM that has both keys can read.
func (m *method) challenge(e evidence, secret []byte) ([]byte, error) {
	credential, encrypted, err := credentialFor(e.ek, e.ak, secret)
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{"credential": credential, "secret": encrypted, "pcrs": m.cfg.Settings.sorted()})
}

// quoted reads an answer, {"quote": TPMS_ATTEST, "signature": ASN.1, "pcrs": [...]},
// and returns the values of the PCRs.
func (m *method) quoted(answer []byte, by ak, data []byte) ([][]byte, error) {
	text, signature, pcrs, err := readAnswer(answer)
	if err != nil {
		return nil, err
	}
	if !by.signed(text, signature) {
		return nil, errors.New("the quote is not signed by the attestation key that was shown")
	}
	q, err := readQuote(text)
	if err != nil {
		return nil, err
	}
	if subtle.ConstantTimeCompare(q.data, data) != 1 {
		return nil, errors.New("the quote is not for our challenge: another TPM has the endorsement key, or it is of another join")
	}
	return pcrs, q.has(m.cfg.Settings.sorted(), pcrs)
}

// A machine is who a node says it is, until its TPM has answered.
type machine struct {
	name, hash string
	facts      map[string][]string // without the prefix
}

// known finds the machine of an EK: by its hash, or by its certificate.
func (m *method) known(e evidence, now time.Time) (machine, error) {
	if !m.cfg.Settings.counts(e.ek) {
		return machine{}, errors.New("the endorsement key is of the other kind than the rule takes (ek)")
	}
	hash, err := hashOf(e.ek)
	if err != nil {
		return machine{}, err
	}
	w := machine{name: hash[len("sha256:"):][:32], hash: hash, facts: map[string][]string{"ek_hash": {hash}}}
	name, registered := m.names[hash]
	if registered {
		w.name, w.facts["registered"] = name, []string{"true"}
	}
	switch {
	case len(e.chain) > 0 && len(m.roots) > 0:
		facts, err := m.certified(e.chain, now)
		if err != nil && !registered {
			return machine{}, err
		}
		for name, values := range facts {
			w.facts[name] = values
		}
	case !registered && len(e.chain) == 0 && len(m.roots) > 0:
		return machine{}, errors.New("the TPM shows no certificate, and ek_hashes do not have its endorsement key")
	case !registered:
		return machine{}, errors.New("ek_hashes do not have this endorsement key")
	}
	return w, nil
}

func (w machine) proof() (join.Proof, error) {
	proven := map[string][]string{}
	for name, values := range w.facts {
		proven[prefix+name] = values
	}
	facts, err := identity.NewFacts("node."+Method, proven)
	if err != nil {
		return join.Proof{}, refused(err)
	}
	return join.Proof{Name: w.name, Facts: facts, DurableKey: w.hash}, nil
}

// warn tells once a day of roots that end soon, or have ended.
func (m *method) warn(ctx context.Context, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now.Sub(m.warned) < 24*time.Hour {
		return
	}
	m.warned = now
	for _, c := range m.roots {
		if c.NotAfter.Before(now.Add(warnBefore)) {
			m.cfg.Log.WarnContext(ctx, "a root of TPMs' certificates ends: give their JoinRule the next one", "subject", c.Subject.String(), "ends", c.NotAfter)
		}
	}
}
