// Package api is the wire between an agent and those on its node who speak to
// it by gRPC other than through SPIFFE's own APIs: protobuf services, their
// generated code, and nothing else.
package api

//go:generate protoc -I ../.. --go_out=../.. --go_opt=module=github.com/credence-id/credence --go-grpc_out=../.. --go-grpc_opt=module=github.com/credence-id/credence agent/api/agent.proto
