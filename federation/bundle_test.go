package federation_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"

	"github.com/credence-id/credence/federation"
)

// vectorText fills in the abbreviations of the vectors' section E.
func vectorText(t testing.TB) *strings.Replacer {
	t.Helper()
	ca1, ca2 := newCA(t, nil), newCA(t, nil)
	leaf := ca1.Leaf(t, nil, "spiffe://partner.example/w")
	noSign := newCA(t, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign })
	ecKey := newKey(t)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	edKey, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.StdEncoding.EncodeToString
	ec, rs := jwkMembers(t, ecKey.Public()), jwkMembers(t, rsaKey.Public())
	modulus := func(bits int) *big.Int { return new(big.Int).SetBit(big.NewInt(1), bits-1, 1) }
	weak, huge := &rsa.PublicKey{N: modulus(1024), E: 65537}, &rsa.PublicKey{N: modulus(4104), E: 65537}
	one, even := &rsa.PublicKey{N: modulus(2048), E: 1}, &rsa.PublicKey{N: modulus(2048), E: 65536}
	return strings.NewReplacer(
		"$CA1", jwkMembers(t, ca1.Cert.PublicKey), "$CA2", jwkMembers(t, ca2.Cert.PublicKey),
		"$DER1URL", base64.URLEncoding.EncodeToString(append(bytes.Clone(ca1.Cert.Raw), 0xfb, 0xff)),
		"$DER1", b64(ca1.Cert.Raw), "$DER2", b64(ca2.Cert.Raw),
		"$LEAFK", jwkMembers(t, leaf.PublicKey), "$LEAFDER", b64(leaf.Raw), "$NOSIGN", x509Entry(t, noSign.Cert),
		"$EC", ec, "$RSA", rs, "$ED", jwkMembers(t, edKey), "$PRIV", jwkMembers(t, ecKey), "$WEAK", jwkMembers(t, weak), "$HUGE", jwkMembers(t, huge),
		"$ONE", jwkMembers(t, one), "$EVEN", jwkMembers(t, even),
		"$X", x509Entry(t, ca1.Cert),
		"$J", `{"use":"jwt-svid","kid":"j1",`+ec+`}`, "$W", `{"use":"wit-svid","kid":"w1",`+rs+`}`,
	)
}

