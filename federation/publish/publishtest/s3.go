package publishtest

import (
	"crypto/md5" // S3's ETag
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// Bucket is where S3 and GCS keep objects, and the container of Azure.
const Bucket = "trust.example.org"

// S3 is Amazon S3, with path-style addresses, as far as it is used.
type S3 struct {
	Service
	NoConditions bool // it knows no conditional writes, as some that speak the protocol
	objects      map[string]s3Object
}

type s3Object struct {
	body           []byte
	kind, cache    string
	etag, checksum string
}

// NewS3 starts a service that ends with the test.
func NewS3(t testing.TB) *S3 {
	s := &S3{objects: map[string]s3Object{}}
	s.serve = s.answer
	s.start(t)
	return s
}

func (s *S3) answer(w http.ResponseWriter, r *http.Request, body []byte) string {
	refuse := func(status int, code, why string) string {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		fmt.Fprintf(w, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>%s</Code><Message>%s</Message><RequestId>1</RequestId></Error>", code, code)
		return why
	}
	if err := checkSigV4(r, body, "s3"); err != nil {
		return refuse(http.StatusForbidden, "SignatureDoesNotMatch", err.Error())
	}
	bucket, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if bucket != Bucket {
		return refuse(http.StatusNotFound, "NoSuchBucket", "")
	}
	o, there := s.objects[key]
	switch r.Method {
	case http.MethodGet:
		if !there {
			return refuse(http.StatusNotFound, "NoSuchKey", "")
		}
		for name, value := range map[string]string{"ETag": o.etag, "Content-Type": o.kind, "Cache-Control": o.cache, "Accept-Ranges": "bytes"} {
			if value != "" {
				w.Header().Set(name, value)
			}
		}
		_, _ = w.Write(o.body) // the client may have left
		return ""
	case http.MethodPut:
		return s.put(w, r, key, body, refuse)
	}
	return refuse(http.StatusMethodNotAllowed, "MethodNotAllowed", "no such method here")
}

func (s *S3) put(w http.ResponseWriter, r *http.Request, key string, body []byte, refuse func(int, string, string) string) string {
	match, none := r.Header.Get("If-Match"), r.Header.Get("If-None-Match")
	o, there := s.objects[key]
	switch {
	case s.NoConditions && match+none != "":
		return refuse(http.StatusNotImplemented, "NotImplemented", "")
	case none != "" && none != "*":
		return refuse(http.StatusNotImplemented, "NotImplemented", "If-None-Match "+none)
	case none == "*" && there:
		return refuse(http.StatusPreconditionFailed, "PreconditionFailed", "")
	case match != "" && !there:
		return refuse(http.StatusNotFound, "NoSuchKey", "")
	case match != "" && match != o.etag:
		return refuse(http.StatusPreconditionFailed, "PreconditionFailed", "")
	case r.ContentLength < 0:
		return refuse(http.StatusLengthRequired, "MissingContentLength", "no Content-Length")
	}
	checksum := base64.StdEncoding.EncodeToString(sum(body))
	if got := r.Header.Get("X-Amz-Checksum-Sha256"); got != checksum {
		return refuse(http.StatusBadRequest, "BadDigest", "x-amz-checksum-sha256 "+got)
	}
	tag := md5.Sum(body)
	s.objects[key] = s3Object{body, r.Header.Get("Content-Type"), r.Header.Get("Cache-Control"), `"` + hex.EncodeToString(tag[:]) + `"`, checksum}
	w.Header().Set("ETag", s.objects[key].etag)
	return ""
}

// Object is what is there.
func (s *S3) Object(key string) (body, contentType, cacheControl string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.objects[key]
	return string(o.body), o.kind, o.cache
}
