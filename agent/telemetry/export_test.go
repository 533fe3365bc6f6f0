package telemetry

import (
	"context"
	"net"
	"testing"

	"google.golang.org/grpc"
)

// Call counts a call that ends with err.
func (m *Metrics) Call(t *testing.T, method string, stream bool, err error) {
	t.Helper()
	if stream {
		_ = m.stream(nil, nil, &grpc.StreamServerInfo{FullMethod: method}, func(any, grpc.ServerStream) error { return err })
		return
	}
	_, _ = m.unary(context.Background(), nil, &grpc.UnaryServerInfo{FullMethod: method}, func(context.Context, any) (any, error) { return nil, err })
}

// Few is a place's listener.
func Few(l net.Listener) net.Listener { return &few{Listener: l} }
