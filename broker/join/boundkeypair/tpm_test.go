package boundkeypair_test

import (
	"crypto"
	"path/filepath"
	"testing"

	evidence "github.com/credence-id/credence/agent/evidence/boundkeypair"
	"github.com/credence-id/credence/agent/tpmseal/tpmtest"
	"github.com/credence-id/credence/broker/join"
)

// public is a key of which nothing else is known.
type public struct {
	crypto.Signer
	key crypto.PublicKey
}

func (p public) Public() crypto.PublicKey { return p.key }

// A node whose key is in its TPM joins, and again after the power went. Its disk in
// another machine does not, and that costs neither the node nor the broker anything.
func TestAKeyInATPM(t *testing.T) {
	t.Parallel()
	tpm, dir := tpmtest.Dir(t), t.TempDir()
	file, state := filepath.Join(dir, "key"), filepath.Join(dir, "state")
	machine := func(device string) *evidence.Prover {
		return evidence.New(evidence.Config{TrustDomain: domain, Key: evidence.File{Path: file, Device: device}, StateFile: state})
	}
	var b *broker
	t.Run("before the power goes", func(t *testing.T) {
		device := tpmtest.StartIn(t, tpm)
		key, err := evidence.CreateTPMKey(file, device)
		if err != nil {
			t.Fatal(err)
		}
		b = newBroker(t, public{key: key}, limit(0))
		n := machine(device)
		for range 2 {
			if proof := b.joins(n); proof.Name != "build-7" || proof.DurableKey != keyOf(b) {
				t.Errorf("proof %+v", proof)
			}
		}
	})
	b.t = t
	other, before := machine(tpmtest.Start(t)), b.state()
	if proof, err := b.join(other); err == nil || b.state() != before {
		t.Fatalf("another machine joins: %+v, %v", proof, err)
	}
	n := machine(tpmtest.StartIn(t, tpm))
	b.joins(n)
	b.joins(n)
	if got := b.state(); got.Joins != 4 || got.Recoveries != 0 {
		t.Errorf("state %+v", got)
	}
	b.tamper = func(_, _, answer []byte) []byte { answer[len(answer)-1] ^= 1; return answer }
	b.refuses(n, join.ErrEvidence)
}
