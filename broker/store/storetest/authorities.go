package storetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/federation"
)

// certificate is a DER certificate of its own key.
func (e *env) certificate(name string) []byte {
	e.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	e.must(err)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: e.time, NotAfter: e.time.Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	e.must(err)
	return der
}

func (e *env) authority(id string, use authority.Use, state authority.State) authority.Record {
	return authority.Record{
		ID: id, Use: use, Alg: "P256", State: state, KeyRef: "ref-" + id, PublicKey: []byte("key of " + id),
		PublishedAt: e.time, NotAfter: e.time.Add(time.Hour),
	}
}

// authorities are one of each use, by ID.
func (e *env) authorities() []authority.Record {
	e.Helper()
	issuing := e.authority("ca", authority.Issuing, authority.Active)
	issuing.Broker, issuing.ActivatedAt, issuing.LastExpiry = "b1", e.time, e.time.Add(time.Minute)
	issuing.Chain, issuing.Parent = [][]byte{e.certificate("ca"), e.certificate("root")}, "domain"
	domain := e.authority("domain", authority.Domain, authority.Old)
	domain.Chain, domain.Parent = [][]byte{e.certificate("domain")}, "root"
	domain.RevokedAt, domain.Reason = e.time.Add(time.Second), "it's \"gone\""
	jwt := e.authority("jwt", authority.JWTKey, authority.Published)
	jwt.Alg, jwt.Sealed = "RS256", []byte("sealed")
	root := e.authority("root", authority.Root, authority.Active)
	root.Chain, root.KeyRef = [][]byte{e.certificate("root")}, ""
	return []authority.Record{issuing, domain, jwt, root}
}

func publication(sequence uint64) authority.Publication {
	return authority.Publication{Sequence: sequence, Digest: hash("bundle")}
}

func (e *env) equalAuthorities(want []authority.Record, p authority.Publication) {
	e.Helper()
	got, published, err := e.Authorities(e.Context())
	e.must(err)
	e.equal(got, want)
	published.Version = authority.Version{}
	e.equal(published, p)
}

// change is one of broker b1's, on what stands now.
func (e *env) change(records []authority.Record, p authority.Publication) authority.Change {
	e.Helper()
	_, last, err := e.Authorities(e.Context())
	e.must(err)
	return authority.Change{Broker: "b1", Records: records, Publication: p, Seen: last.Version}
}

func (e *env) saveAuthorities(records []authority.Record, p authority.Publication) error {
	e.Helper()
	_, err := e.SaveAuthorities(e.Context(), e.change(records, p))
	return err
}

func authorities(e *env) {
	all := e.authorities()
	e.must(e.saveAuthorities(all, publication(1<<63+5)))
	e.equalAuthorities(all, publication(1<<63+5))
	all[2].State, all[2].ActivatedAt = authority.Active, e.time
	e.must(e.saveAuthorities(all[2:3], publication(1<<63+6)))
	e.equalAuthorities(all, publication(1<<63+6))
	e.must(e.saveAuthorities(nil, publication(1<<63+7)))
	e.equalAuthorities(all, publication(1<<63+7))
	e.equal(e.revision(), uint64(3))
}

func replaced(e *env) {
	e.must(e.saveAuthorities(e.authorities(), publication(1)))
	other := e.authority("ca", authority.Issuing, authority.Old)
	other.Broker, other.Alg, other.KeyRef, other.PublicKey = "b2", "P384", "elsewhere", []byte("another")
	other.Chain = [][]byte{e.certificate("other")}
	e.must(e.saveAuthorities([]authority.Record{other}, publication(2)))
	got, _, err := e.Authorities(e.Context())
	e.must(err)
	other.LastExpiry = e.time.Add(time.Minute) // which never falls
	e.equal(got[0], other)
}

func uniqueActive(e *env) {
	all := e.authorities()
	e.must(e.saveAuthorities(all, publication(1)))
	second := e.authority("root2", authority.Root, authority.Active)
	if err := e.saveAuthorities([]authority.Record{second}, publication(2)); err == nil {
		e.Error("two roots are active")
	}
	e.equalAuthorities(all, publication(1)) // and the publication stays too
	for name, change := range map[string]func(*authority.Record){
		"state": func(r *authority.Record) { r.State = "lost" },
		"use":   func(r *authority.Record) { r.Use = "" },
	} {
		r := e.authority("bad", authority.Root, authority.Old)
		change(&r)
		if err := e.saveAuthorities([]authority.Record{r}, publication(2)); err == nil {
			e.Errorf("an authority of no known %s is kept", name)
		}
	}
	other := e.authority("ca2", authority.Issuing, authority.Active)
	other.Broker = "b2" // each broker has its own
	e.must(e.saveAuthorities([]authority.Record{other}, publication(2)))
}

func changePlaces(e *env) {
	first, second := e.authority("j1", authority.JWTKey, authority.Active), e.authority("j2", authority.JWTKey, authority.Published)
	e.must(e.saveAuthorities([]authority.Record{first, second}, publication(1)))
	first.State, second.State = authority.Old, authority.Active
	e.must(e.saveAuthorities([]authority.Record{second, first}, publication(2))) // the new one comes first
	e.equalAuthorities([]authority.Record{first, second}, publication(2))
	first.State, second.State = second.State, first.State
	e.must(e.saveAuthorities([]authority.Record{first, second}, publication(3)))
	e.equalAuthorities([]authority.Record{first, second}, publication(3))
}

func (e *env) bundle(td string, sequence uint64) federation.Stored {
	e.Helper()
	name, err := spiffeid.TrustDomainFromString(td)
	e.must(err)
	return federation.Stored{
		TrustDomain: name, Document: []byte(`{"keys":[]}` + td), Sequence: sequence,
		FetchedAt: e.time, ConfirmedAt: e.time.Add(time.Second),
	}
}

func bundles(e *env) {
	a, b := e.bundle("a.example", 1<<64-1), e.bundle("b.example", 1<<63)
	e.must(e.SaveBundle(e.Context(), b))
	e.must(e.SaveBundle(e.Context(), a))
	got, err := e.Bundles(e.Context())
	e.must(err)
	e.equal(got, []federation.Stored{a, b})

	b.Document, b.Sequence, b.FetchedAt, b.ConfirmedAt = []byte("another"), 1<<63+1, e.time.Add(time.Hour), e.time.Add(2*time.Hour)
	b.Held, b.HeldAt = []byte("waits"), e.time.Add(2*time.Hour)
	e.must(e.SaveBundle(e.Context(), b))
	for _, older := range []func(*federation.Stored){ // another broker's, which didn't know of this one
		func(o *federation.Stored) { o.ConfirmedAt = e.time.Add(time.Hour) },
		func(o *federation.Stored) { o.ConfirmedAt, o.Sequence = e.time.Add(3*time.Hour), 3 },
	} {
		o := b
		older(&o)
		if err := e.SaveBundle(e.Context(), o); !errors.Is(err, broker.ErrConflict) {
			e.Errorf("it was kept: %v", err)
		}
	}
	e.must(e.DeleteBundle(e.Context(), a.TrustDomain))
	e.must(e.DeleteBundle(e.Context(), a.TrustDomain))
	got, err = e.Bundles(e.Context())
	e.must(err)
	e.equal(got, []federation.Stored{b})
}
