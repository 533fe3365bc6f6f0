package tpm_test

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	evidence "github.com/credence-id/credence/agent/evidence/tpm"
	"github.com/credence-id/credence/agent/tpmseal/tpmtest"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/tpm"
)

const domain = "example.org"

var (
	start   = time.Date(2026, 12, 1, 10, 20, 30, 0, time.UTC)
	nodeKey = []byte("the node's public key in DER")
)

func method(t testing.TB, s *tpm.Settings, changes ...func(*tpm.Config)) join.Method {
	t.Helper()
	c := tpm.Config{Settings: s, TrustDomain: domain, Now: func() time.Time { return start }}
	for _, change := range changes {
		change(&c)
	}
	m, err := tpm.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// joins are a broker's: it knows the key of the node that joins.
func joins(t testing.TB, m join.Method, shown []byte, answer func(challenge []byte) ([]byte, error)) (join.Proof, error) {
	t.Helper()
	ctx := join.WithKey(t.Context(), sha256.Sum256(nodeKey))
	return m.Join(ctx, shown, func(_ context, challenge []byte) ([]byte, error) { return answer(challenge) })
}

// joinAs joins as an agent does.
func joinAs(t testing.TB, m join.Method, n *evidence.Node) (join.Proof, error) {
	t.Helper()
	shown, err := n.Evidence(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return joins(t, m, shown, func(challenge []byte) ([]byte, error) { return n.Answer(t.Context(), challenge, nodeKey) })
}

// machine is one with a TPM in software, as it joins by a kind of endorsement key.
func machine(t *testing.T, changes ...func(*evidence.Config)) (*evidence.Node, evidence.Config) {
	t.Helper()
	c := evidence.Config{TrustDomain: domain, Device: tpmtest.Start(t)}
	for _, change := range changes {
		change(&c)
	}
	return evidence.New(c), c
}

func find(t *testing.T, n *evidence.Node) (evidence.Found, crypto.PublicKey) {
	t.Helper()
	found, err := n.Find(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ek, err := x509.ParsePKIXPublicKey(found.Public)
	if err != nil {
		t.Fatal(err)
	}
	return found, ek
}

func ecc(c *evidence.Config) { c.EK = "ecc" }

// A machine joins by the certificate that its TPM holds, again and again.
func TestCertificateInTheTPM(t *testing.T) {
	t.Parallel()
	for kind, at := range map[string]tpm2.TPMHandle{"rsa": tpmtest.RSACertificate, "ecc": tpmtest.ECCCertificate} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			maker := tpmtest.NewMaker(t, "maker", nil, start)
			n, c := machine(t, func(c *evidence.Config) { c.EK = kind })
			found, ek := find(t, n)
			certificate := maker.Certify(t, ek, start)
			tpmtest.Hold(t, c.Device, at, append(certificate.Raw, make([]byte, 300)...)) // some makers fill up
			c.EK = ""                                                                    // it finds what there is
			n = evidence.New(c)
			m := method(t, &tpm.Settings{Roots: maker.PEM(), EK: kind})
			for range 4 { // nothing stays loaded: a TPM has room for three
				proof, err := joinAs(t, m, n)
				if err != nil {
					t.Fatal(err)
				}
				root := sha256.Sum256(maker.Certificate.RawSubjectPublicKeyInfo)
				want := map[string][]string{
					"node.tpm.ek_hash": {found.Hash}, "node.tpm.manufacturer": {"id:4D414B45"}, "node.tpm.model": {"Model 7"}, "node.tpm.version": {"id:00010002"},
					"node.tpm.issuer_cn": {"maker"}, "node.tpm.certificate_serial": {hex.EncodeToString(certificate.SerialNumber.Bytes())},
					"node.tpm.root_key": {"sha256:" + hex.EncodeToString(root[:])},
				}
				if d := cmp.Diff(want, proof.Facts.Map()); d != "" || proof.Name != found.Hash[7:39] || proof.DurableKey != found.Hash {
					t.Fatalf("%s, banned by %s: %s", proof.Name, proof.DurableKey, d)
				}
			}
		})
	}
}

