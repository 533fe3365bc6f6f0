package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/store"
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
		return withReason(code, outermost(err), reasonOf(err))
	}
	id := quoteID()
	log.WarnContext(ctx, "request failed", "code", code.String(), "quote", id, "error", err)
	return withReason(code, fmt.Sprintf("%s; quote %s to the operator of the broker", outermost(err), id), reasonOf(err))
}

// errorDomain is the domain of the google.rpc.ErrorInfo that tells an agent that
// it is a broker that refuses.
const errorDomain = "credence"

func withReason(code codes.Code, text, reason string) error {
	s := status.New(code, text)
	detailed, err := s.WithDetails(&errdetails.ErrorInfo{Domain: errorDomain, Reason: reason})
	if err != nil { // a text that is no UTF-8
		return s.Err()
	}
	return detailed.Err()
}

// reasonOf is outermost for programs: it says no more.
func reasonOf(err error) string {
	switch {
	case errors.Is(err, store.ErrAway):
		return "DATABASE_AWAY"
	case errors.Is(err, join.ErrCloned):
		return "CLONED"
	case errors.Is(err, join.ErrRecovery):
		return "RECOVERY_REFUSED"
	case errors.Is(err, join.ErrEvidence):
		return "EVIDENCE_REFUSED"
	case errors.Is(err, identity.ErrDenied):
		return "DENIED"
	case errors.Is(err, authority.ErrRefused):
		return "KEY_REFUSED"
	case errors.Is(err, broker.ErrRequest), errors.Is(err, audit.ErrRefused):
		return "BAD_REQUEST"
	case errors.Is(err, broker.ErrSpent):
		return "SPENT"
	case errors.Is(err, broker.ErrConflict):
		return "CONFLICT"
	case errors.Is(err, broker.ErrNotFound):
		return "NOT_FOUND"
	case errors.Is(err, audit.ErrUnavailable):
		return "RECORD_UNAVAILABLE"
	case errors.Is(err, audit.ErrReplaced):
		return "RECORD_REPLACED"
	}
	return "BROKER_FAILED"
}

// kindOf returns the code of an error, and whether the caller needs no ID to
// quote.
func kindOf(err error) (code codes.Code, tell bool) {
	switch {
	case errors.Is(err, context.Canceled):
		return codes.Canceled, true
	case errors.Is(err, store.ErrAway): // whatever else was found out: not all of it
		return codes.Unavailable, true
	case errors.Is(err, join.ErrCloned):
		return codes.FailedPrecondition, false
	case errors.Is(err, join.ErrRecovery):
		return codes.PermissionDenied, false
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
	case errors.Is(err, audit.ErrReplaced):
		return codes.DataLoss, true
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded, false
	}
	return codes.Internal, false
}

// outermost is what may be told of an error: its kind in words.
func outermost(err error) string {
	switch {
	case errors.Is(err, store.ErrAway):
		return "the broker's " + store.ErrAway.Error()[len("the "):]
	case errors.Is(err, join.ErrCloned): // whoever is told has the key
		return join.ErrCloned.Error()
	case errors.Is(err, join.ErrRecovery):
		return join.ErrRecovery.Error() + ": an operator can allow it (credence node allow)"
	case errors.Is(err, join.ErrEvidence):
		return "the evidence was refused"
	case errors.Is(err, identity.ErrDenied):
		return "denied"
	case errors.Is(err, authority.ErrRefused):
		return "the authority signs no such key or certificate"
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
	case errors.Is(err, audit.ErrReplaced):
		return "the record is not the one that was read before"
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
