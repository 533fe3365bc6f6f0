// Package x509 is the join method of machines that have a certificate of the
// owner's PKI.
//
// A node shows its chain and signs our fresh challenge with its key. The chain is
// verified to the roots that the JoinRule names, for TLS clients, and against a
// list of what was revoked where the rule names one. What is signed has our trust
// domain, the challenge and the node's new key in it, so that neither a recording nor
// another service's signature does for us, and ours does for nobody else.
//
// Whoever has the key is the node, again and again: it rejoins by itself. It is
// banned by the root and the name that its certificate has, whatever its key; so
// a rule says by name_from which name a machine keeps.
package x509

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/possession"
)

// Method is the name of this join method.
const Method = "x509"

// maxList bounds a revocation list, in bytes.
const maxList = 1 << 20

// Settings are those of a JoinRule.
type Settings struct {
	// Roots (PEM) that chains lead to; required.
	Roots string `yaml:"roots"`
	// NameFrom is which name a node is known and banned by: dns, uri or cn; default
	// dns. A certificate has exactly one of it.
	NameFrom string `yaml:"name_from,omitempty"`
	// CRLFile is a revocation list (DER or PEM) of whoever signs the nodes'
	// certificates, read anew at each join. Once it has ended nobody joins.
	CRLFile string `yaml:"crl_file,omitempty"`
}

// Validate implements join.Settings.
func (s *Settings) Validate() error {
	if _, err := s.roots(); err != nil {
		return err
	}
	if !slices.Contains([]string{"", "dns", "uri", "cn"}, s.NameFrom) {
		return fmt.Errorf("name_from: %.40q: dns, uri or cn is wanted", s.NameFrom)
	}
	return nil
}

// Endings are when the roots end.
func (s *Settings) Endings() []join.Ending {
	all, _ := s.certificates()
	return join.EndingsOf(all...)
}

func (s *Settings) roots() (*x509.CertPool, error) {
	all, err := s.certificates()
	pool := x509.NewCertPool()
	for _, c := range all {
		pool.AddCert(c)
	}
	return pool, err
}

func (s *Settings) certificates() (all []*x509.Certificate, err error) {
	rest := []byte(s.Roots)
	for n := 0; ; n++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if n == 0 || len(strings.TrimSpace(string(rest))) > 0 {
				return nil, errors.New("roots: CA certificates in PEM are wanted, and nothing else")
			}
			return all, nil
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil || block.Type != "CERTIFICATE" || !c.IsCA {
			return nil, fmt.Errorf("roots: the PEM block %d is no CA certificate", n+1)
		}
		all = append(all, c)
	}
}

// Config is the wiring of a method. All fields are required.
type Config struct {
	Settings    *Settings
	TrustDomain string
	Now         func() time.Time
}

type method struct {
	cfg   Config
	roots *x509.CertPool
}

// New returns the method of a rule.
func New(cfg Config) (join.Method, error) {
	if err := cfg.Settings.Validate(); err != nil {
		return nil, err
	}
	roots, err := cfg.Settings.roots()
	return method{cfg, roots}, err
}

// Join verifies a chain, then that its key is the node's.
func (m method) Join(ctx context.Context, shown []byte, ask join.Challenge) (join.Proof, error) {
	chain, err := possession.Parse(shown)
	if err != nil {
		return join.Proof{}, err
	}
	verified, err := m.verify(chain)
	if err != nil {
		return join.Proof{}, err
	}
	proof, err := m.proof(verified)
	if err != nil {
		return join.Proof{}, fmt.Errorf("%w: %w", join.ErrEvidence, err)
	}
	if err := possession.Prove(ctx, ask, Method, m.cfg.TrustDomain, chain[0].PublicKey); err != nil {
		return join.Proof{}, err
	}
	return proof, nil
}

