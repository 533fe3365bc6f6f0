package federationtest

import (
	_ "embed" // the vectors
	"encoding/json"
	"testing"
)

//go:embed testdata/spiffe-id-vectors.json
var nameVectors []byte

// A Name is a SPIFFE ID or the name of a trust domain, and whether it is one.
// What the documents leave open is none: two spellings of one ID are two IDs.
type Name struct {
	ID     string // the vector's number
	Input  string
	Spec   string
	Reason string
}

// Valid says whether Input is to be taken, as it stands.
func (n Name) Valid() bool { return n.Spec == "valid" }

// SPIFFEIDs are the vectors of SPIFFE IDs, ID-001 and on.
func SPIFFEIDs(t testing.TB) []Name {
	t.Helper()
	ids, _ := names(t)
	return ids
}

// TrustDomains are the vectors of trust domains' names, TD-01 and on.
func TrustDomains(t testing.TB) []Name {
	t.Helper()
	_, tds := names(t)
	return tds
}

func names(t testing.TB) (ids, trustDomains []Name) {
	t.Helper()
	var all struct{ SpiffeIDs, TrustDomains []Name }
	if err := json.Unmarshal(nameVectors, &all); err != nil {
		t.Fatal(err)
	}
	if len(all.SpiffeIDs) == 0 || len(all.TrustDomains) == 0 {
		t.Fatal("no vectors")
	}
	return all.SpiffeIDs, all.TrustDomains
}
