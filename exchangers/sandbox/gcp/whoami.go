package gcp

import (
	"net/http"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
)

// Whoami serves the one protected call of the sandbox: GET / or /whoami with a
// bearer token tells whose it is, until it expires.
func (c *Cloud) Whoami() http.Handler {
	return c.WhoamiFaults.Wrap(sandbox.Serve("gcp_whoami", c.now, c.cfg.Log, c.serveWhoami))
}

func (c *Cloud) serveWhoami(w http.ResponseWriter, r *http.Request, e *sandbox.Entry) {
	w.Header().Set("X-Request-Id", e.ID)
	var no *refusal
	t, ok := c.caller(r, e)
	switch {
	case r.Method != http.MethodGet || r.URL.Path != "/" && r.URL.Path != "/whoami":
		no = &refusal{status: http.StatusNotFound, code: "NOT_FOUND", text: "Requested entity was not found."}
	case !ok:
		no = unauthenticated()
	default:
		if no = c.charge(r, t); no == nil {
			writeJSON(w, http.StatusOK, map[string]any{
				"principal": t.principal, "scopes": t.scopes, "expires": t.expires.UTC().Format(time.RFC3339),
			})
			return
		}
	}
	e.Code, e.Reason = no.code, no.reason()
	writeStatus(w, no)
}
