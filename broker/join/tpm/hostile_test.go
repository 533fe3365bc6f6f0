package tpm_test

import (
	"bytes"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	evidence "github.com/credence-id/credence/agent/evidence/tpm"
	"github.com/credence-id/credence/agent/tpmseal/tpmtest"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/tpm"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

var one = big.NewInt(1)

func knows(f *forger, pcrs ...int) *tpm.Settings {
	return &tpm.Settings{EKHashes: map[string]string{"rack-7": f.hash()}, PCRs: pcrs}
}

// Of what an attestation key signs nothing counts but the quote for this join: of
// this broker, this challenge and this node's key, by the key that was shown.
func TestAnswers(t *testing.T) {
	t.Parallel()
	zero, ones := make([]byte, 32), bytes.Repeat([]byte{1}, 32)
	type row struct {
		pcrs   []int // that the rule asks for
		change func(*forger)
		why    string // empty: it is taken
	}
	for name, r := range map[string]row{
		"right":               {nil, func(*forger) {}, ""},
		"right, with PCRs":    {[]int{7, 16}, func(f *forger) { f.pcrs, f.values = []int{7, 16}, [][]byte{zero, ones} }, ""},
		"a wrong secret":      {nil, func(f *forger) { f.secret = func([]byte) []byte { return ones } }, "not for our challenge"},
		"half of the secret":  {nil, func(f *forger) { f.secret = func(s []byte) []byte { return s[:16] } }, "not for our challenge"},
		"another's domain":    {nil, func(f *forger) { f.td = "example.com" }, "not for our challenge"},
		"a domain cut short":  {nil, func(f *forger) { f.td = "example.or" }, "not for our challenge"},
		"another's key":       {nil, func(f *forger) { f.key = []byte("another node's public key") }, "not for our challenge"},
		"another's signature": {nil, func(f *forger) { f.signer = newKey(t) }, "not signed by the attestation key"},
		"no TPM's making":     {nil, func(f *forger) { f.magic = 0xff544348 }, "not of a TPM's making"},
		"a certified key":     {nil, func(f *forger) { f.kind = 0x8017 }, "no quote"},
		"something after it":  {nil, func(f *forger) { f.after = []byte{0} }, "has not the form"},
		"PCRs unasked for":    {nil, func(f *forger) { f.pcrs, f.values = []int{7}, [][]byte{zero} }, "over PCRs [7]"},
		"PCRs unquoted":       {[]int{7}, func(f *forger) { f.said = [][]byte{zero} }, "over PCRs []"},
		"another PCR":         {[]int{7}, func(f *forger) { f.pcrs, f.values = []int{8}, [][]byte{zero} }, "over PCRs [8]"},
		"one more PCR":        {[]int{7}, func(f *forger) { f.pcrs, f.values = []int{7, 8}, [][]byte{zero, zero} }, "over PCRs [7 8]"},
		"another value":       {[]int{7}, func(f *forger) { f.pcrs, f.values, f.said = []int{7}, [][]byte{zero}, [][]byte{ones} }, "not those of the quote"},
		"no value":            {[]int{7}, func(f *forger) { f.pcrs, f.values, f.said = []int{7}, [][]byte{zero}, [][]byte{} }, "over PCRs"},
		"values of SHA-1":     {[]int{7}, func(f *forger) { f.pcrs, f.values, f.said = []int{7}, [][]byte{zero}, [][]byte{zero[:20]} }, "not of SHA-256"},
		"a bank of SHA-1":     {[]int{7}, func(f *forger) { f.pcrs, f.values, f.alg = []int{7}, [][]byte{zero}, 4 }, "has not the form"},
		"values out of order": {[]int{7, 16}, func(f *forger) {
			f.pcrs, f.values, f.said = []int{7, 16}, [][]byte{zero, ones}, [][]byte{ones, zero}
		}, "not those of the quote"},
		"a value in two":   {[]int{7}, func(f *forger) { f.pcrs, f.values, f.said = []int{7}, [][]byte{zero}, [][]byte{zero[:16], zero[:16]} }, "not of SHA-256"},
		"no quote":         {nil, func(f *forger) { f.spoil = func(a map[string]any) { delete(a, "quote") } }, "wanted, and nothing else"},
		"no signature":     {nil, func(f *forger) { f.spoil = func(a map[string]any) { a["signature"] = []byte{} } }, "not signed"},
		"one thing more":   {nil, func(f *forger) { f.spoil = func(a map[string]any) { a["ak"] = []byte{} } }, "wanted, and nothing else"},
		"a long quote":     {nil, func(f *forger) { f.after = make([]byte, 600) }, "at most 512 bytes"},
		"a long signature": {nil, func(f *forger) { f.spoil = func(a map[string]any) { a["signature"] = make([]byte, 200) } }, "at most 80 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newForger(t)
			r.change(f)
			_, err := joins(t, method(t, knows(f, r.pcrs...)), f.shown(f.public(), f.ek.Public()), f.answer)
			if r.why != "" {
				refused(t, name, err, r.why)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	f := newForger(t)
	m := method(t, knows(f))
	shown := f.shown(f.public(), f.ek.Public())
	for _, text := range []string{"", "{", "[]", `{"quote":"","quote":"","signature":"","pcrs":[]}`, `{"quote":1,"signature":"","pcrs":[]}`, strings.Repeat("[", 10000)} {
		_, err := joins(t, m, shown, func([]byte) ([]byte, error) { return []byte(text), nil })
		refused(t, text, err, "")
	}
	// What is right in one trust domain is nothing in another.
	for td, why := range map[string]string{"example.com": "", domain: "for our trust domain"} {
		f := newForger(t)
		f.td, f.marked = "example.com", "example.com"
		_, err := joins(t, method(t, knows(f), func(c *tpm.Config) { c.TrustDomain = td }), f.shown(f.public(), f.ek.Public()), f.answer)
		if why != "" {
			refused(t, td, err, why)
		} else if err != nil {
			t.Errorf("%s: %v", td, err)
		}
	}
	hungUp := errors.New("hung up")
	if _, err := joins(t, m, shown, func([]byte) ([]byte, error) { return nil, hungUp }); !errors.Is(err, hungUp) || errors.Is(err, join.ErrEvidence) {
		t.Errorf("a node that leaves: %v", err)
	}
}

// A recording is for a challenge that is not asked again, and cut short it is none.
func TestRecordings(t *testing.T) {
	t.Parallel()
	f := newForger(t)
	m := method(t, knows(f))
	shown := f.shown(f.public(), f.ek.Public())
	var recorded []byte
	challenges := map[string]bool{}
	if _, err := joins(t, m, shown, func(challenge []byte) (answer []byte, err error) {
		challenges[string(f.activate(challenge))] = true
		recorded, err = f.answer(challenge)
		return recorded, err
	}); err != nil {
		t.Fatal(err)
	}
	_, err := joins(t, m, shown, func(challenge []byte) ([]byte, error) {
		challenges[string(f.activate(challenge))] = true
		return recorded, nil
	})
	refused(t, "a recording", err, "not for our challenge")
	if len(challenges) != 2 {
		t.Error("a challenge is asked twice")
	}
	for n := 0; n < len(recorded); n += 5 {
		_, err := joins(t, m, shown, func([]byte) ([]byte, error) { return recorded[:n], nil })
		refused(t, fmt.Sprint(n, " bytes"), err, "")
	}
	for n := range len(shown) {
		_, err := joins(t, m, shown[:n], f.answer)
		refused(t, fmt.Sprint(n, " bytes of evidence"), err, "")
	}
}

// An attestation key has one form: any other could sign what no TPM made, or be moved
// to another.
func TestAttestationKeys(t *testing.T) {
	t.Parallel()
	f := newForger(t)
	m := method(t, knows(f))
	attribute := func(change func(*tpm2.TPMAObject)) []byte {
		return f.public(func(p *tpm2.TPMTPublic) { change(&p.ObjectAttributes) })
	}
	parameters := func(change func(*tpm2.TPMSECCParms)) []byte {
		return f.public(func(p *tpm2.TPMTPublic) { p.Parameters = eccParameters(change) })
	}
	all := map[string][]byte{
		"not restricted":     attribute(func(a *tpm2.TPMAObject) { a.Restricted = false }),
		"for decryption too": attribute(func(a *tpm2.TPMAObject) { a.Decrypt = true }),
		"for decryption":     attribute(func(a *tpm2.TPMAObject) { a.Decrypt, a.SignEncrypt = true, false }),
		"not of its TPM":     attribute(func(a *tpm2.TPMAObject) { a.FixedTPM = false }),
		"not of its parent":  attribute(func(a *tpm2.TPMAObject) { a.FixedParent = false }),
		"brought there":      attribute(func(a *tpm2.TPMAObject) { a.SensitiveDataOrigin = false }),
		"by policy":          attribute(func(a *tpm2.TPMAObject) { a.UserWithAuth = false }),
		"an admin's policy":  attribute(func(a *tpm2.TPMAObject) { a.AdminWithPolicy = true }),
		"another attribute":  attribute(func(a *tpm2.TPMAObject) { a.STClear = true }),
		"no policy":          f.public(func(p *tpm2.TPMTPublic) { p.AuthPolicy = tpm2.TPM2BDigest{} }),
		"a policy":           f.public(func(p *tpm2.TPMTPublic) { p.AuthPolicy = tpm2.TPM2BDigest{Buffer: make([]byte, 32)} }),
		"a name by SHA-1":    f.public(func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA1 }),
		"a name by nothing":  f.public(func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgNull }),
		"P-384":              parameters(func(p *tpm2.TPMSECCParms) { p.CurveID = tpm2.TPMECCNistP384 }),
		"any scheme":         parameters(func(p *tpm2.TPMSECCParms) { p.Scheme = tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgNull} }),
		"ECDSA with SHA-1": parameters(func(p *tpm2.TPMSECCParms) {
			p.Scheme.Details = tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA1})
		}),
		"a key of RSA":     tpm2.Marshal(tpm2.RSASRKTemplate),
		"a storage key":    tpm2.Marshal(tpm2.ECCSRKTemplate),
		"something after":  append(f.public(), 0),
		"something before": append([]byte{0}, f.public()...),
		"a point nowhere": f.public(func(p *tpm2.TPMTPublic) {
			p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
				X: tpm2.TPM2BECCParameter{Buffer: bytes.Repeat([]byte{1}, 32)}, Y: tpm2.TPM2BECCParameter{Buffer: bytes.Repeat([]byte{1}, 32)},
			})
		}),
		"no point": f.public(func(p *tpm2.TPMTPublic) { p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{}) }),
		"long":     make([]byte, 4<<10), "none": {},
	}
	for n := range f.public() {
		all[fmt.Sprint(n, " bytes")] = f.public()[:n]
	}
	for name, public := range all {
		_, err := joins(t, m, f.shown(public, f.ek.Public()), func([]byte) ([]byte, error) {
			t.Errorf("%s: it is challenged", name)
			return nil, errors.New("it is challenged")
		})
		refused(t, name, err, "attestation key")
	}
}

