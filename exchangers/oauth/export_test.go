package oauth

import (
	"net/http"
	"time"

	"github.com/credence-id/credence/exchangers"
)

// Token reads what a token endpoint answers to a token exchange.
func Token(status int, header http.Header, body []byte, at time.Time, sent exchangers.Secret) (exchangers.Credential, error) {
	m := TokenExchange{}
	return answer{status, header, body, at, at}.token(m.request(), []exchangers.Secret{sent})
}

// Login reads what Vault answers to a login.
func Login(status int, header http.Header, body []byte, at time.Time, sent exchangers.Secret) (exchangers.Credential, error) {
	return answer{status, header, body, at, at}.login([]exchangers.Secret{sent})
}
