// Package gcs publishes to a bucket of Google Cloud Storage, by its JSON API. The
// client that it is given adds credentials with storage.objects.get, create and
// delete (to replace is to delete). Who may read the bucket is IAM's to say.
package gcs

import (
	"bytes"
	"context"
	"crypto/md5" // what the service compares
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"net/url"
	"strings"

	"github.com/credence-id/credence/federation/publish"
)

// Store is what lies under a prefix of a bucket.
type Store struct {
	Client   *http.Client // adds credentials
	Endpoint string       // empty: https://storage.googleapis.com
	Bucket   string
	Prefix   string // empty, or ending in a slash
}

// An object is what the API says of one.
type object struct {
	Name         string `json:"name"`
	ContentType  string `json:"contentType"`
	CacheControl string `json:"cacheControl"`
	MD5          string `json:"md5Hash"`
	Generation   string `json:"generation,omitempty"`
}

func (s Store) where(name string) string { return "gs://" + s.Bucket + "/" + s.Prefix + name }

func (s Store) endpoint() string {
	if s.Endpoint == "" {
		return "https://storage.googleapis.com"
	}
	return strings.TrimSuffix(s.Endpoint, "/")
}

// Get returns an object that is there: of the generation that its metadata
// tell, and past all caches.
func (s Store) Get(ctx context.Context, name string) (*publish.Held, error) {
	at := s.endpoint() + "/storage/v1/b/" + url.PathEscape(s.Bucket) + "/o/" + url.PathEscape(s.Prefix+name)
	var o object
	text, err := s.ask(ctx, http.MethodGet, at+"?alt=json", "", nil)
	if err == nil {
		err = json.Unmarshal(text, &o)
	}
	if err == nil && o.Generation == "" {
		err = errors.New("it has no generation")
	}
	var body []byte
	if err == nil {
		body, err = s.ask(ctx, http.MethodGet, at+"?alt=media&generation="+url.QueryEscape(o.Generation), "", nil)
	}
	switch {
	case s.isMissing(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("reading %s: %w", s.where(name), err)
	}
	return &publish.Held{Body: body, Headers: &publish.Headers{ContentType: o.ContentType, CacheControl: o.CacheControl}, Version: o.Generation}, nil
}

// isMissing tells a missing object from a missing bucket.
func (s Store) isMissing(err error) bool {
	var r *Error
	return errors.As(err, &r) && r.Status == http.StatusNotFound && !strings.Contains(r.Message, "bucket does not exist")
}

// Put replaces an object, on the condition that its generation is still the one
// that was read, or that there is none. The service checks what arrived.
func (s Store) Put(ctx context.Context, d publish.Document, replaces *publish.Held) error {
	generation := "0"
	if replaces != nil {
		generation = replaces.Version
	}
	sum := md5.Sum(d.Body)
	body, kind, err := related(object{
		Name: s.Prefix + d.Name, ContentType: d.ContentType, CacheControl: d.CacheControl, MD5: base64.StdEncoding.EncodeToString(sum[:]),
	}, d)
	if err != nil {
		return err
	}
	at := s.endpoint() + "/upload/storage/v1/b/" + url.PathEscape(s.Bucket) + "/o?uploadType=multipart&ifGenerationMatch=" + url.QueryEscape(generation)
	_, err = s.ask(ctx, http.MethodPost, at, kind, body)
	var r *Error
	if errors.As(err, &r) && r.Status == http.StatusPreconditionFailed {
		return fmt.Errorf("writing %s: %w: %w", s.where(d.Name), publish.ErrConflict, err)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", s.where(d.Name), err)
	}
	return nil
}

// related is metadata and document as multipart/related (RFC 2387).
func related(o object, d publish.Document) (body []byte, kind string, err error) {
	var b bytes.Buffer
	parts := multipart.NewWriter(&b)
	metadata, err := json.Marshal(o)
	if err != nil {
		return nil, "", err
	}
	for _, part := range []struct {
		kind string
		body []byte
	}{{"application/json; charset=UTF-8", metadata}, {d.ContentType, d.Body}} {
		w, err := parts.CreatePart(textproto.MIMEHeader{"Content-Type": {part.kind}})
		if err != nil {
			return nil, "", err
		}
		_, _ = w.Write(part.body) // a Buffer takes everything
	}
	err = parts.Close() // before the bytes are read: it writes the end
	return b.Bytes(), "multipart/related; boundary=" + parts.Boundary(), err
}

// An Error is the service's refusal.
type Error struct {
	Status  int
	Message string
}

func (e *Error) Error() string { return fmt.Sprintf("status %d: %.500s", e.Status, e.Message) }

func (s Store) ask(ctx context.Context, method, at, kind string, body []byte) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, at, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if kind != "" {
		r.Header.Set("Content-Type", kind)
	}
	response, err := s.Client.Do(r)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, publish.MaxHeld+1))
	if err != nil {
		return nil, err
	}
	if len(text) > publish.MaxHeld {
		return nil, fmt.Errorf("more than %d bytes: no document of ours", publish.MaxHeld)
	}
	if response.StatusCode != http.StatusOK {
		return nil, refusal(response.StatusCode, text)
	}
	return text, nil
}

// refusal reads what the service says, which is JSON but for media.
func refusal(status int, text []byte) error {
	var e struct {
		Error struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	if json.Unmarshal(text, &e) == nil && e.Error.Message != "" {
		return &Error{status, e.Error.Message}
	}
	return &Error{status, string(text)}
}