// weak is a modulus of 2048 bits as vulnerable TPMs made them: each prime is 65537^a
// modulo the primorial M, and so is what they make.
func weak(t testing.TB) *big.Int {
	t.Helper()
	m := big.NewInt(1)
	for p := int64(2); p <= 701; p++ {
		if big.NewInt(p).ProbablyPrime(0) {
			m.Mul(m, big.NewInt(p))
		}
	}
	n := new(big.Int).Exp(big.NewInt(65537), big.NewInt(4711), m)
	k := new(big.Int).Div(new(big.Int).Lsh(one, 2047), m)
	if n.Add(n, k.Mul(k.Add(k, one), m)); n.BitLen() != 2048 {
		t.Fatalf("%d bits", n.BitLen())
	}
	return n
}

// Endorsement keys are of the two kinds that TPMs have by default, and not of those
// that anybody can compute.
//
// Regression: CVE-2017-15361
func TestEndorsementKeys(t *testing.T) {
	t.Parallel()
	f := newForger(t)
	m := method(t, knows(f))
	for name, ek := range map[string]any{
		"RSA of 1024 bits":  &rsa.PublicKey{N: new(big.Int).SetBit(one, 1023, 1), E: 65537},
		"RSA of 3072 bits":  &rsa.PublicKey{N: new(big.Int).SetBit(one, 3071, 1), E: 65537},
		"RSA of exponent 3": &rsa.PublicKey{N: f.ek.N, E: 3},
		"P-384":             issuertest.NewEC(elliptic.P384()).Public(),
	} {
		_, err := joins(t, m, f.shown(f.public(), ek), f.answer)
		refused(t, name, err, "neither of RSA-2048 nor of P-256")
	}
	_, err := joins(t, m, f.shown(f.public(), &rsa.PublicKey{N: weak(t), E: 65537}), f.answer)
	refused(t, "a key of Infineon's", err, "CVE-2017-15361")
	_, err = joins(t, m, f.shown(f.public(), other(t)), f.answer)
	refused(t, "a stranger's", err, "ek_hashes")
	for name, text := range map[string]string{
		"nothing": "{}", "no object": "[]", "no JSON": "x", "no attestation key": `{"ek":"AAAA"}`, "numbers": `{"ek":1,"ak":1}`, "an empty chain": `{"chain":[],"ak":""}`,
		"both":           string(encode(t, map[string]any{"ek": "", "chain": []string{}, "ak": f.public()})),
		"one thing more": strings.Replace(string(f.shown(f.public(), f.ek.Public())), "{", `{"name":"rack-7",`, 1),
		"twice":          strings.Replace(string(f.shown(f.public(), f.ek.Public())), "{", `{"ek":"AAAA",`, 1),
		"no key":         string(encode(t, map[string]any{"ek": "AAAA", "ak": f.public()})),
	} {
		_, err := joins(t, m, []byte(text), f.answer)
		refused(t, name, err, "")
	}
}

