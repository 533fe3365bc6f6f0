package federationtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// An X509 is a vector of section B: a chain that a peer shows, or that we
// might show or issue.
type X509 struct {
	Name   string             // begins with the vector's number
	Shown  [][]byte           // DER, leaf first; some do not parse
	Key    crypto.Signer      // the leaf's
	Bundle *x509bundle.Bundle // of the trust domain
	ID     string             // what the leaf says
	Peer   bool               // to be accepted from a peer
	Own    bool               // the leaf is fit to be shown as ours
	Issue  Issue              // what the documents say of issuing it
}

// Issue says whether certificates of a shape may be issued.
type Issue int

// The zero Issue: the shape is no matter of issuing (a time, a chain).
const (
	NotIssued Issue = iota
	May
	MustNot
)

// builder makes the vectors of one path in example.org.
type builder struct {
	t        testing.TB
	now      time.Time
	path     string
	w        string // the ordinary ID
	td       spiffeid.TrustDomain
	root     *CA
	all      []X509
	ordinary *x509bundle.Bundle
}

// X509Vectors are certificate shapes around now, most of them of the SPIFFE ID
// that path has in example.org, with one fault each.
func X509Vectors(t testing.TB, now time.Time, path string) []X509 {
	t.Helper()
	td := spiffeid.RequireTrustDomainFromString("example.org")
	root := NewCA(t, now, caID(t, "spiffe://example.org"))
	b := &builder{t: t, now: now, path: path, w: td.IDString() + path, td: td, root: root, ordinary: root.Bundle(td)}
	b.good()
	b.uris()
	b.otherTrustDomains()
	b.usages()
	b.lives()
	b.chains()
	b.authorities()
	return b.all
}

func caID(t testing.TB, id string) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.ExtraExtensions = append(c.ExtraExtensions, RawSAN(t, false, id)) }
}

func both(edits ...func(*x509.Certificate)) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		for _, edit := range edits {
			if edit != nil {
				edit(c)
			}
		}
	}
}

type verdict struct {
	peer, own bool
	issue     Issue
}

var (
	fine    = verdict{true, true, May}        // for everybody
	refused = verdict{false, false, MustNot}  // by everybody
	foul    = verdict{true, false, MustNot}   // §5.2 has a validator take what §4 forbids to issue
	atPeers = verdict{false, true, NotIssued} // the leaf's form is right
)

// leaf adds a vector of one leaf under ca, and what stands above it.
func (b *builder) leaf(name string, v verdict, ca *CA, above []*x509.Certificate, edit func(*x509.Certificate), uris ...string) *X509 {
	key := crypto.Signer(NewKey(b.t))
	return b.add(name, v, key, ca.leaf(b.t, key, edit, uris...), above, strings.Join(uris, " "))
}

func (b *builder) add(name string, v verdict, key crypto.Signer, leaf []byte, above []*x509.Certificate, id string) *X509 {
	shown := [][]byte{leaf}
	for _, c := range above {
		shown = append(shown, c.Raw)
	}
	b.all = append(b.all, X509{Name: name, Shown: shown, Key: key, Bundle: b.ordinary, ID: id, Peer: v.peer, Own: v.own, Issue: v.issue})
	return &b.all[len(b.all)-1]
}

// simple is a leaf under the root with the ordinary ID.
func (b *builder) simple(name string, v verdict, edit func(*x509.Certificate)) {
	b.leaf(name, v, b.root, nil, edit, b.w)
}

func (b *builder) good() {
	b.simple("XC-02 empty subject and critical SAN", fine, nil)
	b.simple("XC-03 no basic constraints", fine, func(c *x509.Certificate) { c.BasicConstraintsValid = false })
	b.simple("XC-04 no extended usage", fine, func(c *x509.Certificate) { c.ExtKeyUsage = nil })
	b.simple("XC-05 extended usage is critical", fine, func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, extension(b.t, oidExtKeyUsage, true, []asn1.ObjectIdentifier{oidServerAuth, oidClientAuth}))
	})
	b.simple("XC-08 keyAgreement beside", fine, usage(x509.KeyUsageDigitalSignature|x509.KeyUsageKeyAgreement))
	b.simple("XC-09 three DNS names beside", fine, b.named(func(c *x509.Certificate) { c.DNSNames = []string{"a.example", "b.example", "c.example"} }))
	b.simple("XC-10 an address and a mailbox beside", fine, b.named(func(c *x509.Certificate) {
		c.IPAddresses, c.EmailAddresses = []net.IP{net.IPv4(192, 0, 2, 1)}, []string{"a@example.org"}
	}))
	b.simple("XC-65 unknown extension", fine, unknown(false))
	b.keys()
}

// keys adds the kinds of key that a leaf may have.
func (b *builder) keys() {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		b.t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		b.t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.t.Fatal(err)
	}
	add := func(name string, key crypto.Signer, edit func(*x509.Certificate)) {
		b.add(name, fine, key, b.root.leaf(b.t, key, edit, b.w), nil, b.w)
	}
	add("XC-07 RSA with keyEncipherment", rsaKey, usage(x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment))
	add("XC-12 P-384", p384, nil)
	add("XC-13 Ed25519", edKey, nil)
}

// named has crypto/x509 make the SAN, of the ordinary ID and more names.
func (b *builder) named(edit func(*x509.Certificate)) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.ExtraExtensions = nil
		c.URIs = append(c.URIs, mustURL(b.t, b.w))
		edit(c)
	}
}

func usage(u x509.KeyUsage) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.KeyUsage = u }
}

func unknown(critical bool) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: critical, Value: []byte{5, 0}})
	}
}

