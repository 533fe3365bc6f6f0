package audit_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker/audit"
)

var signedAt = time.Date(2026, 11, 21, 6, 0, 0, 0, time.UTC)

// A signer is a root, and a key that it certified for an hour.
type signer struct {
	key   *ecdsa.PrivateKey
	chain [][]byte
	roots *x509.CertPool
}

func newSigner(t testing.TB, id string) signer {
	t.Helper()
	uri, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: signedAt.Add(-time.Hour), NotAfter: signedAt.Add(24 * time.Hour),
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), URIs: []*url.URL{uri}, NotBefore: signedAt.Add(-time.Minute), NotAfter: signedAt.Add(time.Hour),
	}
	rootKey, key := ecKey(t), ecKey(t)
	rootDER := certify(t, root, root, rootKey, rootKey)
	parsed, err := x509.ParseCertificate(rootDER)
	if err != nil {
		t.Fatal(err)
	}
	s := signer{key: key, chain: [][]byte{certify(t, leaf, root, key, rootKey)}, roots: x509.NewCertPool()}
	s.roots.AddCert(parsed)
	return s
}

func ecKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func certify(t testing.TB, c, parent *x509.Certificate, key, by *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

const brokerID = "spiffe://example.org/credence/broker"

func (s signer) head(t testing.TB, ref audit.Ref, at time.Time) audit.Head {
	t.Helper()
	h, err := audit.SignHead(audit.HeadOf("example.org", "b1", ref, at), s.key, s.chain)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestHeadsSayWhoSaidThem(t *testing.T) {
	s, ref := newSigner(t, brokerID), audit.Ref{Sequence: 7, Hash: [32]byte{1}}
	head := s.head(t, ref, signedAt)
	line, err := head.Line()
	if err != nil {
		t.Fatal(err)
	}
	back, err := audit.ParseHead(line)
	if err != nil || cmp.Diff(head, back) != "" || back.Ref() != ref {
		t.Fatalf("%s was read as %+v: %v", line, back, err)
	}
	if err := back.Check(s.roots); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*audit.Head){
		"another sequence":  func(h *audit.Head) { h.Sequence++ },
		"another hash":      func(h *audit.Head) { h.Hash = strings.Repeat("ab", 32) },
		"another broker":    func(h *audit.Head) { h.Origin = "b2" },
		"another time":      func(h *audit.Head) { h.Time = h.Time.Add(time.Second) },
		"another domain":    func(h *audit.Head) { h.TrustDomain = "example.com" },
		"after its SVID":    func(h *audit.Head) { *h = s.head(t, ref, signedAt.Add(2*time.Hour)) },
		"not signed":        func(h *audit.Head) { h.Signature, h.Chain = nil, nil },
		"another root":      func(h *audit.Head) { *h = newSigner(t, brokerID).head(t, ref, signedAt) },
		"another's SVID":    func(h *audit.Head) { *h = newSigner(t, "spiffe://example.org/web").head(t, ref, signedAt) },
		"a node's":          func(h *audit.Head) { *h = newSigner(t, "spiffe://example.org/credence/node/a").head(t, ref, signedAt) },
		"no certificate":    func(h *audit.Head) { h.Chain = [][]byte{{1}} },
		"another signature": func(h *audit.Head) { h.Signature = bytes.Clone(h.Signature); h.Signature[9] ^= 1 },
	} {
		t.Run(name, func(t *testing.T) {
			h := head
			change(&h)
			if err := h.Check(s.roots); err == nil {
				t.Error("its signature is good")
			}
		})
	}
}

func TestParseHeadRefuses(t *testing.T) {
	s := newSigner(t, brokerID)
	line, err := s.head(t, audit.Ref{Sequence: 7, Hash: [32]byte{1}}, signedAt).Line()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string][2]string{
		"a space":            {`"sequence":7`, `"sequence": 7`},
		"no sequence":        {`"sequence":7`, `"sequence":0`},
		"an unknown member":  {`"sequence":7`, `"sequence":7,"more":1`},
		"a member twice":     {`"sequence":7`, `"sequence":6,"sequence":7`},
		"a short hash":       {strings.Repeat("00", 31), strings.Repeat("00", 30)},
		"no hash":            {`01` + strings.Repeat("00", 31), strings.Repeat("00", 32)},
		"capitals":           {`01` + strings.Repeat("00", 31), `0A` + strings.Repeat("00", 31)},
		"no origin":          {`"b1"`, `""`},
		"an origin with @":   {`"b1"`, `"b@1"`},
		"a long origin":      {`"b1"`, `"` + strings.Repeat("b", 64) + `"`},
		"another time zone":  {`2026-11-21T06:00:00Z`, `2026-11-21T07:00:00+01:00`},
		"no time":            {`2026-11-21T06:00:00Z`, `0001-01-01T00:00:00Z`},
		"no trust domain":    {`"example.org"`, `""`},
		"signature no chain": {`"chain":["`, `"chain":[],"x":["`},
		"two":                {`{`, `{}{`},
	} {
		t.Run(name, func(t *testing.T) {
			changed := bytes.Replace(line, []byte(c[0]), []byte(c[1]), 1)
			if bytes.Equal(changed, line) {
				t.Fatalf("no %s in %s", c[0], line)
			}
			if h, err := audit.ParseHead(changed); err == nil {
				t.Errorf("%s was read as %+v", changed, h)
			}
		})
	}
	if _, err := audit.ReadHeads(strings.NewReader(string(line) + "\n\n" + string(line) + "\nx\n")); err == nil || !strings.Contains(err.Error(), "line 4") {
		t.Errorf("heads with a bad line: %v", err)
	}
	if _, err := audit.ReadHeads(strings.NewReader(strings.Repeat("x", audit.MaxHead+1))); err == nil {
		t.Error("a line without end was read")
	}
	if heads, err := audit.ReadHeads(bytes.NewReader(append(append(bytes.Clone(line), '\n'), line...))); err != nil || len(heads) != 2 {
		t.Errorf("two heads: %d, %v", len(heads), err)
	}
}

