// Package api is the wire between broker, agents and operators: protobuf
// services, their generated code, and nothing else. What a message means is
// said in the proto files; what is believed of it, by those who serve it.
package api

//go:generate protoc -I ../.. --go_out=../.. --go_opt=module=github.com/credence-id/credence --go-grpc_out=../.. --go-grpc_opt=module=github.com/credence-id/credence broker/api/node.proto broker/api/admin.proto broker/api/authority.proto broker/api/exchange.proto
