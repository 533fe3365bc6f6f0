package federation

import (
	"maps"
	"slices"
)

// alarm tells of what an operator should know about a bundle that was taken.
func (r *Refresher) alarm(j job, b *Bundle) {
	log := r.log.With("trust_domain", b.TrustDomain().Name())
	for _, ignored := range b.Ignored {
		log.Warn("entry of a peer's bundle ignored", "index", ignored.Index, "reason", ignored.Reason)
	}
	if b.Empty() {
		log.Error("peer's bundle holds no key: nothing of its trust domain is trusted")
		return
	}
	if j.held == nil {
		return
	}
	old := j.held.bundle
	before, had := old.SequenceNumber()
	if now, has := b.SequenceNumber(); had && (!has || now == before) {
		log.Warn("peer's bundle changed, its sequence did not grow", "sequence", before)
	}
	if !old.Empty() && !keyInCommon(old, b) {
		log.Error("every key of a peer's bundle changed", "sequence", before,
			"old_fingerprint", BundleFingerprint(old.Bundle), "fingerprint", BundleFingerprint(b.Bundle))
	}
}

// SharesKey says whether some authority is in both bundles.
func (b *Bundle) SharesKey(other *Bundle) bool { return keyInCommon(b, other) }

func keyInCommon(a, b *Bundle) bool {
	if slices.ContainsFunc(a.X509Authorities(), b.HasX509Authority) {
		return true
	}
	keys := b.JWTAuthorities()
	for kid, key := range maps.All(a.JWTAuthorities()) {
		if other, ok := keys[kid]; ok && sameKey(key, other) {
			return true
		}
	}
	return false
}