func TestParseBundleVectors(t *testing.T) {
	fill := vectorText(t)
	type content struct {
		X509, JWT, WIT int
		Ignored        []int
	}
	tests := []struct {
		name, doc string
		refused   bool
		want      content
	}{
		{name: "BC-01 all three kinds", doc: `{"spiffe_sequence":1,"spiffe_refresh_hint":300,"keys":[$X,$J,$W]}`, want: content{X509: 1, JWT: 1, WIT: 1}},
		{name: "BC-02 x509 only", doc: `{"keys":[$X]}`, want: content{X509: 1}},
		{name: "BC-04 two roots", doc: `{"keys":[$X,{"use":"x509-svid",$CA2,"x5c":["$DER2"]}]}`, want: content{X509: 2}},
		{name: "BC-06 keys empty", doc: `{"keys":[]}`},
		{name: "BC-07 keys absent", doc: `{"spiffe_sequence":1}`, refused: true},
		{name: "keys null", doc: `{"keys":null}`, refused: true},
		{name: "BC-09 keys an object", doc: `{"keys":{}}`, refused: true},
		{name: "BC-10 empty body", doc: ``, refused: true},
		{name: "BC-11 HTML", doc: `<html>404</html>`, refused: true},
		{name: "BC-12 null", doc: `null`, refused: true},
		{name: "a string", doc: `"keys"`, refused: true},
		{name: "BC-14 trailing text", doc: `{"keys":[$X]}x`, refused: true},
		{name: "a second document", doc: `{"keys":[$X]} {"keys":[]}`, refused: true},
		{name: "BC-15 byte order mark", doc: "\ufeff" + `{"keys":[$X]}`, refused: true},
		{name: "not UTF-8", doc: "{\"x\":\"\xff\",\"keys\":[$X]}", refused: true},
		{name: "BC-16 unknown top-level member", doc: `{"keys":[$X],"foo":{"bar":1}}`, want: content{X509: 1}},
		{name: "BC-17 unknown JWK member", doc: `{"keys":[{"use":"x509-svid",$CA1,"x5c":["$DER1"],"foo":1}]}`, want: content{X509: 1}},
		{name: "BC-19 no use", doc: `{"keys":[$X,{"kid":"f",$EC}]}`, want: content{X509: 1, Ignored: []int{1}}},
		{name: "BC-20 use sig", doc: `{"keys":[{"use":"sig","kid":"f",$EC}]}`, want: content{Ignored: []int{0}}},
		{name: "BC-21 use in capitals", doc: `{"keys":[{"use":"X509-SVID",$CA1,"x5c":["$DER1"]}]}`, want: content{Ignored: []int{0}}},
		{name: "Use in capitals", doc: `{"keys":[{"Use":"x509-svid",$CA1,"x5c":["$DER1"]}]}`, want: content{Ignored: []int{0}}},
		{name: "use twice", doc: `{"keys":[{"use":"sig","use":"x509-svid",$CA1,"x5c":["$DER1"]}]}`, want: content{Ignored: []int{0}}},
		{name: "BC-22 unknown kty", doc: `{"keys":[$X,{"use":"jwt-svid","kid":"f","kty":"AKP","alg":"ML-DSA-65","pub":"AA"}]}`, want: content{X509: 1, Ignored: []int{1}}},
		{name: "BC-23 no kty", doc: `{"keys":[$X,{"use":"jwt-svid","kid":"f"}]}`, want: content{X509: 1, Ignored: []int{1}}},
		{name: "BC-24 unknown curve", doc: `{"keys":[{"use":"jwt-svid","kid":"f","kty":"EC","crv":"P-999","x":"AA","y":"AA"},$X]}`, want: content{X509: 1, Ignored: []int{0}}},
		{name: "BC-25 no x5c", doc: `{"keys":[{"use":"x509-svid",$CA1},$J]}`, want: content{JWT: 1, Ignored: []int{0}}},
		{name: "BC-26 empty x5c", doc: `{"keys":[{"use":"x509-svid",$CA1,"x5c":[]},$J]}`, want: content{JWT: 1, Ignored: []int{0}}},
		{name: "BC-27 two in x5c: the first", doc: `{"keys":[{"use":"x509-svid",$CA1,"x5c":["$DER1","$DER2"]}]}`, want: content{X509: 1, Ignored: []int{0}}},
		{name: "two in x5c, the second garbage", doc: `{"keys":[{"use":"x509-svid",$CA1,"x5c":["$DER1",7]}]}`, want: content{X509: 1, Ignored: []int{0}}},
		{name: "BC-29 key is not the certificate's", doc: `{"keys":[{"use":"x509-svid",$CA2,"x5c":["$DER1"]}]}`, want: content{Ignored: []int{0}}},
		{name: "BC-30 x5c in base64url", doc: `{"keys":[{"use":"x509-svid",$CA1,"x5c":["$DER1URL"]}]}`, want: content{Ignored: []int{0}}},
		{name: "BC-31 x5c in PEM", doc: `{"keys":[{"use":"x509-svid",$CA1,"x5c":["-----BEGIN CERTIFICATE-----"]}]}`, want: content{Ignored: []int{0}}},
		{name: "BC-32 a leaf", doc: `{"keys":[{"use":"x509-svid",$LEAFK,"x5c":["$LEAFDER"]}]}`, want: content{Ignored: []int{0}}},
		{name: "a CA that may not sign certificates", doc: `{"keys":[$NOSIGN]}`, want: content{Ignored: []int{0}}},
		{name: "BC-34 alg beside", doc: `{"keys":[{"use":"x509-svid","alg":"ES256",$CA1,"x5c":["$DER1"]}]}`, want: content{X509: 1}},
		{name: "BC-35 jwt without kid", doc: `{"keys":[$X,{"use":"jwt-svid",$EC}]}`, want: content{X509: 1, Ignored: []int{1}}},
		{name: "BC-36 jwt with empty kid", doc: `{"keys":[$X,{"use":"jwt-svid","kid":"",$EC}]}`, want: content{X509: 1, Ignored: []int{1}}},
		{name: "BC-37 one kid, two keys: the first", doc: `{"keys":[$J,{"use":"jwt-svid","kid":"j1",$RSA}]}`, want: content{JWT: 1, Ignored: []int{1}}},
		{name: "one key twice", doc: `{"keys":[$J,$J,$X,$X]}`, want: content{X509: 1, JWT: 1}},
		{name: "BC-39 private key", doc: `{"keys":[{"use":"jwt-svid","kid":"j1",$PRIV},$X]}`, want: content{X509: 1, Ignored: []int{0}}},
		{name: "private key beside x5c", doc: `{"keys":[{"use":"x509-svid",$CA1,"d":"AA","x5c":["$DER1"]}]}`, want: content{Ignored: []int{0}}},
		{name: "BC-40 Ed25519", doc: `{"keys":[$X,{"use":"jwt-svid","kid":"e",$ED}]}`, want: content{X509: 1, JWT: 1}},
		{name: "BC-41 symmetric", doc: `{"keys":[$X,{"use":"jwt-svid","kid":"o","kty":"oct","k":"AAAA"}]}`, want: content{X509: 1, Ignored: []int{1}}},
		{name: "oct without k", doc: `{"keys":[$X,{"use":"jwt-svid","kid":"o","kty":"oct"}]}`, want: content{X509: 1, Ignored: []int{1}}},
		{name: "BC-42 wit without kid", doc: `{"keys":[{"use":"wit-svid",$RSA}]}`, want: content{Ignored: []int{0}}},
		{name: "RSA of 1024 bits", doc: `{"keys":[{"use":"jwt-svid","kid":"w",$WEAK}]}`, want: content{Ignored: []int{0}}},
		{name: "RSA of 4,104 bits", doc: `{"keys":[{"use":"jwt-svid","kid":"w",$HUGE}]}`, want: content{Ignored: []int{0}}},
		{name: "RSA with exponent 1", doc: `{"keys":[{"use":"jwt-svid","kid":"w",$ONE}]}`, want: content{Ignored: []int{0}}},
		{name: "RSA with an even exponent", doc: `{"keys":[{"use":"jwt-svid","kid":"w",$EVEN}]}`, want: content{Ignored: []int{0}}},
		{name: "entries that are no objects", doc: `{"keys":[1,"a",null,[],$X]}`, want: content{X509: 1, Ignored: []int{0, 1, 2, 3}}},
		{name: "BC-45 sequence 2^64", doc: `{"spiffe_sequence":18446744073709551616,"keys":[$X]}`, refused: true},
		{name: "BC-46 sequence negative", doc: `{"spiffe_sequence":-1,"keys":[$X]}`, refused: true},
		{name: "BC-47 sequence a string", doc: `{"spiffe_sequence":"1","keys":[$X]}`, refused: true},
		{name: "sequence 1e3", doc: `{"spiffe_sequence":1e3,"keys":[$X]}`, refused: true},
		{name: "sequence null", doc: `{"spiffe_sequence":null,"keys":[$X]}`, refused: true},
		{name: "BC-54 hint a string", doc: `{"spiffe_refresh_hint":"300","keys":[$X]}`, refused: true},
		{name: "hint 300.5", doc: `{"spiffe_refresh_hint":300.5,"keys":[$X]}`, refused: true},
		{name: "BC-55 keys twice", doc: `{"keys":[$X],"keys":[]}`, refused: true},
		{name: "keys twice, once escaped", doc: `{"keys":[$X],"\u006beys":[]}`, refused: true},
		{name: "BC-56 KEYS", doc: `{"KEYS":[$X]}`, refused: true},
		{name: "a trust_domain inside is not believed", doc: `{"trust_domain":"example.org","keys":[$X]}`, want: content{X509: 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			doc := []byte(fill.Replace(tt.doc))
			b, err := federation.ParseBundle(partner, doc)
			if (err != nil) != tt.refused {
				t.Fatalf("refused = %v, want %v", err, tt.refused)
			}
			if tt.refused {
				return
			}
			got := content{X509: len(b.X509Authorities()), JWT: len(b.JWTAuthorities()), WIT: len(b.WITAuthorities())}
			for _, ignored := range b.Ignored {
				got.Ignored = append(got.Ignored, ignored.Index)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("content (-want +got):\n%s%v", diff, b.Ignored)
			}
			if b.TrustDomain() != partner || !bytes.Equal(b.Document(), doc) {
				t.Errorf("trust domain %s, or document not as given", b.TrustDomain())
			}
		})
	}
}

