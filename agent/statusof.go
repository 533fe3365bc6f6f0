package agent

import (
	"context"
	"errors"
	"log/slog"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// StatusOf maps an error of an Agent to the status of SPIFFE Workload Endpoint
// §6, for every service on the workload socket, with a google.rpc.ErrorInfo that
// has the code. A refused caller learns a record number and no rule; what is ours
// alone is logged.
func StatusOf(ctx context.Context, log *slog.Logger, err error) error {
	switch {
	case errors.Is(err, ErrDenied):
		return withInfo(codes.PermissionDenied, err.Error(), InfoFor(err))
	case ctx.Err() != nil:
		return status.FromContextError(ctx.Err()).Err()
	case errors.Is(err, ErrUnavailable):
		return withInfo(codes.Unavailable, err.Error(), InfoFor(err))
	}
	log.WarnContext(ctx, "call failed", "error", err)
	return withInfo(codes.Unavailable, "the agent cannot answer: its log says why", InfoFor(err))
}
