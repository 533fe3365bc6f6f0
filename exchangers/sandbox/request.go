package sandbox

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
)

// Errors of requests. A [*FieldError] names the field of the last two.
var (
	ErrContentType = errors.New("wrong content type")
	ErrTooLarge    = errors.New("body is too large")
	ErrBody        = errors.New("body does not parse")
	ErrDuplicate   = errors.New("field stands twice")
	ErrEmpty       = errors.New("field is empty")
)

// A FieldError is what is wrong with one field of a form.
type FieldError struct {
	Field string
	Err   error // ErrDuplicate or ErrEmpty
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Err.Error() }
func (e *FieldError) Unwrap() error { return e.Err }

// ReadForm reads a form from the body; the query does not count. Each field
// stands once and is not empty. The error wraps one of the errors above.
func ReadForm(r *http.Request) (map[string]string, error) {
	b, err := ReadBody(r, "application/x-www-form-urlencoded")
	if err != nil {
		return nil, err
	}
	if bytes.IndexByte(b, ';') >= 0 { // once a separator too: whoever escapes it is understood everywhere
		return nil, fmt.Errorf("%w: a semicolon that is not escaped", ErrBody)
	}
	form := map[string]string{}
	for pair := range strings.SplitSeq(string(b), "&") {
		name, value, _ := strings.Cut(pair, "=")
		if name, err = url.QueryUnescape(name); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrBody, err)
		}
		if value, err = url.QueryUnescape(value); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrBody, err)
		}
		if _, ok := form[name]; ok {
			return nil, &FieldError{name, ErrDuplicate}
		}
		if name == "" || value == "" {
			return nil, &FieldError{name, ErrEmpty}
		}
		form[name] = value
	}
	return form, nil
}

// ReadJSON reads a strict JSON object (see [ParseObject]) from the body.
func ReadJSON(r *http.Request) (map[string]any, error) {
	b, err := ReadBody(r, "application/json")
	if err != nil {
		return nil, err
	}
	o, err := ParseObject(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBody, err)
	}
	return o, nil
}

// ReadBody reads a body of at most MaxBody with that media type, in UTF-8.
func ReadBody(r *http.Request, mediaType string) ([]byte, error) {
	got, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || got != mediaType || len(r.Header.Values("Content-Type")) != 1 {
		return nil, fmt.Errorf("%w: %q", ErrContentType, r.Header.Get("Content-Type"))
	}
	if c, ok := params["charset"]; ok && !strings.EqualFold(c, "utf-8") {
		return nil, fmt.Errorf("%w: charset %q", ErrContentType, c)
	}
	b, err := io.ReadAll(io.LimitReader(r.Body, MaxBody+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBody, err)
	}
	if len(b) > MaxBody {
		return nil, ErrTooLarge
	}
	return b, nil
}

// Bearer returns the token of the one Authorization header, or "" if there is
// none, several, or one of another scheme.
func Bearer(r *http.Request) string {
	if h := r.Header.Values("Authorization"); len(h) == 1 {
		if scheme, token, ok := strings.Cut(h[0], " "); ok && strings.EqualFold(scheme, "Bearer") {
			return token
		}
	}
	return ""
}

// NewID returns a random version 4 UUID for a request, a trace or a credential.
func NewID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
