package authority_test

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"math/big"
	"testing"
	"time"
)

// What a signature costs, beside what the standard library takes for it.
func BenchmarkSignX509(b *testing.B) {
	e := newEnv(b)
	e.issuer = ""
	a := e.open()
	key := newKey(b)
	b.Run("authority", func(b *testing.B) {
		for b.Loop() {
			g := nodeGrant(b, key.Public(), start, time.Hour)
			if _, err := a.SignX509(b.Context(), g, key.Public()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("crypto", func(b *testing.B) {
		ca := newKey(b)
		parent := a.Bundle().X509Authorities[0]
		parent = &x509.Certificate{RawSubject: parent.RawSubject, SubjectKeyId: parent.SubjectKeyId, PublicKey: ca.Public()}
		template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: start, NotAfter: start.Add(time.Hour)}
		for b.Loop() {
			if _, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), ca); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkSignJWT(b *testing.B) {
	e := newEnv(b)
	a := e.openReady()
	for _, alg := range []string{"ES256", "RS256"} {
		g := jwtGrant(b, alg, start, "a")
		b.Run(alg+"/authority", func(b *testing.B) {
			for b.Loop() {
				if _, err := a.SignJWT(b.Context(), g); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(alg+"/crypto", func(b *testing.B) {
			_, key, err := e.keys.Create(b.Context(), alg)
			if err != nil {
				b.Fatal(err)
			}
			hash := sha256.Sum256([]byte("payload"))
			for b.Loop() {
				if _, err := key.Sign(rand.Reader, hash[:], crypto.SHA256); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkFirstSVID is what a new trust domain's first X509-SVID waits for.
func BenchmarkFirstSVID(b *testing.B) {
	for b.Loop() {
		e := newEnv(b)
		a := e.open()
		key := newKey(b)
		if _, err := a.SignX509(b.Context(), nodeGrant(b, key.Public(), start, time.Hour), key.Public()); err != nil {
			b.Fatal(err)
		}
	}
}