// TestARewrittenHourIsFound has somebody who has the disk and the key of heads
// write the end of the record anew, and sign heads of it.
func TestARewrittenHourIsFound(t *testing.T) {
	s, dir := newSigner(t, brokerID), newDir(t)
	now := signedAt
	c := audit.Config{Dir: dir, MaxBytes: 4000, Now: func() time.Time { return now }}
	var kept []audit.Known
	keep := func(refs []audit.Ref) {
		for i := 4; i < len(refs); i += 5 {
			h := s.head(t, refs[i], now)
			kept = append(kept, audit.Known{Ref: h.Ref(), Time: h.Time, By: "node a"})
		}
	}
	refs := fill(t, c, 20)
	keep(refs)
	// What stood after record 12 goes, and something else is put in its place.
	var before []byte
	for _, name := range names(t, dir) {
		before = append(before, read(t, filepath.Join(dir, name))...)
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	stay := bytes.Join(bytes.SplitAfter(before, []byte("\n"))[:12], nil)
	if err := os.WriteFile(filepath.Join(dir, one), stay, 0o600); err != nil {
		t.Fatal(err)
	}
	l := open(t, c)
	var forged []audit.Ref
	for i := range 10 {
		forged = append(forged, add(t, l, event(1000+i))...)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if r := verified(t, dir, forged[len(forged)-1]); r.Records != 22 { // its chain and its own heads hold
		t.Fatalf("%+v", r)
	}
	if err := s.head(t, forged[9], now).Check(s.roots); err != nil {
		t.Fatal(err)
	}
	_, err := audit.VerifyKnown(t.Context(), dir, append(kept, audit.Known{Ref: forged[9], By: "the forger"}))
	rewritten, ok := errors.AsType[*audit.RewrittenError](err)
	if !ok || rewritten.Kept.Ref != refs[14] || rewritten.After.Ref != refs[9] {
		t.Fatalf("verify: %v", err)
	}
	for _, says := range []string{"record 15", "node a", "written anew", "record 10: trust nothing from record 11 on"} {
		if !strings.Contains(err.Error(), says) {
			t.Errorf("%v; want %q", err, says)
		}
	}
	if broken, ok := errors.AsType[*audit.BrokenError](err); !ok || broken.Line == 0 {
		t.Errorf("%v names no line", err)
	}
	_, err = audit.VerifyKnown(t.Context(), dir, kept[2:])
	if err == nil || !strings.Contains(err.Error(), "trust none of it") {
		t.Errorf("with later heads alone: %v", err)
	}
	_, err = audit.VerifyKnown(t.Context(), dir, []audit.Known{kept[0], {Ref: audit.Ref{Sequence: 40, Hash: [32]byte{1}}}})
	if rewritten, ok := errors.AsType[*audit.RewrittenError](err); !ok || rewritten.End != 22 || rewritten.After.Ref != refs[4] {
		t.Errorf("cut off: %v", err)
	}
	if r, err := audit.VerifyKnown(t.Context(), dir, kept[:2]); err != nil || r.Confirmed != 2 {
		t.Errorf("earlier heads: %+v, %v", r, err)
	}
}

func names(t testing.TB, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".jsonl") {
			all = append(all, e.Name())
		}
	}
	return all
}