// A machine that is banned by one of its endorsement keys doesn't come back by the
// other, by certificate or hash: a rule takes one kind.
func TestOneKindOfEndorsementKey(t *testing.T) {
	t.Parallel()
	maker := tpmtest.NewMaker(t, "maker", nil, start)
	n, c := machine(t, ecc)
	found, ek := find(t, n)
	tpmtest.Hold(t, c.Device, tpmtest.ECCCertificate, maker.Certify(t, ek, start).Raw)
	for kind, takes := range map[string]bool{"": false, "rsa": false, "ecc": true} {
		for _, hashes := range []map[string]string{nil, {"rack-7": found.Hash}} {
			_, err := joinAs(t, method(t, &tpm.Settings{Roots: maker.PEM(), EK: kind, EKHashes: hashes}), evidence.New(c))
			if !takes {
				refused(t, kind, err, "other kind")
			} else if err != nil {
				t.Errorf("%s: %v", kind, err)
			}
		}
	}
}

// A machine whose key is registered needs no certificate, and has the name that it was
// registered by; a stranger's is none.
func TestRegistered(t *testing.T) {
	t.Parallel()
	n, _ := machine(t, ecc)
	found, ek := find(t, n)
	der, err := x509.MarshalPKIXPublicKey(ek)
	if sum := sha256.Sum256(der); err != nil || found.Hash != "sha256:"+hex.EncodeToString(sum[:]) {
		t.Fatalf("%s, %v", found.Hash, err)
	}
	proof, err := joinAs(t, method(t, &tpm.Settings{EKHashes: map[string]string{"rack-7": found.Hash}}), n)
	if err != nil || proof.Name != "rack-7" || proof.DurableKey != found.Hash {
		t.Fatalf("%+v, %v", proof, err)
	}
	want := map[string][]string{"node.tpm.ek_hash": {found.Hash}, "node.tpm.registered": {"true"}}
	if d := cmp.Diff(want, proof.Facts.Map()); d != "" {
		t.Error(d)
	}
	other := "sha256:" + strings.Repeat("0", 64)
	for name, s := range map[string]*tpm.Settings{
		"another's hash": {EKHashes: map[string]string{"rack-7": other}},
		"a maker's root": {Roots: tpmtest.NewMaker(t, "maker", nil, start).PEM(), EK: "ecc"},
	} {
		_, err := joinAs(t, method(t, s), n)
		refused(t, name, err, "ek_hashes")
	}
}

