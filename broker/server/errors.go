package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
)

// statusOf is the one place where errors become statuses. A node or a stranger
// learns the kind and, for what it may mend itself, the text; for the rest an
// ID to quote. An operator (to whom everything may be said) always gets the
// text.
func statusOf(ctx context.Context, log *slog.Logger, operator bool, err error) error {
	if err == nil {
		return nil
	}
	// Only a status that is itself the error was made here or by gRPC; one
	// that is wrapped is somebody else's answer to us, and its text not the
	// caller's business.
	if _, already := err.(interface{ GRPCStatus() *status.Status }); already {
		return err
	}
	code, tell := kindOf(err)
	if operator {
		return status.Error(code, err.Error())
	}
	if tell {
		log.InfoContext(ctx, "request refused", "code", code.String(), "error", err)
		return status.Error(code, outermost(err))
	}
	id := quoteID()
	log.WarnContext(ctx, "request failed", "code", code.String(), "quote", id, "error", err)
	return status.Errorf(code, "%s; quote %s to the operator of the broker", outermost(err), id)
}

// kindOf returns the code of an error, and whether the caller needs no ID to
// quote.
func kindOf(err error) (code codes.Code, tell bool) {
	switch {
	case errors.Is(err, context.Canceled):
		return codes.Canceled, true
	case errors.Is(err, join.ErrEvidence):
		return codes.Unauthenticated, false
	case errors.Is(err, identity.ErrDenied):
		return codes.PermissionDenied, false
	case errors.Is(err, broker.ErrRequest), errors.Is(err, authority.ErrRefused):
		return codes.InvalidArgument, true
	case errors.Is(err, authority.ErrNotYet), errors.Is(err, authority.ErrNothing):
		return codes.FailedPrecondition, false
	case errors.Is(err, audit.ErrRefused):
		return codes.InvalidArgument, false
	case errors.Is(err, broker.ErrSpent), errors.Is(err, broker.ErrConflict):
		return codes.FailedPrecondition, false
	case errors.Is(err, broker.ErrNotFound):
		return codes.NotFound, false
	case errors.Is(err, audit.ErrUnavailable):
		return codes.Unavailable, false
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded, false
	}
	return codes.Internal, false
}

// outermost is what may be told of an error: its kind in words.
func outermost(err error) string {
	switch {
	case errors.Is(err, join.ErrEvidence):
		return "the evidence was refused"
	case errors.Is(err, identity.ErrDenied):
		return "denied"
	case errors.Is(err, broker.ErrRequest):
		return err.Error()
	case errors.Is(err, audit.ErrRefused):
		return "the record takes no such event"
	case errors.Is(err, broker.ErrSpent):
		return "already spent"
	case errors.Is(err, broker.ErrConflict):
		return "conflict"
	case errors.Is(err, broker.ErrNotFound):
		return "not found"
	case errors.Is(err, audit.ErrUnavailable):
		return "the broker cannot record and so releases nothing"
	case errors.Is(err, context.Canceled):
		return "cancelled"
	}
	return "the broker failed"
}

func quoteID() string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand.Read)
	return "e-" + hex.EncodeToString(b[:])
}
