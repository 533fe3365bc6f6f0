package federationtest

import (
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
)

// chains are vectors of what stands beside a leaf.
func (b *builder) chains() {
	other := NewCA(b.t, b.now, caID(b.t, "spiffe://other.org"))
	b.leaf("XC-52 signed by another trust domain's CA", atPeers, other, nil, nil, b.w)
	alone := &CA{Now: b.now}
	b.leaf("XC-69 self-signed", atPeers, alone, nil, nil, b.w)
	v := b.leaf("XC-70 self-signed and among the authorities", atPeers, alone, nil, nil, b.w)
	v.Bundle = x509bundle.FromX509Authorities(b.td, []*x509.Certificate{parse(b.t, v.Shown[0])})

	key := crypto.Signer(NewKey(b.t))
	good := parse(b.t, b.root.leaf(b.t, key, nil, b.w))
	b.add("XC-72 root first", verdict{false, false, NotIssued}, b.root.Key, b.root.Cert.Raw, []*x509.Certificate{good}, "")
	b.add("XC-73 root last", verdict{true, true, NotIssued}, key, good.Raw, certs(b.root), b.w)
	none := b.add("XC-74 empty chain", verdict{}, key, nil, nil, "")
	none.Shown = nil
	long := b.add("eleven certificates", atPeers, key, good.Raw, nil, b.w)
	for range 10 {
		long.Shown = append(long.Shown, b.root.Cert.Raw)
	}
}

// authorities are vectors of signing certificates above a good leaf.
func (b *builder) authorities() {
	ours := caID(b.t, "spiffe://example.org")
	under := func(name string, v verdict, edit func(*x509.Certificate)) {
		mid := b.root.Sub(b.t, edit)
		b.leaf(name, v, mid, certs(mid), nil, b.w)
	}
	asRoot := func(name string, v verdict, edit func(*x509.Certificate)) {
		root := NewCA(b.t, b.now, edit)
		b.leaf(name, v, root, nil, nil, b.w).Bundle = root.Bundle(b.td)
	}
	signing := func(peer bool) verdict { return verdict{peer, true, MustNot} }
	under("XC-14 intermediate with our ID", fine, ours)
	under("XC-15 intermediate without ID", fine, nil)
	under("XC-17 pathLen 0", fine, both(ours, func(c *x509.Certificate) { c.MaxPathLenZero = true }))
	under("XC-18 keyCertSign alone", fine, both(ours, usage(x509.KeyUsageCertSign)))
	asRoot("XC-19 root without ID", fine, nil)
	asRoot("XC-20 name constraint that permits it", fine, both(ours, func(c *x509.Certificate) { c.PermittedURIDomains = []string{"example.org"} }))
	under("XC-75 keyCertSign without cA", signing(false), both(ours, func(c *x509.Certificate) { c.IsCA = false }))
	under("XC-77 no key usage", signing(true), both(ours, usage(0)))
	under("key usage without keyCertSign", signing(false), both(ours, usage(x509.KeyUsageCRLSign)))
	under("key usage not critical", signing(true), both(ours, func(c *x509.Certificate) {
		c.KeyUsage = 0
		c.ExtraExtensions = append(c.ExtraExtensions, extension(b.t, oidKeyUsage, false, asn1.BitString{Bytes: []byte{0x04}, BitLength: 6}))
	}))
	under("XC-78 digitalSignature beside", signing(true), both(ours, usage(x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature)))
	under("XC-79 an ID with a path", signing(true), caID(b.t, "spiffe://example.org/ca"))
	under("XC-80 an ID with a slash", signing(true), caID(b.t, "spiffe://example.org/"))
	mid := b.root.Sub(b.t, both(ours, func(c *x509.Certificate) { c.MaxPathLenZero = true }))
	deep := mid.Sub(b.t, ours)
	b.leaf("XC-82 a CA under pathLen 0", atPeers, deep, certs(deep, mid), nil, b.w)
	under("XC-83 expired intermediate", atPeers, both(ours, func(c *x509.Certificate) { c.NotAfter = b.now.Add(-time.Minute) }))
	asRoot("XC-84 expired root", atPeers, both(ours, func(c *x509.Certificate) { c.NotAfter = b.now.Add(-time.Minute) }))
	under("XC-85 name constraint of another", atPeers, both(ours, func(c *x509.Certificate) { c.PermittedURIDomains = []string{"other.org"} }))
	under("XC-87 extended usage on a CA", verdict{true, true, NotIssued}, both(ours, func(c *x509.Certificate) {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}))
}
