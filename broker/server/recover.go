package server

import (
	"context"
	"runtime/debug"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A panic in one call is that call's failure: the others go on, and so does the
// process. What it was doing is not trusted to be half done: state is swapped
// whole, and what was not recorded was not released.

func (s *Server) recoverUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (_ any, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = s.panicked(ctx, info.FullMethod, p)
		}
	}()
	return next(ctx, req)
}

func (s *Server) recoverStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = s.panicked(stream.Context(), info.FullMethod, p)
		}
	}()
	return next(srv, stream)
}

// panicked logs the stack, and returns what the caller is told.
func (s *Server) panicked(ctx context.Context, method string, p any) error {
	id := quoteID()
	s.cfg.Log.ErrorContext(ctx, "call panicked", "method", method, "quote", id, "panic", p, "stack", string(debug.Stack()))
	return status.Errorf(codes.Internal, "the broker failed; quote %s to its operator", id)
}
