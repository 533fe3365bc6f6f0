package api_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	agentapi "github.com/credence-id/credence/agent/api"
	"github.com/credence-id/credence/broker/api"
)

// The protocol of each release is kept when it is made, under the number of its
// store's schema:
//
//	go test ./broker/api -run TestTheProtocolOnlyGrows -freeze testdata/release-NNN
//
// then what its agent says (see agent) and what its broker answers (broker/server).
// Those of releases that no agent is of any more may be deleted.
var freeze = flag.String("freeze", "", "keep this program's protocol in this directory")

func files() []protoreflect.FileDescriptor {
	return []protoreflect.FileDescriptor{
		api.File_broker_api_node_proto, api.File_broker_api_admin_proto, api.File_broker_api_authority_proto,
		api.File_broker_api_exchange_proto, agentapi.File_agent_api_agent_proto,
	}
}

func keep(t *testing.T, dir string) {
	t.Helper()
	var set descriptorpb.FileDescriptorSet
	for _, f := range files() {
		set.File = append(set.File, protodesc.ToFileDescriptorProto(f))
	}
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(&set)
	if err == nil {
		err = os.MkdirAll(dir, 0o755)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "protocol.binpb"), data, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestTheProtocolOnlyGrows holds that whoever knows an older protocol is
// understood: no service, method, message or field of it is gone, or means
// another thing.
func TestTheProtocolOnlyGrows(t *testing.T) {
	if *freeze != "" {
		keep(t, *freeze)
	}
	all, err := filepath.Glob("testdata/release-*/protocol.binpb")
	if err != nil || len(all) == 0 {
		t.Fatalf("%d releases are kept (%v)", len(all), err)
	}
	for _, path := range all {
		data, err := os.ReadFile(path)
		var set descriptorpb.FileDescriptorSet
		if err == nil {
			err = proto.Unmarshal(data, &set)
		}
		if err != nil {
			t.Fatal(err)
		}
		old, err := protodesc.NewFiles(&set)
		if err != nil {
			t.Fatal(err)
		}
		now := map[protoreflect.FullName]protoreflect.Descriptor{}
		for _, f := range files() {
			walk(f, func(d protoreflect.Descriptor) { now[d.FullName()] = d })
		}
		checked := 0
		old.RangeFiles(func(f protoreflect.FileDescriptor) bool {
			walk(f, func(d protoreflect.Descriptor) {
				checked++
				if is := now[d.FullName()]; is == nil {
					t.Errorf("%s: %s is gone", path, d.FullName())
				} else if was, is := meaning(d), meaning(is); was != is {
					t.Errorf("%s: %s was %s, is %s", path, d.FullName(), was, is)
				}
			})
			return true
		})
		if checked < 200 {
			t.Errorf("%s: only %d names were looked at", path, checked)
		}
	}
}

// meaning is what may not change of a name.
func meaning(d protoreflect.Descriptor) string {
	switch d := d.(type) {
	case protoreflect.FieldDescriptor:
		of := protoreflect.FullName("")
		if d.Message() != nil {
			of = d.Message().FullName()
		}
		oneof := protoreflect.Name("")
		if d.ContainingOneof() != nil {
			oneof = d.ContainingOneof().Name()
		}
		return fmt.Sprintf("%d %s %s %s map=%v presence=%v oneof=%s json=%s", d.Number(), d.Cardinality(), d.Kind(), of, d.IsMap(), d.HasPresence(), oneof, d.JSONName())
	case protoreflect.MethodDescriptor:
		return fmt.Sprintf("%s(stream=%v) %s(stream=%v)", d.Input().FullName(), d.IsStreamingClient(), d.Output().FullName(), d.IsStreamingServer())
	case protoreflect.EnumValueDescriptor:
		return fmt.Sprint(d.Number())
	}
	return fmt.Sprintf("%T", d)
}

// walk visits all that a file or message holds.
func walk(in interface {
	Messages() protoreflect.MessageDescriptors
	Enums() protoreflect.EnumDescriptors
}, visit func(protoreflect.Descriptor)) {
	for i := range in.Enums().Len() {
		e := in.Enums().Get(i)
		for n := range e.Values().Len() {
			visit(e.Values().Get(n))
		}
	}
	for i := range in.Messages().Len() {
		m := in.Messages().Get(i)
		visit(m)
		for n := range m.Fields().Len() {
			visit(m.Fields().Get(n))
		}
		walk(m, visit)
	}
	f, ok := in.(protoreflect.FileDescriptor)
	if !ok {
		return
	}
	for i := range f.Services().Len() {
		s := f.Services().Get(i)
		visit(s)
		for n := range s.Methods().Len() {
			visit(s.Methods().Get(n))
		}
	}
}