func TestParseBundleNumbers(t *testing.T) {
	tests := []struct {
		name, members string
		sequence      uint64
		hint          time.Duration
		hasSeq        bool
		hasHint       bool
	}{
		{name: "BC-05 both absent", members: ``},
		{name: "BC-44 sequence 2^63", members: `"spiffe_sequence":9223372036854775808,`, sequence: 1 << 63, hasSeq: true},
		{name: "BC-49 sequence 2^53+1", members: `"spiffe_sequence":9007199254740993,`, sequence: 9007199254740993, hasSeq: true},
		{name: "BC-57 Spiffe_Sequence is another member", members: `"Spiffe_Sequence":7,`},
		{name: "hint 300", members: `"spiffe_refresh_hint":300,`, hint: 5 * time.Minute, hasHint: true},
		{name: "BC-50 hint 0", members: `"spiffe_refresh_hint":0,`, hasHint: true},
		{name: "BC-51 hint negative", members: `"spiffe_refresh_hint":-5,`, hasHint: true},
		{name: "BC-52 hint 10^12 does not overflow", members: `"spiffe_refresh_hint":1000000000000,`, hint: 365 * 24 * time.Hour, hasHint: true},
		{name: "hint beyond 64 bits", members: `"spiffe_refresh_hint":99999999999999999999,`, hint: 365 * 24 * time.Hour, hasHint: true},
		{name: "hint below 64 bits", members: `"spiffe_refresh_hint":-99999999999999999999,`, hasHint: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b, err := federation.ParseBundle(partner, []byte(`{`+tt.members+`"keys":[]}`))
			if err != nil {
				t.Fatal(err)
			}
			sequence, hasSeq := b.SequenceNumber()
			hint, hasHint := b.RefreshHint()
			if sequence != tt.sequence || hasSeq != tt.hasSeq || hint != tt.hint || hasHint != tt.hasHint {
				t.Errorf("sequence %d (%v), hint %s (%v)", sequence, hasSeq, hint, hasHint)
			}
		})
	}
}

