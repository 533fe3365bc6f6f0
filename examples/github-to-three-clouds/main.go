// Github-stand-in is GitHub Actions' OpenID issuer as a job sees it, without GitHub:
// an endpoint at which a job asks for its token, and the key that signs it. It writes
// its certificate and its keys into a directory, then the endpoint's URL, and serves
// until it is killed.
package main

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// issuer is GitHub's own name: whoever has it in a JoinRule without keys asks GitHub.
const issuer = "https://token.actions.githubusercontent.com"

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("usage: github-stand-in DIR")
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		log.Fatal(err)
	}
	server := httptest.NewTLSServer(job(key))
	keys := fmt.Sprintf(`{"keys":[{"kty":"RSA","kid":"k1","use":"sig","alg":"RS256","n":%q,"e":"AQAB"}]}`, text(key.N.Bytes()))
	write("jwks.json", []byte(keys))
	write("ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	write("url", []byte(server.URL+"/job"))
	select {}
}

func write(name string, text []byte) {
	path := filepath.Join(os.Args[1], name)
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		log.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		log.Fatal(err)
	}
}

// job answers a job of a repository, which its bearer token names here, with a token
// for the audience that it asks for.
func job(key *rsa.PrivateKey) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		repository, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer job of ")
		if !ok {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		now := time.Now().Unix()
		owner, _, _ := strings.Cut(repository, "/")
		id := sha256.Sum256([]byte(repository))
		claims, err := json.Marshal(map[string]any{
			"iss": issuer, "aud": r.URL.Query().Get("audience"), "sub": "repo:" + repository + ":environment:production",
			"iat": now, "nbf": now, "exp": now + 300, "jti": rand.Text(),
			"repository": repository, "repository_owner": owner, "environment": "production", "ref": "refs/heads/main",
			"repository_id": new(big.Int).SetBytes(id[:6]).String(),
		})
		if err != nil {
			log.Fatal(err)
		}
		signed := text([]byte(`{"alg":"RS256","kid":"k1","typ":"JWT"}`)) + "." + text(claims)
		digest := sha256.Sum256([]byte(signed))
		signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, digest[:])
		if err != nil {
			log.Fatal(err)
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"value": signed + "." + text(signature)})
	})
}

func text(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