// TestKeeper keeps another broker's heads for days, over a restart.
func TestKeeper(t *testing.T) {
	path, now := filepath.Join(t.TempDir(), "heads"), signedAt
	k, err := audit.OpenKeeper(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 60 * 2 {
		now = now.Add(30 * time.Minute)
		h := audit.HeadOf("example.org", "b2", audit.Ref{Sequence: uint64(i + 1), Hash: [32]byte{1}}, now)
		if err := k.Keep(now, h, h, audit.Head{Origin: "nobody"}); err != nil {
			t.Fatal(err)
		}
	}
	kept := k.All()
	if n := len(kept); n < 48+35 || n > 50+37 || kept[0].Sequence != 1 || kept[n-1].Sequence != 120 {
		t.Errorf("%d are kept, from %d to %d", n, kept[0].Sequence, kept[n-1].Sequence)
	}
	text := read(t, path)
	if err := os.WriteFile(path, append(text, text[:30]...), 0o600); err != nil { // a crash
		t.Fatal(err)
	}
	if k, err = audit.OpenKeeper(path); err != nil || cmp.Diff(kept, k.All()) != "" {
		t.Errorf("after a restart %d are kept: %v", len(k.All()), err)
	}
	if err := os.WriteFile(path, []byte("x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := audit.OpenKeeper(path); err == nil {
		t.Error("what is no head was read")
	}
}

// TestEarlierRecords opens and goes on with files as the first release wrote
// them.
func TestEarlierRecords(t *testing.T) {
	files := make(map[string][]byte)
	for _, name := range names(t, filepath.Join("testdata", "golden")) {
		files[name] = read(t, filepath.Join("testdata", "golden", name))
	}
	dir := place(t, files)
	if r := verified(t, dir); r.Records != 6 || r.Files != len(files) || r.Files < 2 {
		t.Fatalf("%+v", r)
	}
	l := open(t, audit.Config{Dir: dir})
	refs := add(t, l, event(1))
	if refs[0].Sequence != 7 {
		t.Errorf("it goes on with record %d", refs[0].Sequence)
	}
	verified(t, dir, refs...)
}

func TestIDs(t *testing.T) {
	for want, origin := range map[string]string{"r-000123": "broker", "r-000123@b2": "b2"} {
		id := audit.Ref{Sequence: 123}.IDAt(origin)
		seq, from, err := audit.ParseID(id)
		if id != want || err != nil || seq != 123 || from != strings.TrimPrefix(strings.TrimPrefix(want, "r-000123"), "@") {
			t.Errorf("%s: %s, read as %d at %q: %v", want, id, seq, from, err)
		}
	}
	if seq, _, err := audit.ParseID("123"); seq != 123 || err != nil {
		t.Errorf("123: %d, %v", seq, err)
	}
	for _, id := range []string{"", "r-", "r-0", "r-x", "r-1@", "r-1@a b", "r--1", "r-99999999999999999999"} {
		if seq, origin, err := audit.ParseID(id); err == nil {
			t.Errorf("%q was read as %d, %q", id, seq, origin)
		}
	}
}

func FuzzParseHead(f *testing.F) {
	s := newSigner(f, brokerID)
	line, err := s.head(f, audit.Ref{Sequence: 7, Hash: [32]byte{1}}, signedAt).Line()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(line)
	f.Fuzz(func(t *testing.T, line []byte) {
		h, err := audit.ParseHead(line)
		if err != nil {
			return
		}
		if again, err := h.Line(); err != nil || !bytes.Equal(again, line) || h.Ref().Sequence == 0 {
			t.Errorf("%s was read as %s: %v", line, again, err)
		}
		_ = h.Check(s.roots) // it must not fall over
	})
}