// Regression: CVE-2025-59043
func TestParseBundleBounds(t *testing.T) {
	entries := func(n int) string {
		return `{"keys":[` + strings.TrimSuffix(strings.Repeat("1,", n), ",") + `]}`
	}
	nested := func(n int) string { // the top is one level, x the next
		return `{"keys":[],"x":` + strings.Repeat("[", n-1) + strings.Repeat("]", n-1) + `}`
	}
	padded := func(n int) string { return `{"keys":[]}` + strings.Repeat(" ", n-len(`{"keys":[]}`)) }
	tests := []struct {
		name, doc string
		refused   bool
	}{
		{"1,000 entries", entries(1000), false},
		{"1,001 entries", entries(1001), true},
		{"depth 16", nested(16), false},
		{"depth 17", nested(17), true},
		{"a million open brackets", `{"keys":` + strings.Repeat("[", 1_000_000), true},
		{"brackets in a string have no depth", `{"keys":[],"x":"\"` + strings.Repeat("[", 100) + `"}`, false},
		{"1 MiB", padded(1 << 20), false},
		{"1 MiB and one byte", padded(1<<20 + 1), true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := federation.ParseBundle(partner, []byte(tt.doc)); (err != nil) != tt.refused {
				t.Errorf("refused = %v, want %v", err, tt.refused)
			}
		})
	}
}