// authority makes a CA of another kind.
func authority(t testing.TB, name string, by *tpmtest.Maker, change func(*x509.Certificate)) *tpmtest.Maker {
	return tpmtest.NewMaker(t, name, by, start, change)
}

// What certifies endorsement keys is held against the EK Credential Profile, down to
// what a maker's CA signs besides.
func TestCertificates(t *testing.T) {
	t.Parallel()
	f := newForger(t)
	root := tpmtest.NewMaker(t, "root", nil, start)
	impostor := tpmtest.NewMaker(t, "root", nil, start)
	between := tpmtest.NewMaker(t, "TPMs", root, start)
	web := authority(t, "web", root, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
	eks := authority(t, "EKs", root, func(c *x509.Certificate) { c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}} })
	short := authority(t, "short", root, func(c *x509.Certificate) { c.MaxPathLenZero, c.MaxPathLen = true, 0 })
	deep := tpmtest.NewMaker(t, "deep", short, start)
	ended := authority(t, "ended", root, func(c *x509.Certificate) { c.NotAfter = start.Add(-time.Second) })
	certify := func(by *tpmtest.Maker, changes ...func(*x509.Certificate)) *x509.Certificate {
		return by.Certify(t, f.ek.Public(), start, changes...)
	}
	about := func(all ...string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.ExtraExtensions = []pkix.Extension{tpmtest.AltName(t, all...)} }
	}
	altName := func(value []byte) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: value}}
		}
	}
	usage := func(usages ...asn1.ObjectIdentifier) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.UnknownExtKeyUsage = usages }
	}
	type chain = []*x509.Certificate
	m := method(t, &tpm.Settings{Roots: root.PEM()})
	for name, r := range map[string]struct {
		shown chain
		why   string
	}{
		"right":                       {chain{certify(root)}, ""},
		"right, by a CA":              {chain{certify(between), between.Certificate}, ""},
		"right, by a CA for EKs":      {chain{certify(eks), eks.Certificate}, ""},
		"without an alternative name": {chain{certify(root, func(c *x509.Certificate) { c.ExtraExtensions = nil })}, ""},
		"an end, before which":        {chain{certify(root, func(c *x509.Certificate) { c.NotAfter = start.Add(time.Second) })}, ""},
		"expired":                     {chain{certify(root, func(c *x509.Certificate) { c.NotAfter = start.Add(-time.Second) })}, "expired"},
		"of the future":               {chain{certify(root, func(c *x509.Certificate) { c.NotBefore = start.Add(time.Second) })}, "not yet valid"},
		"of an unknown root":          {chain{certify(impostor)}, "certificate"},
		"of an unknown root, shown":   {chain{certify(impostor), impostor.Certificate}, "certificate"},
		"without the CA below":        {chain{certify(between)}, "unknown authority"},
		"by a CA for the web":         {chain{certify(web), web.Certificate}, "other uses"},
		"by a CA that ended":          {chain{certify(ended), ended.Certificate}, "expired"},
		"deeper than allowed":         {chain{certify(deep), deep.Certificate, short.Certificate}, "too many intermediates"},
		"no extended usage":           {chain{certify(root, usage())}, "tcg-kp-EKCertificate"},
		"an attestation key's":        {chain{certify(root, usage(asn1.ObjectIdentifier{2, 23, 133, 8, 3}))}, "tcg-kp-EKCertificate"},
		"any usage":                   {chain{certify(root, usage(), func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} })}, "tcg-kp-EKCertificate"},
		"for signatures":              {chain{certify(root, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature })}, "not for encryption"},
		"for agreement, of RSA":       {chain{certify(root, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement })}, "not for encryption"},
		"a CA by its constraints":     {chain{certify(root, func(c *x509.Certificate) { c.IsCA = true })}, "a CA's"},
		"a CA":                        {chain{certify(root, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, c.KeyUsage|x509.KeyUsageCertSign })}, "a CA's"},
		"another critical extension": {chain{certify(root, func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}})
		})}, "unhandled critical"},
		"two manufacturers": {chain{certify(root, func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{twice(t)}
		})}, "alternative name"},
		"a manufacturer of lines": {chain{certify(root, about("id:1\nid:2", "m", "v"))}, "alternative name"},
		"a long manufacturer":     {chain{certify(root, about(strings.Repeat("x", 65), "m", "v"))}, "alternative name"},
		"no manufacturer's name":  {chain{certify(root, about("", "m", "v"))}, "alternative name"},
		"no alternative names":    {chain{certify(root, altName([]byte{0x30, 0x00}))}, ""},
		"broken in its middle":    {chain{certify(root, altName([]byte{0x30, 0x04, 0xa4, 0x02, 0x30, 0x05}))}, ""},
		"a thousand directories":  {chain{certify(root, altName(many(t, 1000)))}, ""},
		"five certificates":       {chain{certify(between), between.Certificate, between.Certificate, between.Certificate, between.Certificate}, "1 to 4"},
		"another's after our own": {chain{certify(root), impostor.Certificate}, ""},
	} {
		refusedOnly := map[string]bool{"broken in its middle": true, "a thousand directories": true}
		_, err := joins(t, m, f.shown(f.public(), r.shown), f.answer)
		if r.why != "" || refusedOnly[name] {
			refused(t, name, err, r.why)
		} else if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Signed by a certificate of an endorsement key's own.
	leafKey := tpmtest.NewMaker(t, "leaf", root, start, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, x509.KeyUsageKeyAgreement })
	_, err := joins(t, m, f.shown(f.public(), chain{certify(leafKey), leafKey.Certificate}), f.answer)
	refused(t, "signed by a leaf", err, "")
	// A registered key is known without its certificate, which then says nothing that
	// was not verified; and one that was, says it.
	for by, says := range map[*tpmtest.Maker]bool{impostor: false, root: true} {
		proof, err := joins(t, method(t, &tpm.Settings{Roots: root.PEM(), EKHashes: map[string]string{"rack-7": f.hash()}}), f.shown(f.public(), chain{certify(by)}), f.answer)
		if err != nil || proof.Name != "rack-7" {
			t.Fatalf("%+v, %v", proof, err)
		}
		if _, ok := proof.Facts.Map()["node.tpm.manufacturer"]; ok != says {
			t.Errorf("facts %v", proof.Facts.Map())
		}
	}
}

