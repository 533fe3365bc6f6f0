package bearer

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"
)

// maxAge is what max_age may be: a token that is good for longer is a secret
// to be kept.
const maxAge = 24 * time.Hour

// A Duration is written as in 90s or 10m.
type Duration time.Duration

// UnmarshalText reads it.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = Duration(v)
	return err
}

// MarshalText writes it.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// CheckMaxAge says what is wrong with a rule's max_age, its name first.
func CheckMaxAge(d Duration) error {
	if d < 0 || time.Duration(d) > maxAge {
		return fmt.Errorf("max_age: %s: at most %s is taken", time.Duration(d), maxAge)
	}
	return nil
}

// CheckAudience says what is wrong with a rule's audience, its name first. Empty,
// it is the default.
func CheckAudience(text string) error {
	if len(text) > 512 {
		return errors.New("audience: more than 512 bytes")
	}
	if strings.HasPrefix(text, "credence://") && strings.HasSuffix(text, "/workload") {
		return fmt.Errorf("audience: %q is that of workloads' tokens, which let no node in", text)
	}
	return nil
}

// ParseRoots reads CA certificates in PEM; of an empty text there are none, which
// means the system's.
func ParseRoots(text string) (*x509.CertPool, error) {
	if text == "" {
		return nil, nil
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(text)) {
		return nil, errors.New("no certificate in PEM is in it")
	}
	return roots, nil
}

var issuerHost = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?$`)

// CheckIssuer takes an https URL as an issuer may be (OpenID Connect Core §2),
// in the spelling that nothing would change.
func CheckIssuer(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.ForceQuery || strings.Contains(text, "#") ||
		!issuerHost.MatchString(u.Host) || u.String() != text {
		return fmt.Errorf("%.200q: https://host/path is wanted, as tokens say it", text)
	}
	return nil
}