// verify returns the chain that leads to one of the roots.
func (m method) verify(chain []*x509.Certificate) ([]*x509.Certificate, error) {
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	if chain[0].IsCA || chain[0].KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return nil, fmt.Errorf("%w: the certificate is a CA's, or not for signatures", join.ErrEvidence)
	}
	found, err := chain[0].Verify(x509.VerifyOptions{
		Roots: m.roots, Intermediates: between, CurrentTime: m.cfg.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", join.ErrEvidence, err)
	}
	return found[0], m.revoked(found[0])
}

// revoked refuses a certificate that the list has. A list that can't be read, is
// of another issuer or has ended tells nothing: nobody joins by it.
func (m method) revoked(chain []*x509.Certificate) error {
	if m.cfg.Settings.CRLFile == "" {
		return nil
	}
	info, err := os.Stat(m.cfg.Settings.CRLFile)
	if err != nil {
		return fmt.Errorf("crl_file: %w", err)
	}
	if info.Size() > maxList {
		return fmt.Errorf("crl_file: %d bytes, at most %d are read", info.Size(), maxList)
	}
	text, err := os.ReadFile(m.cfg.Settings.CRLFile)
	if err != nil {
		return fmt.Errorf("crl_file: %w", err)
	}
	if block, _ := pem.Decode(text); block != nil {
		text = block.Bytes
	}
	list, err := x509.ParseRevocationList(text)
	if err != nil {
		return fmt.Errorf("crl_file: %w", err)
	}
	issuer := chain[0] // alone: it is a root itself
	if len(chain) > 1 {
		issuer = chain[1]
	}
	if err := list.CheckSignatureFrom(issuer); err != nil {
		return fmt.Errorf("crl_file: it is not of the CA that signed the certificate: %w", err)
	}
	if now := m.cfg.Now(); !now.Before(list.NextUpdate) {
		return fmt.Errorf("crl_file: it ended at %s", list.NextUpdate.UTC().Format(time.RFC3339))
	}
	for _, r := range list.RevokedCertificateEntries {
		if r.SerialNumber.Cmp(chain[0].SerialNumber) == 0 {
			return fmt.Errorf("%w: the certificate was revoked at %s", join.ErrEvidence, r.RevocationTime.UTC().Format(time.RFC3339))
		}
	}
	return nil
}

// proof is what a verified chain proves.
func (m method) proof(chain []*x509.Certificate) (join.Proof, error) {
	leaf, root := chain[0], chain[len(chain)-1]
	names := map[string][]string{"dns": leaf.DNSNames, "uri": nil, "cn": {leaf.Subject.CommonName}}
	for _, u := range leaf.URIs {
		names["uri"] = append(names["uri"], u.String())
	}
	from := m.cfg.Settings.NameFrom
	if from == "" {
		from = "dns"
	}
	if len(names[from]) != 1 || names[from][0] == "" {
		return join.Proof{}, fmt.Errorf("it has %d names of the kind %s, by exactly one of which its node is known (name_from)", len(names[from]), from)
	}
	facts := map[string][]string{
		"dns": leaf.DNSNames, "uri": names["uri"], "email": leaf.EmailAddresses, "serial": {hex.EncodeToString(leaf.SerialNumber.Bytes())},
		"cn": {leaf.Subject.CommonName}, "organization": leaf.Subject.Organization, "organizational_unit": leaf.Subject.OrganizationalUnit,
		"issuer_cn": {leaf.Issuer.CommonName}, "key": {digest(leaf)}, "root_key": {digest(root)},
	}
	proven := map[string][]string{}
	for name, values := range facts {
		if values = slices.DeleteFunc(slices.Clone(values), func(v string) bool { return v == "" }); len(values) > 0 {
			proven["node.x509."+name] = values
		}
	}
	f, err := identity.NewFacts("node."+Method, proven)
	if err != nil {
		return join.Proof{}, err
	}
	return join.Proof{Name: join.NodeName(names[from][0]), Facts: f, DurableKey: join.Durable(digest(root), from, names[from][0])}, nil
}

func digest(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return "sha256:" + hex.EncodeToString(sum[:])
}
