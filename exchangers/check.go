package exchangers

import (
	"errors"
	"fmt"
	"net/url"
	"time"
)

// Check refuses a credential that nobody could use: neither or both kinds,
// one with an empty part, one that has no expiry or has expired. A provider's
// success with such a body is a failure.
func (c Credential) Check(now time.Time) error {
	switch {
	case (c.AWS == nil) == (c.Bearer == nil):
		return errors.New("exactly one kind of credential must be given")
	case c.AWS != nil && (c.AWS.AccessKeyID == "" || c.AWS.SecretAccessKey.Reveal() == "" || c.AWS.SessionToken.Reveal() == ""):
		return errors.New("the access key, its secret or the session token is empty")
	case c.Bearer != nil && c.Bearer.Token.Reveal() == "":
		return errors.New("the access token is empty")
	case c.Expires.IsZero():
		return errors.New("the credential has no expiry")
	case !c.Expires.After(now):
		return fmt.Errorf("the credential expired at %s: compare this machine's clock", c.Expires.UTC().Format(time.RFC3339))
	}
	return nil
}

// CheckEndpoint refuses what is not a plain https URL: one without a host, or
// with user, query or fragment. Empty passes: the field was left out.
func CheckEndpoint(field, endpoint string) error {
	if endpoint == "" {
		return nil
	}
	u, err := url.Parse(endpoint)
	if err != nil || len(endpoint) > 2048 {
		return fmt.Errorf("%s: not a URL of at most 2048 characters", field)
	}
	if u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return fmt.Errorf("%s %q: it must be https://HOST, without user, query or fragment", field, u.Redacted())
	}
	return nil
}
