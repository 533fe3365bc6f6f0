package publishtest

import (
	"crypto"
	"crypto/md5" // what GCS compares
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

// Token is the bearer token that GCS and Azure take.
const Token = "ya29.of-the-test"

// GCS is the JSON API of Google Cloud Storage, as far as it is used.
type GCS struct {
	Service
	objects    map[string]gcsObject
	generation int
	account    crypto.PublicKey
}

type gcsObject struct {
	body       []byte
	Name       string `json:"name"`
	Type       string `json:"contentType"`
	Cache      string `json:"cacheControl"`
	MD5        string `json:"md5Hash"`
	Generation string `json:"generation"`
}

// NewGCS starts a service that ends with the test.
func NewGCS(t testing.TB) *GCS {
	s := &GCS{objects: map[string]gcsObject{}, generation: 1700000000000000}
	s.serve = s.answer
	s.start(t)
	return s
}

// Authorized is a client with the token.
func (s *Service) Authorized() *http.Client {
	return &http.Client{Transport: bearer{s.Client.Transport}}
}

type bearer struct{ http.RoundTripper }

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+Token)
	return b.RoundTripper.RoundTrip(r)
}

func (s *GCS) answer(w http.ResponseWriter, r *http.Request, body []byte) string {
	refuse := func(status int, message, why string) string {
		w.Header().Set("Content-Type", "application/json; charset=UTF-8")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"code": status, "message": message}})
		return why
	}
	if r.Method == http.MethodPost && r.URL.Path == "/token" {
		return s.token(w, body, refuse)
	}
	if r.Header.Get("Authorization") != "Bearer "+Token {
		return refuse(http.StatusUnauthorized, "Invalid Credentials", "token "+r.Header.Get("Authorization"))
	}
	q := r.URL.Query()
	if r.Method == http.MethodPost && r.URL.Path == "/upload/storage/v1/b/"+Bucket+"/o" && q.Get("uploadType") == "multipart" {
		return s.insert(w, r, body, refuse)
	}
	// An object's name is one segment, its slashes escaped.
	name, ok := strings.CutPrefix(r.URL.EscapedPath(), "/storage/v1/b/"+Bucket+"/o/")
	if !ok {
		return refuse(http.StatusNotFound, "The specified bucket does not exist.", "")
	}
	if r.Method != http.MethodGet || strings.Contains(name, "/") {
		return refuse(http.StatusNotFound, "Not Found", "no such method or object")
	}
	o, there := s.objects[strings.ReplaceAll(name, "%2F", "/")]
	if !there || q.Get("generation") != "" && q.Get("generation") != o.Generation {
		return refuse(http.StatusNotFound, "No such object: "+Bucket+"/"+name, "")
	}
	if q.Get("alt") == "media" {
		w.Header().Set("Content-Type", o.Type)
		w.Header().Set("Cache-Control", o.Cache)
		_, _ = w.Write(o.body) // the client may have left
		return ""
	}
	_ = json.NewEncoder(w).Encode(o)
	return ""
}

// ServiceAccount is a credentials file whose token endpoint is the service's.
func (s *GCS) ServiceAccount(t testing.TB) []byte {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(map[string]string{
		"type": "service_account", "project_id": "p", "private_key_id": "1", "client_email": "publisher@p.iam.gserviceaccount.com", "client_id": "1",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), "token_uri": s.URL + "/token",
	})
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.account = key.Public()
	return text
}

// token is RFC 7523 for the service account.
func (s *GCS) token(w http.ResponseWriter, body []byte, refuse func(int, string, string) string) string {
	form, err := url.ParseQuery(string(body))
	if err != nil || form.Get("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer" {
		return refuse(http.StatusBadRequest, "unsupported_grant_type", string(body))
	}
	jws, err := jose.ParseSignedCompact(form.Get("assertion"), []jose.SignatureAlgorithm{jose.RS256})
	if err != nil || s.account == nil {
		return refuse(http.StatusBadRequest, "invalid_grant", "no assertion")
	}
	claims, err := jws.Verify(s.account)
	if err != nil || !strings.Contains(string(claims), `"https://www.googleapis.com/auth/devstorage.read_write"`) || !strings.Contains(string(claims), `"`+s.URL+`/token"`) {
		return refuse(http.StatusBadRequest, "invalid_grant", string(claims))
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"access_token": Token, "token_type": "Bearer", "expires_in": 3600})
	return ""
}

func (s *GCS) insert(w http.ResponseWriter, r *http.Request, body []byte, refuse func(int, string, string) string) string {
	kind, parameters, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/related" {
		return refuse(http.StatusBadRequest, "Bad Content-Type", "Content-Type "+r.Header.Get("Content-Type"))
	}
	parts := multipart.NewReader(strings.NewReader(string(body)), parameters["boundary"])
	var o gcsObject
	var kinds []string
	for i := range 2 {
		p, err := parts.NextPart()
		if err != nil {
			return refuse(http.StatusBadRequest, "Malformed multipart body.", err.Error())
		}
		kinds = append(kinds, p.Header.Get("Content-Type"))
		text, err := io.ReadAll(p)
		if err == nil && i == 0 {
			err = json.Unmarshal(text, &o)
		}
		if err != nil {
			return refuse(http.StatusBadRequest, "Malformed multipart body.", err.Error())
		}
		o.body = text
	}
	if _, err := parts.NextPart(); err != io.EOF {
		return refuse(http.StatusBadRequest, "Malformed multipart body.", "it does not end after two parts")
	}
	if !strings.HasPrefix(kinds[0], "application/json") || o.Name == "" || o.Type != kinds[1] || o.Generation != "" {
		return refuse(http.StatusBadRequest, "Invalid metadata", "parts "+strings.Join(kinds, ", "))
	}
	sum := md5.Sum(o.body)
	if o.MD5 != "" && o.MD5 != base64.StdEncoding.EncodeToString(sum[:]) {
		return refuse(http.StatusBadRequest, "Provided MD5 hash doesn't match calculated MD5 hash", "md5Hash "+o.MD5)
	}
	last := "0"
	if old, there := s.objects[o.Name]; there {
		last = old.Generation
	}
	if want := r.URL.Query().Get("ifGenerationMatch"); want != "" && want != last {
		return refuse(http.StatusPreconditionFailed, "At least one of the pre-conditions you specified did not hold.", "")
	}
	s.generation++
	o.Generation = strconv.Itoa(s.generation)
	s.objects[o.Name] = o
	_ = json.NewEncoder(w).Encode(o)
	return ""
}

// Object is what is there.
func (s *GCS) Object(name string) (body, contentType, cacheControl string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.objects[name]
	return string(o.body), o.Type, o.Cache
}
