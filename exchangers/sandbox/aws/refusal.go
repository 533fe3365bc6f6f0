package aws

import (
	"fmt"
	"net/http"
)

// A refusal is an answer with an error: what the client reads, and for the
// person at the sandbox the reason, which is logged and never sent.
type refusal struct {
	status        int
	code, message string
	reason        string
}

func (r *refusal) Error() string { return r.code + ": " + r.message }

// because notes the reason.
func (r *refusal) because(format string, args ...any) *refusal {
	c := *r
	c.reason = fmt.Sprintf(format, args...)
	return &c
}

func refuse(status int, code, format string, args ...any) *refusal {
	return &refusal{status: status, code: code, message: fmt.Sprintf(format, args...)}
}

func denied(format string, args ...any) *refusal {
	return refuse(http.StatusForbidden, "AccessDeniedException", format, args...)
}

func invalid(format string, args ...any) *refusal {
	return refuse(http.StatusBadRequest, "ValidationException", format, args...)
}
