package azure

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/credence-id/credence/exchangers/sandbox"
)

// A refusal is one AADSTS error.
type refusal struct {
	status int
	kind   string // OAuth error
	code   int
	text   string
	why    error // for the sandbox's log only
}

func refuse(kind string, code int, text string, why error) *refusal {
	status := http.StatusBadRequest
	if kind == "invalid_client" {
		status = http.StatusUnauthorized
	}
	return &refusal{status, kind, code, text, why}
}

func invalidRequest(code int, text string, why error) *refusal {
	return refuse("invalid_request", code, text, why)
}

func invalidClient(code int, text string, why error) *refusal {
	return refuse("invalid_client", code, text, why)
}

func missingParameter(name string) *refusal {
	return invalidRequest(900144, "The request body must contain the following parameter: '"+name+"'.", nil)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	h := w.Header()
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("Cache-Control", "no-store, no-cache")
	h.Set("Pragma", "no-cache")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v) // the client may be gone; nobody else to tell
}

// writeError answers as the token service does. The correlation ID is the
// client's own, if that is a GUID.
func (c *Cloud) writeError(w http.ResponseWriter, r *http.Request, e *sandbox.Entry, no *refusal) {
	e.Code, e.Reason = fmt.Sprintf("AADSTS%d", no.code), no.text
	if no.why != nil {
		e.Reason = no.why.Error()
	}
	correlation := strings.ToLower(r.Header.Get("Client-Request-Id"))
	if !guid.MatchString(correlation) {
		correlation = sandbox.NewID()
	}
	stamp := c.now().UTC().Format("2006-01-02 15:04:05Z")
	writeJSON(w, no.status, map[string]any{
		"error": no.kind,
		"error_description": fmt.Sprintf("AADSTS%d: %s Trace ID: %s Correlation ID: %s Timestamp: %s",
			no.code, no.text, e.ID, correlation, stamp),
		"error_codes": []int{no.code}, "timestamp": stamp, "trace_id": e.ID, "correlation_id": correlation,
		"error_uri": fmt.Sprintf("https://login.microsoftonline.com/error?code=%d", no.code),
	})
}

func (c *Cloud) loginFault(w http.ResponseWriter, status int) {
	no := &refusal{status, "temporarily_unavailable", 90033, "A transient error has occurred. Please try again.", nil}
	c.writeError(w, &http.Request{}, &sandbox.Entry{ID: sandbox.NewID()}, no)
}

func armFault(w http.ResponseWriter, status int) {
	code := map[int]string{429: "TooManyRequests", 500: "InternalServerError", 503: "ServerBusy"}[status]
	writeARM(w, status, code, http.StatusText(status))
}

func writeARM(w http.ResponseWriter, status int, code, text string) {
	writeJSON(w, status, map[string]any{"error": map[string]string{"code": code, "message": text}})
}
