package agenttest

import (
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// A Release is what a broker of a release knows of the protocol.
type Release struct{ files *protoregistry.Files }

// ParseRelease reads a FileDescriptorSet.
func ParseRelease(set []byte) (*Release, error) {
	var all descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(set, &all); err != nil {
		return nil, err
	}
	files, err := protodesc.NewFiles(&all)
	if err != nil {
		return nil, err
	}
	return &Release{files}, nil
}

// Knows says whether the release has a method, such as
// "/credence.broker.v1.Node/Join".
func (r *Release) Knows(full string) error {
	if r == nil {
		return nil
	}
	if _, err := r.Method(full); err != nil {
		return status.Errorf(codes.Unimplemented, "unknown method %s", full)
	}
	return nil
}

// Method is that of a full name.
func (r *Release) Method(full string) (protoreflect.MethodDescriptor, error) {
	d, err := r.files.FindDescriptorByName(protoreflect.FullName(strings.ReplaceAll(full[1:], "/", ".")))
	if err != nil {
		return nil, err
	}
	m, ok := d.(protoreflect.MethodDescriptor)
	if !ok {
		return nil, protoregistry.NotFound
	}
	return m, nil
}

// Files are its descriptors.
func (r *Release) Files() *protoregistry.Files { return r.files }

// forget takes out of a message what the release doesn't know of it.
func (r *Release) forget(m any) {
	if r == nil {
		return
	}
	d, err := r.files.FindDescriptorByName(m.(proto.Message).ProtoReflect().Descriptor().FullName())
	must(err)
	data, err := proto.Marshal(m.(proto.Message))
	must(err)
	old := dynamicpb.NewMessage(d.(protoreflect.MessageDescriptor))
	must(proto.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(data, old))
	data, err = proto.Marshal(old)
	must(err)
	must(proto.Unmarshal(data, m.(proto.Message)))
}

// A heard stream hands what it receives to the test first, and speaks as the
// release does.
type heard struct {
	grpc.ServerStream
	b      *Broker
	method string
}

func (h heard) RecvMsg(m any) error {
	err := h.ServerStream.RecvMsg(m)
	if err == nil {
		h.b.hear(h.method, m)
	}
	return err
}

func (h heard) SendMsg(m any) error {
	m = proto.Clone(m.(proto.Message)) // others may be told the same
	h.b.Release.forget(m)
	return h.ServerStream.SendMsg(m)
}

func (b *Broker) hear(method string, m any) {
	b.Release.forget(m)
	if b.Heard != nil {
		b.Heard(method, m.(proto.Message))
	}
}
