package aws

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

const amzDate = "20060102T150405Z"

var (
	errAuthorization = errors.New("authorization header is malformed")
	errSignedHeaders = errors.New("signed headers do not do")
	errScope         = errors.New("credential scope does not fit")
	errDate          = errors.New("date does not do")
)

// authorization is a parsed Authorization header of the SigV4 family.
type authorization struct {
	algorithm     string
	key           string // access key ID, or serial number
	date          string // of the scope
	region        string
	service       string
	terminator    string
	signedHeaders []string
	signature     string
}

// scope is the credential scope as the string to sign has it.
func (a authorization) scope() string {
	return strings.Join([]string{a.date, a.region, a.service, a.terminator}, "/")
}

// parseAuthorization reads the one Authorization header.
func parseAuthorization(h http.Header) (authorization, error) {
	var a authorization
	v, err := single(h, "Authorization")
	if err != nil {
		return a, err
	}
	algorithm, rest, _ := strings.Cut(v, " ")
	a.algorithm = algorithm
	fields := map[string]string{}
	for part := range strings.SplitSeq(rest, ",") {
		name, value, ok := strings.Cut(strings.TrimSpace(part), "=")
		if _, twice := fields[name]; twice || !ok {
			return a, fmt.Errorf("%w: part %q", errAuthorization, name)
		}
		fields[name] = value
	}
	cred := strings.Split(fields["Credential"], "/")
	if len(fields) != 3 || len(cred) != 5 || fields["SignedHeaders"] == "" || fields["Signature"] == "" {
		return a, fmt.Errorf("%w: Credential with five parts, SignedHeaders and Signature are wanted", errAuthorization)
	}
	a.key, a.date, a.region, a.service, a.terminator = cred[0], cred[1], cred[2], cred[3], cred[4]
	a.signedHeaders, a.signature = strings.Split(fields["SignedHeaders"], ";"), fields["Signature"]
	return a, nil
}

// single returns the value of a header that must stand once and not be empty.
func single(h http.Header, name string) (string, error) {
	v := h.Values(name)
	if len(v) != 1 || v[0] == "" {
		return "", fmt.Errorf("%w: %s stands %d times or is empty", errAuthorization, name, len(v))
	}
	return v[0], nil
}

// checkScope compares the credential scope with the endpoint and the date, and
// the date with the clock.
func (a authorization) checkScope(date, region, service string, now time.Time, skew time.Duration) error {
	t, err := time.Parse(amzDate, date)
	if err != nil || t.Format(amzDate) != date {
		return fmt.Errorf("%w: X-Amz-Date %q is not of the form %s", errDate, date, amzDate)
	}
	if want := date[:8] + "/" + region + "/" + service + "/aws4_request"; a.scope() != want {
		return fmt.Errorf("%w: %s is not %s", errScope, a.scope(), want)
	}
	if off := now.Sub(t).Abs(); off > skew {
		return fmt.Errorf("%w: %s is %s off", errDate, date, off)
	}
	return nil
}

// checkSignedHeaders wants the names sorted, in lower case, and among them host,
// those required, every x-amz- header of the request, and its content type.
func (a authorization) checkSignedHeaders(h http.Header, required ...string) error {
	for i, name := range a.signedHeaders {
		if name == "" || name != strings.ToLower(name) || i > 0 && a.signedHeaders[i-1] >= name {
			return fmt.Errorf("%w: not sorted, in lower case and unique at %q", errSignedHeaders, name)
		}
	}
	required = append(required, "host", "x-amz-date")
	for name := range h {
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-amz-") || name == "content-type" {
			required = append(required, name)
		}
	}
	for _, name := range required {
		if !slices.Contains(a.signedHeaders, name) {
			return fmt.Errorf("%w: %s is not signed", errSignedHeaders, name)
		}
	}
	return nil
}

// stringToSign rebuilds what was signed, SigV4 with the canonical request for a
// constant path.
func (a authorization) stringToSign(r *http.Request, path, date string, body []byte) (string, error) {
	canonical, err := a.canonicalRequest(r, path, body)
	if err != nil {
		return "", err
	}
	return a.algorithm + "\n" + date + "\n" + a.scope() + "\n" + hexSHA256([]byte(canonical)), nil
}

func (a authorization) canonicalRequest(r *http.Request, path string, body []byte) (string, error) {
	query, err := canonicalQuery(r.URL.RawQuery)
	if err != nil {
		return "", err
	}
	hash := hexSHA256(body)
	if v := r.Header.Values("X-Amz-Content-Sha256"); len(v) > 0 && (len(v) > 1 || v[0] != hash) {
		return "", fmt.Errorf("%w: x-amz-content-sha256 is not the hash of the body", errSignedHeaders)
	}
	var b strings.Builder
	b.WriteString(r.Method + "\n" + path + "\n" + query + "\n")
	for _, name := range a.signedHeaders {
		value, err := headerValue(r, name)
		if err != nil {
			return "", err
		}
		b.WriteString(name + ":" + value + "\n")
	}
	b.WriteString("\n" + strings.Join(a.signedHeaders, ";") + "\n" + hash)
	return b.String(), nil
}

// headerValue undoes what net/http does to the two headers that it moves.
func headerValue(r *http.Request, name string) (string, error) {
	values := r.Header.Values(name)
	switch {
	case name == "host":
		values = []string{r.Host}
	case name == "content-length" && len(values) == 0 && r.ContentLength >= 0:
		values = []string{strconv.FormatInt(r.ContentLength, 10)}
	}
	if len(values) == 0 {
		return "", fmt.Errorf("%w: %s is not there", errSignedHeaders, name)
	}
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = oneSpace(strings.Trim(v, " "))
	}
	return strings.Join(out, ","), nil
}

func oneSpace(s string) string {
	for strings.Contains(s, "  ") {
		s = strings.ReplaceAll(s, "  ", " ")
	}
	return s
}

// canonicalQuery sorts the parameters and encodes them per RFC 3986.
func canonicalQuery(raw string) (string, error) {
	if raw == "" {
		return "", nil
	}
	var pairs [][2]string
	for part := range strings.SplitSeq(raw, "&") {
		name, value, _ := strings.Cut(part, "=")
		n, err1 := url.QueryUnescape(name)
		v, err2 := url.QueryUnescape(value)
		if err := errors.Join(err1, err2); err != nil {
			return "", fmt.Errorf("parsing query: %w", err)
		}
		pairs = append(pairs, [2]string{escape(n), escape(v)})
	}
	slices.SortFunc(pairs, func(a, b [2]string) int {
		return strings.Compare(a[0]+"\x00"+a[1], b[0]+"\x00"+b[1])
	})
	out := make([]string, len(pairs))
	for i, p := range pairs {
		out[i] = p[0] + "=" + p[1]
	}
	return strings.Join(out, "&"), nil
}

// escape encodes all but the unreserved characters of RFC 3986 §2.3.
func escape(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("-._~", c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

func hexSHA256(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
