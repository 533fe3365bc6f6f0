package aws_test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/credence-id/credence/exchangers"
)

// An answer that holds a session and an error is an error, in the body and in
// the header; and a session without one is a session.
//
// Regression: CVE-2026-46405
func TestASessionWithAnErrorIsNone(t *testing.T) {
	a := newAccount(t)
	for name, c := range map[string]struct {
		member, header string
		taken          bool
	}{
		"neither":  {taken: true},
		"a member": {member: `"__type":"AccessDeniedException",`},
		"a header": {header: "AccessDeniedException"},
	} {
		t.Run(name, func(t *testing.T) {
			server := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if c.header != "" {
					w.Header().Set("X-Amzn-Errortype", c.header)
				}
				w.WriteHeader(http.StatusCreated)
				fmt.Fprintf(w, `{%s"credentialSet":[{"credentials":{"accessKeyId":"k","secretAccessKey":"s","sessionToken":"t","expiration":%q}}]}`,
					c.member, time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
			}))
			cred, err := exchanger(t, anywhere(), server).Exchange(t.Context(), svids{x509: x509SVID(a.leaf, a.issuing)})
			if c.taken != (err == nil) || !c.taken && cred != (exchangers.Credential{}) {
				t.Errorf("got %v, %v", cred, err)
			}
		})
	}
}
