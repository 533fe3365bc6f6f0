package federation_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"

	"github.com/credence-id/credence/federation"
)

func TestBundleFingerprint(t *testing.T) {
	a, b := newCA(t, nil), newCA(t, nil)
	of := func(cas ...*ca) string {
		bundle := spiffebundle.New(partner)
		for _, c := range cas {
			bundle.AddX509Authority(c.Cert)
		}
		return federation.BundleFingerprint(bundle)
	}
	keys := [][]byte{a.Cert.RawSubjectPublicKeyInfo, b.Cert.RawSubjectPublicKeyInfo}
	slices.SortFunc(keys, bytes.Compare)
	sum := sha256.Sum256(slices.Concat(keys...))
	if want := "sha256:" + hex.EncodeToString(sum[:]); of(a, b) != want || of(b, a) != want {
		t.Errorf("of two keys in both orders: %s and %s, want %s", of(a, b), of(b, a), want)
	}
	if of(a) != federation.Fingerprint(a.Cert) {
		t.Error("of one key it is not the key's own")
	}
	if got := of(); got != "" {
		t.Errorf("of no key: %s", got)
	}
	jwt := spiffebundle.New(partner)
	jwt.AddX509Authority(a.Cert)
	if err := jwt.AddJWTAuthority("k", newKey(t).Public()); err != nil {
		t.Fatal(err)
	}
	if federation.BundleFingerprint(jwt) != of(a) {
		t.Error("a JWT key changed it")
	}
}

func TestFingerprintWords(t *testing.T) {
	zeros, ones := "sha256:"+strings.Repeat("0", 64), "sha256:"+strings.Repeat("f", 64)
	across := "sha256:" + "002004" + strings.Repeat("0", 58) // 1, 1 and zeros, of 11 bits each
	for name, tt := range map[string]struct {
		fingerprint string
		want        []string
	}{
		"zeros":          {zeros, slices.Repeat([]string{"abandon"}, 12)},
		"ones":           {ones, slices.Repeat([]string{"zoo"}, 12)},
		"across bytes":   {across, append([]string{"ability", "ability"}, slices.Repeat([]string{"abandon"}, 10)...)},
		"no fingerprint": {"sha256:00", nil},
	} {
		got := federation.FingerprintWords(tt.fingerprint)
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}

// The words must be told apart by who hears them, and be eleven bits each.
func TestWordList(t *testing.T) {
	text, err := os.ReadFile("words.txt")
	if err != nil {
		t.Fatal(err)
	}
	words := strings.Fields(string(text))
	if len(words) != 2048 || !slices.IsSorted(words) {
		t.Fatalf("%d words, sorted %v", len(words), slices.IsSorted(words))
	}
	begin := make(map[string]string)
	for _, w := range words {
		first := w[:min(4, len(w))]
		if len(w) < 3 || len(w) > 8 || strings.Trim(w, "abcdefghijklmnopqrstuvwxyz") != "" || begin[first] != "" {
			t.Errorf("word %q, beside %q", w, begin[first])
		}
		begin[first] = w
	}
}
