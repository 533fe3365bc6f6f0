package gcp_test

import (
	"io"
	"net/http"
	"testing"
)

// An answer that holds a token and an error is an error.
//
// Regression: CVE-2026-46405
func TestATokenWithAnErrorIsNone(t *testing.T) {
	server := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"error":"invalid_grant","error_description":"no","access_token":"t","issued_token_type":"urn:ietf:params:oauth:token-type:access_token","token_type":"Bearer","expires_in":900}`)
	}))
	cred, err := exchanger(t, settings(), server).Exchange(t.Context(), svids{"a.b.c"})
	refused(t, cred, err)
}
