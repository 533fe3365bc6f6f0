package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
)

// TestConfiguration holds envoy.yaml against Envoy's own definitions: no Envoy
// is here to be asked.
func TestConfiguration(t *testing.T) {
	b, err := load("envoy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if names := secretNames(b); !slices.Equal(slices.Sorted(slices.Values(names)), []string{"ALL", "default"}) {
		t.Errorf("it asks for %v", names)
	}
	known, asked := map[string]bool{}, 0
	err = each(b, func(m proto.Message) error {
		if c, ok := m.(*cluster.Cluster); ok {
			known[c.GetName()] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	_ = each(b, func(m proto.Message) error {
		if g, ok := m.(*core.GrpcService_EnvoyGrpc); ok {
			if asked++; !known[g.GetClusterName()] {
				t.Errorf("no cluster %q", g.GetClusterName())
			}
		}
		return nil
	})
	if asked != 4 {
		t.Errorf("%d secrets come from somewhere, want 4", asked)
	}
}

// TestStrict: what Envoy would refuse is refused, inside typed_config too.
func TestStrict(t *testing.T) {
	text, err := os.ReadFile("envoy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string][2]string{
		"an unknown field":                  {"stat_prefix: inbound", "stat_prefixx: inbound"},
		"one within typed_config":           {"require_client_certificate: true", "require_client_certificates: true"},
		"a value that is refused":           {"stat_prefix: inbound", `stat_prefix: ""`},
		"a type that nobody knows":          {"tls.v3.DownstreamTlsContext", "tls.v3.DownstreamTLSContext"},
		"a port that is none":               {"port_value: 8443", "port_value: 84430"},
		"the secret service of another API": {"transport_api_version: V3", "transport_api_version: V4"},
	} {
		t.Run(name, func(t *testing.T) {
			changed := strings.Replace(string(text), change[0], change[1], 1)
			if changed == string(text) {
				t.Fatalf("no %q", change[0])
			}
			path := filepath.Join(t.TempDir(), "envoy.yaml")
			if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := load(path); err == nil {
				t.Error("it was taken")
			}
		})
	}
}
