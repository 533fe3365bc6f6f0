package azurekvtest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"github.com/credence-id/credence/broker/keys/keystest"
)

// ClientID and ClientSecret are what Entra gives a token for.
const (
	ClientID     = "5b1f9c1e-1f0f-4f7c-8a0b-6a4d6c9b1e22"
	ClientSecret = "the-brokers-secret"
)

// login is Entra: the tenant's OpenID configuration and client credentials,
// RFC 6749 §4.4.
func (s *Service) login(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	base := "https://" + loginHost + "/" + Tenant
	switch {
	case r.Method == http.MethodGet && r.URL.Path == "/"+Tenant+"/v2.0/.well-known/openid-configuration":
		fmt.Fprintf(w, `{"issuer": %q, "authorization_endpoint": %q, "token_endpoint": %q}`, base+"/v2.0", base+"/oauth2/v2.0/authorize", base+"/oauth2/v2.0/token")
	case r.Method == http.MethodPost && r.URL.Path == "/"+Tenant+"/oauth2/v2.0/token":
		if s.Enter(r.Context(), "token", "") == keystest.Denied || r.PostFormValue("client_id") != ClientID || r.PostFormValue("client_secret") != ClientSecret {
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, `{"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret provided.\r\nTrace ID: 1", "error_codes": [7000215]}`)
			return
		}
		if r.PostFormValue("grant_type") != "client_credentials" || r.PostFormValue("scope") != resource+"/.default openid offline_access profile" {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprintf(w, `{"error": "invalid_scope", "error_description": "AADSTS70011: grant %s, scope %s"}`, r.PostFormValue("grant_type"), r.PostFormValue("scope"))
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"token_type": "Bearer", "expires_in": 3599, "ext_expires_in": 3599, "access_token": token})
	default:
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprintf(w, `{"error": "invalid_request", "error_description": "%s %s"}`, r.Method, r.URL.Path)
	}
}

// Credentials are the broker's, or where good is false others'.
func (s *Service) Credentials(good bool) azcore.TokenCredential { return credentials{s, good} }

type credentials struct {
	s    *Service
	good bool
}

// GetToken gives the token for the vault alone.
func (c credentials) GetToken(ctx context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	c.s.Enter(ctx, "token", "")
	if err := ctx.Err(); err != nil {
		return azcore.AccessToken{}, err
	}
	if !slices.Equal(o.Scopes, []string{resource + "/.default"}) || o.TenantID != Tenant {
		return azcore.AccessToken{}, fmt.Errorf("a token of %s for %v", o.TenantID, o.Scopes)
	}
	text := token
	if !c.good {
		text = "eyJ0eXAi.somebody-elses"
	}
	return azcore.AccessToken{Token: text, ExpiresOn: time.Now().Add(time.Hour)}, nil
}