func TestMarshalRoundTrip(t *testing.T) {
	doc := vectorText(t).Replace(`{"spiffe_sequence":18446744073709551615,"spiffe_refresh_hint":300,"keys":[$W,$J,{"use":"jwt-svid","kid":"j0",$RSA},$X,{"use":"jwt-svid","kid":"j2",$PRIV}]}`)
	b, err := federation.ParseBundle(partner, []byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	first, err := b.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(first, []byte(`"d":`)) {
		t.Error("a private key was written out again")
	}
	for range 20 {
		if again, _ := b.Marshal(); !bytes.Equal(again, first) {
			t.Fatal("two texts for one content")
		}
	}
	theirs, err := spiffebundle.Parse(partner, first)
	if err != nil {
		t.Fatal(err)
	}
	if !theirs.Equal(b.Bundle) {
		t.Errorf("go-spiffe reads other content in %s", first)
	}
}

func TestMarshalOfAnEmptyBundleHasAnArray(t *testing.T) {
	got, err := federation.Marshal(spiffebundle.New(partner))
	if err != nil || string(got) != `{"keys":[]}` {
		t.Errorf("got %s, %v", got, err)
	}
}

func TestParseAny(t *testing.T) {
	ca1, ca2 := newCA(t, nil), newCA(t, nil)
	leaf := ca1.Leaf(t, nil, "spiffe://partner.example/w")
	key := "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
	tests := []struct {
		name    string
		data    string
		want    int
		refused bool
	}{
		{"PEM of two CAs", "\n" + string(pemOf(ca1.Cert, ca2.Cert)), 2, false},
		{"SPIFFE bundle", `{"keys":[` + x509Entry(t, ca1.Cert) + `]}`, 1, false},
		{"PEM of a leaf", string(pemOf(ca1.Cert, leaf)), 0, true},
		{"PEM with a private key", string(pemOf(ca1.Cert)) + key, 0, true},
		{"PEM cut short", string(pemOf(ca1.Cert, ca2.Cert)[:900]), 0, true},
		{"text after PEM", string(pemOf(ca1.Cert)) + "more", 0, true},
		{"nothing", "", 0, true},
		{"text", "hello", 0, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b, err := federation.ParseAny(partner, []byte(tt.data))
			if (err != nil) != tt.refused {
				t.Fatalf("refused = %v, want %v", err, tt.refused)
			}
			if err == nil && len(b.X509Authorities()) != tt.want {
				t.Errorf("%d authorities, want %d", len(b.X509Authorities()), tt.want)
			}
		})
	}
}

func FuzzParseBundle(f *testing.F) {
	fill := vectorText(f)
	for _, seed := range []string{
		`{"spiffe_sequence":1,"spiffe_refresh_hint":300,"keys":[$X,$J,$W]}`,
		`{"keys":[{"use":"x509-svid",$CA1,"x5c":["$DER1","$DER2"]}]}`,
		`{"keys":[{"use":"jwt-svid","kid":"j1",$PRIV},{"use":"jwt-svid","kid":"o","kty":"oct","k":"AAAA"}]}`,
		`{"keys":[],"\u006beys":[]}`, `{"keys":[[[[1]]]]}`, `{"spiffe_sequence":1e3,"keys":null}`,
	} {
		f.Add([]byte(fill.Replace(seed)))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := federation.ParseBundle(partner, data)
		if err != nil {
			return
		}
		for _, cert := range b.X509Authorities() {
			if !cert.IsCA {
				t.Fatal("believes what is no CA")
			}
		}
		text, err := b.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := federation.ParseBundle(partner, text)
		if err != nil || len(again.Ignored) > 0 || !again.Equal(b.Bundle) {
			t.Fatal(fmt.Errorf("%s does not read back: %w, %v", text, err, again))
		}
	})
}