func twice(t testing.TB) pkix.Extension {
	both := tpmtest.AltName(t, "id:1")
	inner := both.Value[2:]
	both.Value = append([]byte{0x30, byte(2 * len(inner))}, slices.Concat(inner, inner)...)
	return both
}

func many(t testing.TB, n int) []byte {
	t.Helper()
	value, err := asn1.Marshal(slices.Repeat([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: []byte{0x30, 0}}}, n))
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// What a stranger shows is refused for little, however it is made. It runs alone: CPU
// time is counted.
//
// Regression: SPIRE 1.14.2 x509pop
func TestHostileChainsCostLittle(t *testing.T) {
	f := newForger(t)
	root := tpmtest.NewMaker(t, "root", nil, start)
	m := method(t, &tpm.Settings{Roots: root.PEM()})
	good := root.Certify(t, f.ek.Public(), start)
	large := &rsa.PublicKey{N: new(big.Int).Or(new(big.Int).Lsh(one, 16383), one), E: 1<<31 - 1}
	like := tpmtest.NewMaker(t, "root", nil, start) // of the same name, so that it is tried
	why := map[string]string{"100 certificates": "1 to 4", "RSA of 16,384": "16384 bits", "a CA of 16,384": "16384 bits", "400 names": "names and usages", "400 usages": "names and usages"}
	all := map[string][]*x509.Certificate{
		"100 certificates": slices.Repeat([]*x509.Certificate{good}, 100),
		"RSA of 16,384":    {unsigned(t, large, func(*x509.Certificate) {})},
		"a CA of 16,384":   {good, unsigned(t, large, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true })},
		"400 names":        {unsigned(t, f.ek.Public(), func(c *x509.Certificate) { c.DNSNames = slices.Repeat([]string{"host.evil.example"}, 400) })},
		"400 usages":       {unsigned(t, f.ek.Public(), func(c *x509.Certificate) { c.UnknownExtKeyUsage = slices.Repeat(c.UnknownExtKeyUsage, 400) })},
		"400 directories": {unsigned(t, f.ek.Public(), func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: many(t, 400)}}
		})},
		"three of the same name": {like.Certify(t, f.ek.Public(), start), like.Certificate, like.Certificate, like.Certificate},
	}
	cpu := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			t.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		shown := f.shown(f.public(), all[name])
		const times = 3
		before := cpu()
		for range times {
			_, err := joins(t, m, shown, func([]byte) ([]byte, error) { return nil, errors.New("it is challenged") })
			refused(t, name, err, why[name])
		}
		if each := (cpu() - before) / times; each > 50*time.Millisecond {
			t.Errorf("%s: each cost %s of CPU", name, each)
		}
	}
}

