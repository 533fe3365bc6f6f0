package publishtest

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc64"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
)

// storageCRC is the polynomial of x-ms-content-crc64.
var storageCRC = crc64.MakeTable(0x9A6C9329AC4BC9B5)

// Azure is Azure Blob Storage, as far as it is used; its container is Bucket.
type Azure struct {
	Service
	objects map[string]azureBlob
	n       int
}

type azureBlob struct {
	body              []byte
	kind, cache, etag string
}

// NewAzure starts a service that ends with the test.
func NewAzure(t testing.TB) *Azure {
	s := &Azure{objects: map[string]azureBlob{}}
	s.serve = s.answer
	s.start(t)
	return s
}

// Credential is one with the token, for Azure's own scope and no other.
type Credential struct{}

// GetToken is azcore.TokenCredential.
func (Credential) GetToken(_ context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	if len(o.Scopes) != 1 || o.Scopes[0] != "https://storage.azure.com/.default" {
		return azcore.AccessToken{}, fmt.Errorf("scopes %q", o.Scopes)
	}
	return azcore.AccessToken{Token: Token, ExpiresOn: time.Now().Add(time.Hour)}, nil
}

func (s *Azure) answer(w http.ResponseWriter, r *http.Request, body []byte) string {
	w.Header().Set("x-ms-version", r.Header.Get("x-ms-version"))
	refuse := func(status int, code, why string) string {
		w.Header().Set("Content-Type", "application/xml")
		w.Header().Set("x-ms-error-code", code)
		w.WriteHeader(status)
		fmt.Fprintf(w, "<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>%s</Code><Message>%s</Message></Error>", code, code)
		return why
	}
	if r.Header.Get("Authorization") != "Bearer "+Token {
		w.Header().Set("WWW-Authenticate", `Bearer authorization_uri=https://login.microsoftonline.com/t/oauth2/authorize resource_id=https://storage.azure.com`)
		return refuse(http.StatusUnauthorized, "NoAuthenticationInformation", "token "+r.Header.Get("Authorization"))
	}
	// OAuth is taken from 2017-11-09 on, CRC64 from 2019-02-02 on.
	if v := r.Header.Get("x-ms-version"); v < "2019-02-02" {
		return refuse(http.StatusBadRequest, "InvalidHeaderValue", "x-ms-version "+v)
	}
	name, ok := strings.CutPrefix(r.URL.Path, "/"+Bucket+"/")
	if !ok {
		return refuse(http.StatusNotFound, "ContainerNotFound", "")
	}
	b, there := s.objects[name]
	switch r.Method {
	case http.MethodGet:
		if !there {
			return refuse(http.StatusNotFound, "BlobNotFound", "")
		}
		for name, value := range map[string]string{"ETag": b.etag, "Content-Type": b.kind, "Cache-Control": b.cache, "x-ms-blob-type": "BlockBlob"} {
			w.Header().Set(name, value)
		}
		_, _ = w.Write(b.body) // the client may have left
		return ""
	case http.MethodPut:
		return s.put(w, r, name, body, refuse)
	}
	return refuse(http.StatusMethodNotAllowed, "UnsupportedHttpVerb", "no such method here")
}

func (s *Azure) put(w http.ResponseWriter, r *http.Request, name string, body []byte, refuse func(int, string, string) string) string {
	match, none := r.Header.Get("If-Match"), r.Header.Get("If-None-Match")
	b, there := s.objects[name]
	switch {
	case r.Header.Get("x-ms-blob-type") != "BlockBlob":
		return refuse(http.StatusBadRequest, "MissingRequiredHeader", "x-ms-blob-type "+r.Header.Get("x-ms-blob-type"))
	case r.ContentLength < 0:
		return refuse(http.StatusLengthRequired, "MissingContentLengthHeader", "no Content-Length")
	case none == "*" && there:
		return refuse(http.StatusConflict, "BlobAlreadyExists", "")
	case match != "" && (!there || match != b.etag):
		return refuse(http.StatusPreconditionFailed, "ConditionNotMet", "")
	}
	crc := base64.StdEncoding.EncodeToString(binary.LittleEndian.AppendUint64(nil, crc64.Checksum(body, storageCRC)))
	if got := r.Header.Get("x-ms-content-crc64"); got != crc {
		return refuse(http.StatusBadRequest, "Crc64Mismatch", "x-ms-content-crc64 "+got+", not "+crc)
	}
	s.n++
	s.objects[name] = azureBlob{body, r.Header.Get("x-ms-blob-content-type"), r.Header.Get("x-ms-blob-cache-control"), `"0x8D` + strconv.Itoa(s.n) + `"`}
	w.Header().Set("ETag", s.objects[name].etag)
	w.WriteHeader(http.StatusCreated)
	return ""
}

// Object is what is there.
func (s *Azure) Object(name string) (body, contentType, cacheControl string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.objects[name]
	return string(b.body), b.kind, b.cache
}
