package cli

import (
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
)

// Exit codes.
const (
	ExitNo          = 1 // done, and the answer is no
	ExitInput       = 2 // bad input
	ExitUnreachable = 3 // broker or agent not reached
	ExitDenied      = 4
)

// Coded is an error that knows its exit code; without an error it has been
// told already.
type Coded struct {
	Code int
	Err  error
}

func (c Coded) Error() string {
	if c.Err == nil {
		return fmt.Sprintf("exit %d", c.Code)
	}
	return c.Err.Error()
}

func (c Coded) Unwrap() error { return c.Err }

// WithCode is an error with its exit code.
func WithCode(code int, err error) error { return Coded{code, err} }

// BadInput marks an error as the user's to mend.
func BadInput(err error) error {
	if err == nil {
		return nil
	}
	return Coded{ExitInput, err}
}

func exitCode(err error) int {
	var c Coded
	if errors.As(err, &c) {
		return c.Code
	}
	if errors.Is(err, agent.ErrDenied) {
		return ExitDenied
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded:
		return ExitUnreachable
	case codes.PermissionDenied, codes.Unauthenticated:
		return ExitDenied
	case codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition:
		return ExitInput
	}
	return ExitNo
}

// ExplainStatus is a gRPC error without its wrapping.
func ExplainStatus(err error) string {
	s, ok := status.FromError(err)
	if !ok || s.Code() == codes.OK {
		return err.Error()
	}
	text := err.Error()
	if i := strings.Index(text, "rpc error: "); i >= 0 {
		return text[:i] + s.Message()
	}
	return text
}
