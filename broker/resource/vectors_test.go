package resource_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/credence-id/credence/federation/federationtest"
)

// quoted is s as a YAML string, whatever is in it.
func quoted(t *testing.T, s string) string {
	t.Helper()
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestEndpointIDVectors are the vectors of section A as a Peer's endpoint_id.
func TestEndpointIDVectors(t *testing.T) {
	for _, v := range federationtest.SPIFFEIDs(t) {
		t.Run(v.ID, func(t *testing.T) {
			text := fmt.Sprintf("kind: Peer\nname: partner.example\nurl: https://partner.example/b\nhttps_spiffe: {endpoint_id: %s}\n", quoted(t, v.Input))
			all, err := registry().Parse("peer.yaml", []byte(text))
			want := v.Valid() && v.ID != "ID-001" // no server has it: it has no path
			if (err == nil) != want || (want && all[0].Peer.HTTPSSPIFFE.EndpointID.String() != v.Input) {
				t.Errorf("%.80q: %v: %s", v.Input, err, v.Reason)
			}
		})
	}
}

// TestPeerNameVectors are the vectors of trust domains as a Peer's name.
func TestPeerNameVectors(t *testing.T) {
	for _, v := range federationtest.TrustDomains(t) {
		t.Run(v.ID, func(t *testing.T) {
			text := fmt.Sprintf("kind: Peer\nname: %s\nurl: https://partner.example/b\nhttps_web: {}\n", quoted(t, v.Input))
			all, err := registry().Parse("peer.yaml", []byte(text))
			if (err == nil) != v.Valid() || (v.Valid() && all[0].Peer.TrustDomain.Name() != v.Input) {
				t.Errorf("%.80q: %v: %s", v.Input, err, v.Reason)
			}
		})
	}
}
