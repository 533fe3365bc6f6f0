package exchangers

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"net/url"
	"slices"
)

// CheckDiscovery says what clouds refuse in a discovery document of issuer.
// field is where it is made.
func (w *Walk) CheckDiscovery(step, field string, document []byte) bool {
	var d map[string]any
	if json.Unmarshal(document, &d) != nil || d == nil {
		return w.Fail(step, "discovery_not_json", field, "the discovery document is no JSON object", "have the broker's own document served there")
	}
	said, _ := d["issuer"].(string)
	if !w.Compare(step, "discovery_issuer", "the discovery document's issuer", field, w.Issuer, said) {
		w.Findings[len(w.Findings)-1].Change = "have the broker's own document served at " + w.Issuer
		return false
	}
	for _, name := range slices.Sorted(maps.Keys(d)) {
		v := d[name]
		if list, ok := v.([]any); v == "" || v == nil || ok && len(list) == 0 {
			return w.Fail(step, "discovery_empty", field, "the discovery document's "+Clean(name)+" is empty, and Entra cannot read that", "leave "+Clean(name)+" out, or have the broker's own document served there")
		}
	}
	for _, name := range []string{"response_types_supported", "subject_types_supported", "id_token_signing_alg_values_supported"} {
		if list, _ := d[name].([]any); len(list) == 0 {
			return w.Fail(step, "discovery_lacks", field, "the discovery document has no "+name, "have the broker's own document served there")
		}
	}
	if algs, _ := d["id_token_signing_alg_values_supported"].([]any); !slices.Contains(algs, any("RS256")) {
		return w.Fail(step, "discovery_alg", field, "the discovery document does not name RS256", "have the broker's own document served there")
	}
	return w.checkJWKSURI(step, field, d["jwks_uri"])
}

func (w *Walk) checkJWKSURI(step, field string, v any) bool {
	text, _ := v.(string)
	uri, err1 := url.Parse(text)
	issuer, err2 := url.Parse(w.Issuer)
	switch {
	case err1 != nil || err2 != nil || uri.Scheme != "https" || uri.Host == "":
		return w.Fail(step, "jwks_uri_not_https", field, fmt.Sprintf("the discovery document's jwks_uri %q is no https URL", Clean(text)), "have the broker's own document served there")
	case uri.Host != issuer.Host:
		return w.Fail(step, "jwks_uri_elsewhere", field, "the discovery document's jwks_uri leads to "+Clean(uri.Host)+", not to the issuer's host", "serve the keys at the issuer's host, as the broker's own document says")
	}
	return true
}

type jwk struct {
	KTY, KID, Use, Alg, N string
	X5C                   []string
	X5T                   string
	D                     string
}

// CheckKeySet says what clouds refuse in a key set. field is where it is made.
func (w *Walk) CheckKeySet(step, field string, document []byte) (keys int, ok bool) {
	var set struct{ Keys []jwk }
	if json.Unmarshal(document, &set) != nil {
		return 0, w.Fail(step, "jwks_not_json", field, "the key set is no JSON of keys", "have the broker's own key set served there")
	}
	kids := map[string]bool{}
	for _, k := range set.Keys {
		if !w.checkKey(step, field, k) {
			return 0, false
		}
		if kids[k.KID] {
			return 0, w.Fail(step, "jwks_kid_twice", field, "the key set has two keys of the ID "+Clean(k.KID), "serve each key once")
		}
		kids[k.KID] = true
	}
	for _, k := range w.Keys {
		if k.Active && k.Alg == "RS256" && !kids[k.ID] {
			return 0, w.Fail(step, "jwks_lacks_key", field, "the key set lacks "+k.ID+", which signs: it is an old copy, or another broker's", "have the broker's own key set served there, and empty the caches before it")
		}
	}
	return len(set.Keys), true
}

func (w *Walk) checkKey(step, field string, k jwk) bool {
	name, own := "key "+Clean(k.KID), "have the broker's own key set served there, with nothing added"
	switch n := bits(k.N); {
	case k.D != "":
		return w.Fail(step, "jwks_private", field, name+" of the key set shows its private key", "take it away now, and replace the key: credence ca replace jwt")
	case k.Use != "sig":
		return w.Fail(step, "jwks_use", field, fmt.Sprintf("%s of the key set has use %q: that is a SPIFFE bundle's, and clouds want sig", name, Clean(k.Use)), own)
	case k.KTY != "RSA" || k.Alg != "RS256":
		return w.Fail(step, "jwks_alg", field, fmt.Sprintf("%s of the key set is %s for %q, and Entra takes RS256 alone", name, Clean(k.KTY), Clean(k.Alg)), own)
	case len(k.X5C) > 0 || k.X5T != "":
		return w.Fail(step, "jwks_x5c", field, name+" of the key set has a certificate (x5c, x5t), which Google does not take", own)
	case n < 2048 || n > 4096:
		return w.Fail(step, "jwks_size", field, fmt.Sprintf("%s of the key set has %d bits, and clouds take 2048 to 4096", name, n), own)
	}
	return true
}

func bits(n string) int {
	b, err := base64.RawURLEncoding.DecodeString(n)
	if err != nil {
		return 0
	}
	return new(big.Int).SetBytes(b).BitLen()
}

func (w *Walk) discovery() bool {
	return w.CheckDiscovery("discovery", "broker.issuer", w.Discovery) && w.Done("discovery", "the broker's own document names %s", w.Issuer)
}

func (w *Walk) keySet(r JWTRules) bool {
	const step = "key set"
	n, ok := w.CheckKeySet(step, "broker.issuer", w.JWKS)
	switch {
	case !ok:
		return false
	case n > maxKeys:
		return w.Fail(step, "jwks_many", "broker.issuer", fmt.Sprintf("%d keys, and clouds read %d", n, maxKeys), "retire old keys: credence ca show")
	case r.UploadableKeys > 0 && n > r.UploadableKeys:
		return w.Warn(step, "jwks_upload", "broker.issuer", fmt.Sprintf("%d keys, and where they are uploaded %s takes %d", n, r.Cloud, r.UploadableKeys), "have "+r.Cloud+" fetch them, or retire old keys")
	}
	return w.Done(step, "%d keys, RS256 alone", n)
}