// Only the TPM that has both keys answers: not one that was shown another's
// attestation key, nor one into which a key of software was loaded.
func TestOnlyItsTPMAnswers(t *testing.T) {
	t.Parallel()
	one, c := machine(t, ecc)
	another, _ := machine(t, ecc)
	found, ek := find(t, one)
	m := method(t, &tpm.Settings{EKHashes: map[string]string{"rack-7": found.Hash}})
	// The first machine's endorsement key with the other's attestation key: both have
	// one of them, and another of their own.
	f := newForger(t)
	attestationKey(t, one)
	shown := f.shown(attestationKey(t, another), ek)
	for name, n := range map[string]*evidence.Node{"the one that has the endorsement key": one, "the one that has the attestation key": another} {
		if _, err := joins(t, m, shown, func(challenge []byte) ([]byte, error) { return n.Answer(t.Context(), challenge, nodeKey) }); !errors.Is(err, tpm2.TPMRCIntegrity) {
			t.Errorf("%s answers: %v", name, err)
		}
	}
	// A key of software, whose public half says that it is none.
	dev, err := linuxudstpm.Open(c.Device)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	_, err = joins(t, m, f.shown(f.public(), ek), func(challenge []byte) ([]byte, error) {
		public, err := tpm2.Unmarshal[tpm2.TPMTPublic](f.public())
		if err != nil {
			t.Fatal(err)
		}
		loaded, err := tpm2.LoadExternal{InPublic: tpm2.New2B(*public), Hierarchy: tpm2.TPMRHEndorsement}.Execute(dev)
		if err != nil {
			t.Fatal(err)
		}
		return nil, activate(t, dev, loaded.ObjectHandle, loaded.Name, challenge)
	})
	if err == nil || errors.Is(err, join.ErrEvidence) {
		t.Errorf("a key that the TPM does not have activates: %v", err)
	}
	t.Log(err)
}

