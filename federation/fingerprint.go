package federation

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
)

// wordList is the English list of BIP-39: 2,048 words, no two of which share
// their first four letters, so that they survive a bad line.
//
//go:embed words.txt
var wordList string

// fingerprintWords is how many words are read out: at 11 bits each, 132 of the
// 256 bits.
const fingerprintWords = 12

// BundleFingerprint names the X.509 authorities of a bundle: "sha256:" and the
// lower-case hex SHA-256 over the DER SubjectPublicKeyInfos of its x509-svid
// keys, each once, sorted by their bytes. For a bundle of one key that is the
// key's own Fingerprint. A bundle without one has none: "".
func BundleFingerprint(b *spiffebundle.Bundle) string {
	var keys [][]byte
	for _, ca := range b.X509Authorities() {
		keys = append(keys, ca.RawSubjectPublicKeyInfo)
	}
	if len(keys) == 0 {
		return ""
	}
	slices.SortFunc(keys, bytes.Compare)
	sum := sha256.New()
	for _, key := range slices.CompactFunc(keys, bytes.Equal) {
		sum.Write(key) // DER says where it ends, so that no two sets read alike
	}
	return fingerprintTag + hex.EncodeToString(sum.Sum(nil))
}

// FingerprintWords is the first half of a fingerprint as words that two people
// compare by phone; nil for what is no fingerprint.
func FingerprintWords(fingerprint string) []string {
	if checkFingerprint(fingerprint) != nil {
		return nil
	}
	sum, err := hex.DecodeString(strings.TrimPrefix(fingerprint, fingerprintTag))
	if err != nil {
		return nil
	}
	list := strings.Fields(wordList)
	words := make([]string, fingerprintWords)
	for i := range words {
		n := 0
		for bit := 11 * i; bit < 11*(i+1); bit++ {
			n = n<<1 | int(sum[bit/8]>>(7-bit%8)&1)
		}
		words[i] = list[n]
	}
	return words
}