// What the TPM doesn't hold comes from a file, with what stands between it and the
// root.
func TestCertificateInAFile(t *testing.T) {
	t.Parallel()
	root := tpmtest.NewMaker(t, "root", nil, start)
	between := tpmtest.NewMaker(t, "TPMs", root, start)
	n, c := machine(t, ecc)
	_, ek := find(t, n)
	certificate := between.Certify(t, ek, start)
	c.EK, c.Cert = "", filepath.Join(t.TempDir(), "ek.pem")
	write := func(all ...*x509.Certificate) {
		var text []byte
		for _, c := range all {
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
		}
		if err := os.WriteFile(c.Cert, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(certificate, between.Certificate)
	if _, err := joinAs(t, method(t, &tpm.Settings{Roots: root.PEM(), EK: "ecc"}), evidence.New(c)); err != nil {
		t.Error(err)
	}
	write(certificate) // the CA below the root stands for it
	m := method(t, &tpm.Settings{Roots: between.PEM(), EK: "ecc"})
	if _, err := joinAs(t, m, evidence.New(c)); err != nil {
		t.Error(err)
	}
	write(between.Certify(t, other(t), start))
	for _, text := range []string{"", "of another key"} {
		if text == "" {
			if err := os.WriteFile(c.Cert+"x", nil, 0o600); err != nil {
				t.Fatal(err)
			}
			c.Cert += "x"
		} else {
			c.Cert = strings.TrimSuffix(c.Cert, "x")
		}
		if _, err := evidence.New(c).Evidence(t.Context()); err == nil || !strings.Contains(err.Error(), "join.cert") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// What a TPM holds that is no certificate of its key is passed over, and said.
func TestCertificatesThatArePassed(t *testing.T) {
	t.Parallel()
	maker := tpmtest.NewMaker(t, "maker", nil, start)
	for why, held := range map[string][]byte{"of another key": maker.Certify(t, other(t), start).Raw, "cannot be read": []byte("soon")} {
		n, c := machine(t, ecc)
		tpmtest.Hold(t, c.Device, tpmtest.ECCCertificate, held)
		found, _ := find(t, n)
		if !strings.Contains(found.Passed, why) || found.Chain != nil {
			t.Errorf("%s: %+v", why, found)
		}
		if _, err := joinAs(t, method(t, &tpm.Settings{Roots: maker.PEM(), EK: "ecc", EKHashes: map[string]string{"rack-7": found.Hash}}), n); err != nil {
			t.Errorf("%s: %v", why, err)
		}
	}
}

// A machine that was started anew has the same endorsement key, and an agent that
// outlives its TPM's reset makes it again.
func TestAfterAReset(t *testing.T) {
	t.Parallel()
	dir := tpmtest.Dir(t)
	var n *evidence.Node
	var m join.Method
	for _, name := range []string{"first", "after a reset"} {
		t.Run(name, func(t *testing.T) {
			device := tpmtest.StartIn(t, dir)
			if n == nil {
				n = evidence.New(evidence.Config{TrustDomain: domain, Device: device, EK: "ecc"})
				found, _ := find(t, n)
				m = method(t, &tpm.Settings{EKHashes: map[string]string{"rack-7": found.Hash}})
			}
			for range 2 {
				if _, err := joinAs(t, m, n); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// A key that somebody made stay in the TPM is found there.
func TestKeyThatStands(t *testing.T) {
	t.Parallel()
	n, c := machine(t, ecc)
	found, _ := find(t, n)
	stand(t, c.Device, tpm2.ECCEKTemplate, 0x81010002)
	n = evidence.New(c)
	m := method(t, &tpm.Settings{EKHashes: map[string]string{"rack-7": found.Hash}})
	for range 4 {
		if _, err := joinAs(t, m, n); err != nil {
			t.Fatal(err)
		}
	}
	// What stands there may be another key.
	n, c = machine(t, ecc)
	found, _ = find(t, n)
	stand(t, c.Device, tpm2.ECCSRKTemplate, 0x81010002)
	m = method(t, &tpm.Settings{EKHashes: map[string]string{"rack-8": found.Hash}})
	if _, err := joinAs(t, m, evidence.New(c)); err != nil {
		t.Error(err)
	}
}

func stand(t *testing.T, socket string, template tpm2.TPMTPublic, at tpm2.TPMHandle) {
	t.Helper()
	dev, err := linuxudstpm.Open(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	made, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(template)}.Execute(dev)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.EvictControl{Auth: tpm2.TPMRHOwner, ObjectHandle: &tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name}, PersistentHandle: at}).Execute(dev); err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.FlushContext{FlushHandle: made.ObjectHandle}).Execute(dev); err != nil {
		t.Fatal(err)
	}
}

// The values of PCRs are facts where the rule asks for them, as they are now.
func TestPCRs(t *testing.T) {
	t.Parallel()
	n, c := machine(t, ecc)
	found, _ := find(t, n)
	m := method(t, &tpm.Settings{EKHashes: map[string]string{"rack-7": found.Hash}, PCRs: []int{16, 7}})
	pcrs := func() []string {
		t.Helper()
		proof, err := joinAs(t, m, n)
		if err != nil {
			t.Fatal(err)
		}
		facts := proof.Facts.Map()
		return slices.Concat(facts["node.tpm.pcr_7"], facts["node.tpm.pcr_16"])
	}
	zero := strings.Repeat("0", 64)
	if d := cmp.Diff([]string{zero, zero}, pcrs()); d != "" {
		t.Error(d)
	}
	dev, err := linuxudstpm.Open(c.Device)
	if err != nil {
		t.Fatal(err)
	}
	event := sha256.Sum256([]byte("event"))
	_, err = tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: 16, Name: tpm2.HandleName(16), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: event[:]}}},
	}.Execute(dev)
	if err != nil {
		t.Fatal(err)
	}
	dev.Close()
	want := sha256.Sum256(append(make([]byte, 32), event[:]...))
	if d := cmp.Diff([]string{zero, hex.EncodeToString(want[:])}, pcrs()); d != "" {
		t.Error(d)
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	maker := tpmtest.NewMaker(t, "maker", nil, start)
	leaf := maker.Certify(t, other(t), start)
	hash, good := "sha256:"+strings.Repeat("0a", 32), maker.PEM()
	one := map[string]string{"a": hash}
	for _, row := range []struct {
		s    tpm.Settings
		want string
	}{
		{tpm.Settings{}, "ek_hashes:"},
		{tpm.Settings{PCRs: []int{7}}, "ek_hashes:"},
		{tpm.Settings{EKHashes: map[string]string{}}, "ek_hashes:"},
		{tpm.Settings{EKHashes: map[string]string{"": hash}}, "ek_hashes:"},
		{tpm.Settings{EKHashes: map[string]string{"a/b": hash}}, "ek_hashes:"},
		{tpm.Settings{EKHashes: map[string]string{"..": hash}}, "ek_hashes:"},
		{tpm.Settings{EKHashes: map[string]string{"a": strings.ToUpper(hash)}}, "ek_hashes:"},
		{tpm.Settings{EKHashes: map[string]string{"a": hash[:70]}}, "ek_hashes:"},
		{tpm.Settings{EKHashes: map[string]string{"a": hash, "b": hash}}, "ek_hashes: a and b"},
		{tpm.Settings{Roots: "x"}, "roots:"},
		{tpm.Settings{Roots: good + "x"}, "roots:"},
		{tpm.Settings{Roots: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}))}, "roots:"},
		{tpm.Settings{EKHashes: one, PCRs: []int{24}}, "pcrs:"},
		{tpm.Settings{EKHashes: one, PCRs: []int{-1}}, "pcrs:"},
		{tpm.Settings{EKHashes: one, PCRs: []int{7, 0, 7}}, "pcrs:"},
		{tpm.Settings{EKHashes: one, PCRs: []int{23, 0, 7}}, ""},
		{tpm.Settings{Roots: good + good}, ""},
		{tpm.Settings{Roots: good, EK: "ecc"}, ""},
		{tpm.Settings{Roots: good, EK: "ECC"}, "ek:"},
		{tpm.Settings{EKHashes: one, EK: "ecc"}, "ek:"},
	} {
		err := row.s.Validate()
		if (err == nil) != (row.want == "") || (err != nil && !strings.HasPrefix(err.Error(), row.want)) {
			t.Errorf("%+v: %v", row.s, err)
		}
	}
	if _, err := tpm.New(tpm.Config{Settings: &tpm.Settings{EKHashes: one}, Now: time.Now}); err == nil {
		t.Error("a method of no trust domain")
	}
}

