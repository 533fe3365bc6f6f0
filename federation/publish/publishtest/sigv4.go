package publishtest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// What AWS's services know of their one caller.
const (
	AccessKey = "AKIDEXAMPLE"
	SecretKey = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
	Region    = "eu-west-1"
)

var authorization = regexp.MustCompile(`^AWS4-HMAC-SHA256 Credential=(\w+)/(\d{8})/([a-z0-9-]+)/([a-z0-9-]+)/aws4_request, SignedHeaders=([a-z0-9;-]+), Signature=([0-9a-f]{64})$`)

// checkSigV4 verifies AWS Signature Version 4 of a request to a service.
func checkSigV4(r *http.Request, body []byte, service string) error {
	m := authorization.FindStringSubmatch(r.Header.Get("Authorization"))
	if m == nil {
		return fmt.Errorf("no SigV4: %q", r.Header.Get("Authorization"))
	}
	at := r.Header.Get("X-Amz-Date")
	date, err := time.Parse("20060102T150405Z", at)
	if err != nil || time.Since(date).Abs() > 5*time.Minute {
		return fmt.Errorf("date %q", at)
	}
	if m[1] != AccessKey || m[2] != at[:8] || m[3] != Region || m[4] != service {
		return fmt.Errorf("credential scope %v", m[1:5])
	}
	hash := hex.EncodeToString(sum(body))
	if v := r.Header.Get("X-Amz-Content-Sha256"); v == "UNSIGNED-PAYLOAD" && service == "s3" && r.TLS != nil {
		hash = v
	} else if v != "" && v != hash {
		return fmt.Errorf("x-amz-content-sha256 %s, not %s", v, hash)
	}
	signed := strings.Split(m[5], ";")
	if !slices.IsSorted(signed) || !slices.Contains(signed, "host") {
		return fmt.Errorf("signed headers %q", signed)
	}
	for name := range r.Header {
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-amz-") && !slices.Contains(signed, name) {
			return fmt.Errorf("%s is not signed", name)
		}
	}
	var c strings.Builder
	fmt.Fprintf(&c, "%s\n%s\n%s\n", r.Method, r.URL.EscapedPath(), canonicalQuery(r.URL.Query()))
	for _, name := range signed {
		value := strings.Join(strings.Fields(strings.Join(r.Header.Values(name), ",")), " ")
		switch name {
		case "host":
			value = r.Host
		case "content-length":
			value = strconv.FormatInt(r.ContentLength, 10)
		}
		fmt.Fprintf(&c, "%s:%s\n", name, value)
	}
	fmt.Fprintf(&c, "\n%s\n%s", m[5], hash)
	key := []byte("AWS4" + SecretKey)
	for _, part := range []string{m[2], m[3], m[4], "aws4_request"} {
		key = mac(key, part)
	}
	toSign := strings.Join([]string{"AWS4-HMAC-SHA256", at, strings.Join([]string{m[2], m[3], m[4], "aws4_request"}, "/"), hex.EncodeToString(sum([]byte(c.String())))}, "\n")
	if want := hex.EncodeToString(mac(key, toSign)); want != m[6] {
		return fmt.Errorf("the signature is not that of\n%s", c.String())
	}
	return nil
}

func sum(b []byte) []byte { s := sha256.Sum256(b); return s[:] }

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

func canonicalQuery(q url.Values) string {
	return strings.ReplaceAll(q.Encode(), "+", "%20")
}
