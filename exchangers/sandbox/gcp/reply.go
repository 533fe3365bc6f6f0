package gcp

import (
	"encoding/json"
	"net/http"
)

// A refusal is what the client is told, and why for the record.
type refusal struct {
	status int
	code   string // OAuth error at STS, google.rpc code elsewhere
	text   string
	detail map[string]any // google.rpc.ErrorInfo, or nil
	why    error          // for the sandbox's log only
}

func (r *refusal) reason() string {
	if r.why != nil {
		return r.why.Error()
	}
	return r.text
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	h := w.Header()
	h.Set("Content-Type", "application/json; charset=UTF-8")
	h.Set("Cache-Control", "no-cache, no-store, max-age=0, must-revalidate")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v) // the client may be gone; nobody else to tell
}

// writeOAuth answers as STS does (RFC 6749 §5.2).
func writeOAuth(w http.ResponseWriter, r *refusal) {
	writeJSON(w, r.status, map[string]string{"error": r.code, "error_description": r.text})
}

// writeStatus answers as Google's APIs do, with a google.rpc.Status in JSON.
func writeStatus(w http.ResponseWriter, r *refusal) {
	e := map[string]any{"code": r.status, "message": r.text, "status": r.code}
	if r.detail != nil {
		e["details"] = []any{r.detail}
	}
	if r.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="https://accounts.google.com/"`)
	}
	writeJSON(w, r.status, map[string]any{"error": e})
}

func stsFault(w http.ResponseWriter, status int) {
	if status == http.StatusTooManyRequests {
		writeOAuth(w, &refusal{status: status, code: "quota_exceeded",
			text: "The request was throttled due to rate limit: sts.googleapis.com/requests. Please retry after a few seconds."})
		return
	}
	apiFault(w, status)
}

func apiFault(w http.ResponseWriter, status int) {
	code := map[int]string{429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 503: "UNAVAILABLE"}[status]
	writeStatus(w, &refusal{status: status, code: code, text: http.StatusText(status)})
}