// What is asked of a node twice, for another domain or another key, is no answer here.
func TestTheAgentAnswersOnce(t *testing.T) {
	t.Parallel()
	n, c := machine(t, ecc)
	if _, err := n.Answer(t.Context(), []byte("{}"), nodeKey); err == nil {
		t.Error("it answers without having shown anything")
	}
	found, _ := find(t, n)
	m := method(t, &tpm.Settings{EKHashes: map[string]string{"rack-7": found.Hash}})
	shown, err := n.Evidence(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := joins(t, m, shown, func(challenge []byte) ([]byte, error) {
		answer, err := n.Answer(t.Context(), challenge, nodeKey)
		if _, again := n.Answer(t.Context(), challenge, nodeKey); again == nil {
			t.Error("it answers twice")
		}
		return answer, err
	}); err != nil {
		t.Fatal(err)
	}
	// A broker of another domain, and a join with another key, in the middle.
	for why, relay := range map[string]func(*evidence.Config, *[]byte){
		"for our trust domain":  func(c *evidence.Config, _ *[]byte) { c.TrustDomain = "example.com" },
		"not for our challenge": func(_ *evidence.Config, key *[]byte) { *key = []byte("the relay's key") },
	} {
		c, key := c, nodeKey
		relay(&c, &key)
		n := evidence.New(c)
		shown, err := n.Evidence(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, err = joins(t, m, shown, func(challenge []byte) ([]byte, error) { return n.Answer(t.Context(), challenge, key) })
		refused(t, "a relay", err, why)
	}
	for _, text := range []string{"", "x", `{"pcrs":[24]}`, `{"pcrs":[-1]}`, `{"credential":"","secret":"","pcrs":[]}`, `{"pcrs":[` + strings.Repeat("1,", 24) + `1]}`, strings.Repeat(" ", 5000)} {
		if _, err := n.Evidence(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Answer(t.Context(), []byte(text), nodeKey); err == nil {
			t.Errorf("%.20q is answered", text)
		}
	}
}

func FuzzJoin(f *testing.F) {
	forged := newForger(f)
	m := method(f, knows(forged))
	shown := forged.shown(forged.public(), forged.ek.Public())
	f.Add(shown, []byte("{}"))
	f.Add([]byte(`{"chain":["AAAA"],"ak":"AAAA"}`), []byte(`{"quote":"/1RDRw==","signature":"","pcrs":[]}`))
	answer, err := forged.quote(make([]byte, 32))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(shown, answer)
	f.Fuzz(func(t *testing.T, shown, answer []byte) {
		if _, err := joins(t, m, shown, func([]byte) ([]byte, error) { return answer, nil }); err == nil {
			t.Errorf("%q with %q is a node", shown, answer)
		}
	})
}

// FuzzQuote has the attestation key sign anything.
func FuzzQuote(f *testing.F) {
	forged := newForger(f)
	forged.pcrs, forged.values = []int{7}, [][]byte{make([]byte, 32)}
	m := method(f, knows(forged, 7))
	shown := forged.shown(forged.public(), forged.ek.Public())
	answer, err := forged.quote(make([]byte, 32))
	if err != nil {
		f.Fatal(err)
	}
	var a struct{ Quote []byte }
	if err := json.Unmarshal(answer, &a); err != nil {
		f.Fatal(err)
	}
	f.Add(a.Quote)
	f.Fuzz(func(t *testing.T, text []byte) {
		forged := *forged
		forged.t = t
		if _, err := joins(t, m, shown, func([]byte) ([]byte, error) { return forged.sign(text) }); err == nil {
			t.Errorf("%x is a quote", text)
		}
	})
}

// FuzzAltName has a maker's CA certify a TPM of any make.
func FuzzAltName(f *testing.F) {
	forged := newForger(f)
	root := tpmtest.NewMaker(f, "root", nil, start)
	m := method(f, &tpm.Settings{Roots: root.PEM()})
	f.Add(tpmtest.AltName(f, "id:4D414B45", "Model 7", "id:00010002").Value)
	f.Add(twice(f).Value)
	f.Add(many(f, 3))
	f.Fuzz(func(t *testing.T, value []byte) {
		forged := *forged
		forged.t = t
		c, err := root.TryCertify(forged.ek.Public(), start, func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: value}}
		})
		if err != nil {
			return // crypto/x509 reads no such name
		}
		proof, err := joins(t, m, forged.shown(forged.public(), []*x509.Certificate{c}), forged.answer)
		if err != nil && !errors.Is(err, join.ErrEvidence) {
			t.Errorf("%x: %v", value, err)
		}
		for _, name := range []string{"manufacturer", "model", "version"} {
			if v := proof.Facts.Map()["node.tpm."+name]; len(v) > 1 || len(v) == 1 && (v[0] == "" || len(v[0]) > 64 || strings.ContainsFunc(v[0], func(r rune) bool { return r < ' ' || r > '~' })) {
				t.Errorf("%x: %s is %q", value, name, v)
			}
		}
	})
}
