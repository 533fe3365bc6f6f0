package azure_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

// An answer that holds a token and an error is an error.
//
// Regression: CVE-2026-46405
func TestATokenWithAnErrorIsNone(t *testing.T) {
	var server *httptest.Server
	server = serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			_, _ = io.WriteString(w, `{"issuer":"`+server.URL+`/t/v2.0","authorization_endpoint":"`+server.URL+`/a","token_endpoint":"`+server.URL+`/t"}`)
			return
		}
		_, _ = io.WriteString(w, `{"error":"invalid_client","error_description":"AADSTS700016: no","access_token":"t","token_type":"Bearer","expires_in":900}`)
	}))
	cred, err := exchanger(t, settings(), server).Exchange(t.Context(), svids{"a.b.c"})
	refused(t, cred, err)
}
