package exchangers

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

const maxRetryAfter = 5 * time.Minute

// Answers is a transport that makes an error of every answer but the good
// one, before a library can guess at it, and remembers that error for when
// the library drops it. One Answers serves one exchange, one call at a time.
type Answers struct {
	Next    http.RoundTripper
	Refusal func(status int, header http.Header, body []byte) *Error

	last error
	good int // status of the last good answer
}

// RoundTrip passes on an answer of 200 that tells no error, and returns an
// *Error for any other: one that tells an error beside a token is no success.
func (a *Answers) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := a.Next.RoundTrip(r)
	if err != nil {
		a.last = err
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	if resp.StatusCode == http.StatusOK && !tellsError(body) {
		a.last, a.good = nil, resp.StatusCode
		resp.Body = rest{io.MultiReader(bytes.NewReader(body), resp.Body), resp.Body} // and what ended it
		return resp, nil
	}
	resp.Body.Close()
	if err != nil {
		body = nil // the status still says enough
	}
	refusal := a.Refusal(resp.StatusCode, resp.Header, body)
	if refusal.RetryAfter == 0 {
		refusal.RetryAfter = RetryAfter(resp.Header)
	}
	a.last = refusal
	return nil, refusal
}

type rest struct {
	io.Reader
	io.Closer
}

// tellsError says whether an answer has the member that tells an error (RFC
// 6749 §5.2, google.rpc.Status).
func tellsError(body []byte) bool {
	var answer struct {
		Error any `json:"error"`
	}
	return json.Unmarshal(body, &answer) == nil && answer.Error != nil && answer.Error != ""
}

// Failure turns what a library returned into an *Error of provider. The
// library's own text is left out: some quote the body, tokens included.
func (a *Answers) Failure(provider string, err error) *Error {
	var known *Error
	switch {
	case errors.As(a.last, &known), errors.As(err, &known):
		return known
	case a.last != nil:
		return Unreached(provider, a.last)
	case a.good != 0 && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded):
		return Unusable(provider, a.good, "", "it could not be read")
	}
	return Unreached(provider, err)
}

// Unreached is the Error for a call that had no answer.
func Unreached(provider string, err error) *Error {
	e := &Error{Provider: provider, Class: Outage, Code: "unreached", Err: cause(err)}
	e.Message = Clean(e.Err.Error())
	var bad *tls.CertificateVerificationError
	if errors.As(err, &bad) {
		e.Code, e.Hint = "untrusted_certificate", "check the Target's endpoint, and ca_file if it has a private certificate"
	}
	if errors.Is(err, context.DeadlineExceeded) {
		e.Code = "timeout"
	}
	return e
}

// cause strips the URL: it is long, and the same each time.
func cause(err error) error {
	var u *url.Error
	for errors.As(err, &u) {
		err = u.Err
	}
	return err
}

// Unusable is the Error for a success whose body is not one.
func Unusable(provider string, status int, requestID, why string) *Error {
	return &Error{Provider: provider, Status: status, Code: "unusable_answer", Class: Outage,
		Message: Clean("the answer cannot be used: " + why), RequestID: requestID,
		Hint: "check that the Target's endpoint is the provider's, and that no proxy answers in its place"}
}

// ClassOf is what an HTTP status says where no code says more.
func ClassOf(status int) Class {
	switch {
	case status == http.StatusTooManyRequests:
		return Throttled
	case status == http.StatusRequestTimeout, status >= 500:
		return Outage
	}
	return Config
}

// RetryAfter reads a pause in seconds (RFC 9110 §10.2.3), at most 5 min. A
// date, and what cannot be read, is zero.
func RetryAfter(h http.Header) time.Duration {
	n, err := strconv.ParseUint(h.Get("Retry-After"), 10, 32)
	if err != nil {
		return 0
	}
	return min(time.Duration(n)*time.Second, maxRetryAfter)
}
