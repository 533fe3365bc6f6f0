package main

import (
	"fmt"
	"os"
	"slices"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3" // what typed_config may be
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlspb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"github.com/goccy/go-yaml"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protopath"
	"google.golang.org/protobuf/reflect/protorange"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// load reads a bootstrap configuration as strictly as Envoy: an unknown field,
// or a value that a field's rules refuse, is an error, in typed_config too.
func load(path string) (*bootstrap.Bootstrap, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	asJSON, err := yaml.YAMLToJSON(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	b := &bootstrap.Bootstrap{}
	if err := protojson.Unmarshal(asJSON, b); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := each(b, func(m proto.Message) error {
		if v, ok := m.(interface{ ValidateAll() error }); ok {
			return v.ValidateAll()
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return b, nil
}

// each visits a message and all within, what an Any holds included.
func each(root proto.Message, visit func(proto.Message) error) error {
	return protorange.Range(root.ProtoReflect(), func(v protopath.Values) error {
		if m, ok := v.Index(-1).Value.Interface().(protoreflect.Message); ok {
			return visit(m.Interface())
		}
		return nil
	})
}

// secretNames are those that a configuration asks for, each once.
func secretNames(b *bootstrap.Bootstrap) (names []string) {
	_ = each(b, func(m proto.Message) error { // it was visited before
		if s, ok := m.(*tlspb.SdsSecretConfig); ok && !slices.Contains(names, s.GetName()) {
			names = append(names, s.GetName())
		}
		return nil
	})
	return names
}
