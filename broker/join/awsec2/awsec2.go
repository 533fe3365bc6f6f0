// Package awsec2 is the join method of EC2 instances that need no role: a node
// shows the identity document of its instance, with AWS' signature of the RSA-2048
// kind, as instance metadata gives it to every process there.
//
// Trusted are the certificates that the rule has for the document's region. The
// signature is verified first, over the content that it encloses; the document is
// read from that content and from nowhere else. There is exactly one signer, and the
// certificates that a message carries are never asked.
//
// The document never changes while an instance runs, names no audience, and any
// process of the instance may read it: it proves nothing of who shows it. So trust is
// on first use. With the document a node shows a key of its own and signs our
// challenge with it; the first key that joins, within max_age of the instance's start,
// holds the instance for good, and a copy of the document is nothing without it. Who
// is first with a copy, before the instance itself, is the instance to us, and the
// instance's own join is refused, which its log and the failed joins in the record
// show. Where a role can be had, aws_iam proves more.
//
// A node is banned by account, region and instance. It comes back by itself, by the
// document and its key, at any age; one that lost its key stays out, unless the rule
// says rejoin: then whoever is first after each start of the instance holds it until
// the next. Elsewhere the key is nothing: what it signs names us and this use.
package awsec2

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/bearer"
	"github.com/credence-id/credence/broker/join/pkcs7"
)

// Method is the method's name, and its facts are node.aws_ec2.*.
const Method = "aws_ec2"

const (
	prefix = "node." + Method
	// skew is how far ahead a start may be.
	skew = time.Minute
	// heldFor is how long an instance is its key's: longer than they run.
	heldFor = 10 * 365 * 24 * time.Hour
	// warnBefore a certificate ends.
	warnBefore = 90 * 24 * time.Hour
)

// A Hold gives what a digest stands for to a holder, for whom it succeeds again and
// again until it ends; Held says whether that one has it. An error of Hold for which
// Config.Taken holds means that another has.
type (
	Hold func(ctx context.Context, digest [sha256.Size]byte, holder string, ends, now time.Time) error
	Held func(ctx context.Context, digest [sha256.Size]byte, holder string, now time.Time) (bool, error)
)

// Config is the wiring of a method. All fields are required unless noted.
type Config struct {
	Settings    *Settings
	TrustDomain string
	Hold        Hold
	Held        Held
	Taken       func(error) bool
	Now         func() time.Time
	Log         *slog.Logger // is told of certificates that end soon; nil discards
}

type method struct {
	cfg          Config
	certificates []certificate

	mu     sync.Mutex // guards warned
	warned time.Time  // of certificates that end
}

// New returns the method of a rule.
func New(cfg Config) (join.Method, error) {
	if err := cfg.Settings.Validate(); err != nil {
		return nil, err
	}
	if cfg.TrustDomain == "" {
		return nil, errors.New("joining by aws_ec2: a trust domain is required")
	}
	if cfg.Settings.MaxAge == 0 {
		settings := *cfg.Settings
		settings.MaxAge = bearer.Duration(defaultMaxAge)
		cfg.Settings = &settings
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	m := &method{cfg: cfg}
	var err error
	if m.certificates, err = cfg.Settings.parse(); err != nil {
		return nil, err
	}
	return m, nil
}

// Join verifies a document, then that the node has the key that it shows, and
// that the instance is that key's.
func (m *method) Join(ctx context.Context, evidence []byte, ask join.Challenge) (join.Proof, error) {
	now := m.cfg.Now()
	m.warn(ctx, now)
	d, key, err := m.read(evidence, now)
	if err != nil {
		return join.Proof{}, fmt.Errorf("%w: %w", join.ErrEvidence, err)
	}
	challenge := make([]byte, 32)
	rand.Read(challenge) // never fails: crypto/rand ends the program instead
	answer, err := ask(ctx, challenge)
	if err != nil {
		return join.Proof{}, err
	}
	sum := sha256.Sum256(slices.Concat([]byte("credence join aws_ec2 1\x00"), []byte(m.cfg.TrustDomain), []byte{0}, challenge))
	if !ecdsa.VerifyASN1(key, sum[:], answer) {
		return join.Proof{}, fmt.Errorf("%w: the challenge is not signed by the key that was shown", join.ErrEvidence)
	}
	if err := m.hold(ctx, d, key, m.cfg.Now()); err != nil {
		return join.Proof{}, err
	}
	return d.proof()
}

// read verifies what a node shows, {"document": PKCS #7 in base64, "key": DER}.
func (m *method) read(evidence []byte, now time.Time) (document, *ecdsa.PublicKey, error) {
	all, err := bearer.Object(evidence)
	if err != nil {
		return document{}, nil, err
	}
	text, ok := all["document"].(string)
	shown, is := all["key"].(string)
	if !ok || !is || len(all) != 2 {
		return document{}, nil, errors.New("document and key are wanted, and nothing else")
	}
	key, err := publicKey(shown)
	if err != nil {
		return document{}, nil, err
	}
	der, err := base64.StdEncoding.Strict().DecodeString(strings.ReplaceAll(text, "\n", ""))
	if err != nil {
		return document{}, nil, errors.New("the document is not in base64")
	}
	d, err := m.verify(der, now)
	return d, key, err
}

// verify reads a document that one of the region's certificates signed.
func (m *method) verify(der []byte, now time.Time) (document, error) {
	message, err := pkcs7.Parse(der)
	if err != nil {
		return document{}, fmt.Errorf("the document's signature: %w", err)
	}
	content, by, err := m.content(message)
	if err != nil {
		return document{}, fmt.Errorf("the document's signature: %w", err)
	}
	if now.Before(by.NotBefore) || now.After(by.NotAfter) {
		return document{}, fmt.Errorf("the certificate for %s that signed is good from %s to %s: give the rule the one that AWS has now", by.region, by.NotBefore, by.NotAfter)
	}
	d, err := readDocument(content)
	if err != nil {
		return document{}, fmt.Errorf("the document: %w", err)
	}
	if d.region != by.region {
		return document{}, fmt.Errorf("the document is of %s, and is signed by a certificate of %s", d.region, by.region)
	}
	if d.started.After(now.Add(skew)) {
		return document{}, fmt.Errorf("the instance starts at %s: are both clocks right?", d.started)
	}
	return d, nil
}

// content is what a message holds once it is signed by one of the rule's
// certificates, and says by which: what its bag holds decides nothing, and may be
// nothing but that very certificate.
func (m *method) content(message *pkcs7.Message) ([]byte, certificate, error) {
	for _, c := range m.certificates {
		content, err := message.Verify(c.Certificate)
		if err != nil {
			continue // regions may have used one name and serial number
		}
		if bag := message.Bag(); bag != nil && !bytes.Equal(bag, c.Raw) {
			return nil, certificate{}, errors.New("it carries other certificates than its signer's")
		}
		return content, c, nil
	}
	return nil, certificate{}, errors.New("it is signed by none of the certificates of the rule")
}

// publicKey takes a P-256 key: the agent makes no other.
func publicKey(text string) (*ecdsa.PublicKey, error) {
	der, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(der) > 128 {
		return nil, errors.New("the key is not in base64, or too long")
	}
	any, err := x509.ParsePKIXPublicKey(der)
	key, ok := any.(*ecdsa.PublicKey)
	if err != nil || !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("the key is not of P-256")
	}
	return key, nil
}