// Roots that end soon are told of, once a day.
func TestRootsThatEnd(t *testing.T) {
	t.Parallel()
	maker := tpmtest.NewMaker(t, "old maker", nil, start)
	now, log := maker.Certificate.NotAfter.Add(-80*24*time.Hour), new(bytes.Buffer)
	m := method(t, &tpm.Settings{Roots: maker.PEM()}, func(c *tpm.Config) {
		c.Now, c.Log = func() time.Time { return now }, slog.New(slog.NewTextHandler(log, nil))
	})
	for range 3 {
		_, err := joins(t, m, []byte("{}"), nil)
		refused(t, "nothing", err, "")
	}
	if n := strings.Count(log.String(), "old maker"); n != 1 {
		t.Errorf("%d times:\n%s", n, log)
	}
}

// Without the key that the node joins with there is nothing to bind to.
func TestNoKey(t *testing.T) {
	t.Parallel()
	m := method(t, &tpm.Settings{EKHashes: map[string]string{"a": "sha256:" + strings.Repeat("0", 64)}})
	for _, ctx := range []context{t.Context(), join.WithKey(t.Context(), identity.KeyDigest{})} {
		if _, err := m.Join(ctx, []byte("{}"), nil); err == nil || !strings.Contains(err.Error(), "no key") {
			t.Error(err)
		}
	}
}