// uris are leaves whose URI SANs are not one SPIFFE ID of a workload.
func (b *builder) uris() {
	bad := func(name string, uris ...string) { b.leaf(name, refused, b.root, nil, nil, uris...) }
	bad("XC-22 no SAN")
	b.leaf("XC-23 DNS names alone", refused, b.root, nil, func(c *x509.Certificate) { c.DNSNames = []string{"a.example"} })
	bad("XC-24 two SPIFFE IDs", b.w, b.w+"x")
	bad("XC-25 a SPIFFE ID and another URI", b.w, "https://example.org/w")
	bad("one SPIFFE ID twice", b.w, b.w)
	b.leaf("XC-27 in the subject alone", refused, b.root, nil, func(c *x509.Certificate) { c.Subject.CommonName = b.w })
	b.leaf("XC-28 as a DNS name", refused, b.root, nil, func(c *x509.Certificate) { c.DNSNames = []string{b.w} })
	bad("XC-29 scheme https", "https://example.org"+b.path)
	bad("XC-30 scheme in capitals", "SPIFFE://example.org"+b.path)
	bad("XC-32 no path", "spiffe://example.org")
	bad("XC-33 path of a slash", "spiffe://example.org/")
	bad("XC-34 slash at the end", b.w+"/")
	bad("XC-35 percent-encoded", "spiffe://example.org/%77")
	bad("XC-37 fragment", b.w+"#f")
	bad("XC-38 empty fragment", b.w+"#")
	bad("empty query", b.w+"?")
	bad("XC-39 port", "spiffe://example.org:8080"+b.path)
	bad("XC-40 user", "spiffe://u@example.org"+b.path)
	bad("XC-42 empty", "")
	b.leaf("XC-48 2048 bytes", fine, b.root, nil, nil, "spiffe://example.org/"+strings.Repeat("a", 2027))
	bad("2049 bytes", "spiffe://example.org/"+strings.Repeat("a", 2028))
}

// otherTrustDomains are IDs whose trust domain is not a common DNS name.
// crypto/x509 does not parse those of them that break DNS's rules for labels:
// legal as they are, they can't be had in certificates.
func (b *builder) otherTrustDomains() {
	add := func(name string, v verdict, domain string, edit func(*x509.Certificate)) {
		td := spiffeid.RequireTrustDomainFromString(domain)
		root := NewCA(b.t, b.now, edit)
		b.leaf(name, v, root, nil, nil, td.IDString()+b.path).Bundle = root.Bundle(td)
	}
	unparsed := verdict{false, false, NotIssued}
	add("XC-43 empty label", unparsed, "example..org", nil)
	add("XC-44 dot first", unparsed, ".example.org", nil)
	add("XC-45 underscore", fine, "trust_domain.example", nil)
	add("XC-47 an address under a name constraint", verdict{false, true, NotIssued}, "1.2.3.4",
		func(c *x509.Certificate) { c.ExcludedURIDomains = []string{"evil.example"} })
	add("an address", fine, "1.2.3.4", nil)
	add("XC-49 255 bytes", fine, strings.Repeat("a", 255), nil)
	add("XC-50 dot last", unparsed, "example.org.", nil)
	add("256 bytes", refused, strings.Repeat("a", 256), nil)
}

// usages are leaves that say the wrong thing of what they are for.
func (b *builder) usages() {
	const ds = x509.KeyUsageDigitalSignature
	b.simple("XC-53 empty subject and SAN not critical", foul, func(c *x509.Certificate) {
		c.ExtraExtensions = []pkix.Extension{RawSAN(b.t, false, b.w)}
	})
	b.simple("XC-54 a CA", refused, func(c *x509.Certificate) { c.IsCA = true })
	b.simple("XC-55 a signing certificate", refused, both(usage(x509.KeyUsageCertSign), func(c *x509.Certificate) { c.IsCA = true }))
	b.simple("keyCertSign", refused, usage(ds|x509.KeyUsageCertSign))
	b.simple("XC-57 cRLSign", refused, usage(ds|x509.KeyUsageCRLSign))
	b.simple("XC-58 no key usage", foul, usage(0))
	b.simple("XC-59 key usage not critical", foul, func(c *x509.Certificate) {
		c.KeyUsage = 0
		c.ExtraExtensions = append(c.ExtraExtensions, extension(b.t, oidKeyUsage, false, asn1.BitString{Bytes: []byte{0x80}, BitLength: 1}))
	})
	b.simple("XC-60 no digitalSignature", foul, usage(x509.KeyUsageKeyEncipherment))
	purpose := func(name string, uses ...x509.ExtKeyUsage) {
		b.simple(name, foul, func(c *x509.Certificate) { c.ExtKeyUsage = uses })
	}
	purpose("serverAuth alone", x509.ExtKeyUsageServerAuth)
	purpose("XC-62 clientAuth alone", x509.ExtKeyUsageClientAuth)
	purpose("XC-63 codeSigning alone", x509.ExtKeyUsageCodeSigning)
	b.simple("XC-64 unknown critical extension", refused, unknown(true))
}

func (b *builder) lives() {
	over := verdict{false, false, NotIssued}
	b.simple("expired", over, func(c *x509.Certificate) { c.NotAfter = b.now.Add(-time.Second) })
	b.simple("XC-67 valid in a minute", over, func(c *x509.Certificate) { c.NotBefore = b.now.Add(time.Minute) })
	short := b.root.Sub(b.t, func(c *x509.Certificate) { c.NotAfter = b.now.Add(time.Minute) })
	b.leaf("XC-68 outlives its issuer", verdict{true, true, NotIssued}, short, certs(short), nil, b.w)
}

func certs(all ...*CA) []*x509.Certificate {
	var list []*x509.Certificate
	for _, c := range all {
		list = append(list, c.Cert)
	}
	return list
}