// hold gives the instance to the key, if it is the first within the time, or has
// it already.
func (m *method) hold(ctx context.Context, d document, key *ecdsa.PublicKey, now time.Time) error {
	der, err := x509.MarshalPKIXPublicKey(key) // in one encoding, whatever came
	if err != nil {
		return err
	}
	sum := sha256.Sum256(der)
	holder := hex.EncodeToString(sum[:])
	whole, start := d.digest(""), d.digest(d.started.UTC().Format(time.RFC3339))
	for _, digest := range [][sha256.Size]byte{whole, start} { // whatever rejoin says now
		if ok, err := m.cfg.Held(ctx, digest, holder, now); err != nil || ok {
			return err
		}
	}
	if age, most := now.Sub(d.started), time.Duration(m.cfg.Settings.MaxAge); age > most {
		return fmt.Errorf("%w: %s was started %s ago, and this key did not hold it before: max_age is %s", join.ErrEvidence, d.instance, age.Truncate(time.Second), most)
	}
	digest := whole
	if m.cfg.Settings.Rejoin {
		digest = start
	}
	if err := m.cfg.Hold(ctx, digest, holder, now.Add(heldFor), now); err != nil {
		if m.cfg.Taken(err) {
			err = errors.Join(join.ErrEvidence, fmt.Errorf("another key holds %s (rejoin: true lets its next start be another's)", d.instance))
		}
		return err
	}
	return nil
}

// digest is what an instance, or one start of it, is held under.
func (d document) digest(start string) [sha256.Size]byte {
	return sha256.Sum256([]byte(strings.Join([]string{"join " + Method, d.account, d.region, d.instance, start}, "\x00")))
}

// proof is what being that instance proves.
func (d document) proof() (join.Proof, error) {
	facts, err := identity.NewFacts(prefix, map[string][]string{
		prefix + ".account": {d.account}, prefix + ".region": {d.region}, prefix + ".instance_id": {d.instance},
		prefix + ".image_id": {d.image}, prefix + ".instance_type": {d.kind}, prefix + ".availability_zone": {d.zone},
		prefix + ".architecture": {d.architecture}, prefix + ".private_ip": {d.privateIP},
	})
	if err != nil {
		return join.Proof{}, err
	}
	return join.Proof{Name: d.instance, Facts: facts, DurableKey: join.Durable(d.account, d.region, d.instance)}, nil
}

// warn tells once a day of certificates that end soon, or have ended.
func (m *method) warn(ctx context.Context, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now.Sub(m.warned) < 24*time.Hour {
		return
	}
	m.warned = now
	for _, c := range m.certificates {
		if c.NotAfter.Before(now.Add(warnBefore)) {
			m.cfg.Log.WarnContext(ctx, "a certificate by which EC2 instances join ends: give their JoinRule the next one", "region", c.region, "ends", c.NotAfter)
		}
	}
}
