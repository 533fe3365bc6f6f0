package awsiam

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/credence-id/credence/broker/join/bearer"
)

// What a request always is: nothing of it is the node's to choose.
const (
	body        = "Action=GetCallerIdentity&Version=2011-06-15"
	contentType = "application/x-www-form-urlencoded"
	dateForm    = "20060102T150405Z"
	// skew is how far its date may be off, both ways: as far as STS takes one.
	skew     = 5 * time.Minute
	maxToken = 8 << 10
)

// Names of the headers that bind a request to one join at one broker.
const (
	headerChallenge   = "x-credence-challenge"
	headerTrustDomain = "x-credence-trust-domain"
)

var (
	authorization = regexp.MustCompile(`^AWS4-HMAC-SHA256 Credential=(?:AKIA|ASIA)[A-Z0-9]{12,124}/([0-9]{8})/([a-z0-9-]{1,32})/sts/aws4_request, SignedHeaders=([a-z0-9;-]{1,256}), Signature=[0-9a-f]{64}$`)
	tokenPattern  = regexp.MustCompile(`^[A-Za-z0-9+/=_.-]+$`)
)

// A request is what of a signed one differs from another, checked. Send makes
// the rest itself.
type request struct {
	host, region, date   string
	authorization, token string
}

// parse reads a signed request, which must be the only one that this join can
// have: {"method": "POST", "url": "https://HOST/", "headers": {...}, "body": ...},
// the headers by their names in lower case, each of them signed, and no other.
func (m *method) parse(text, challenge []byte, now time.Time) (request, error) {
	all, err := bearer.Object(text)
	if err != nil {
		return request{}, err
	}
	headers, ok := all["headers"].(map[string]any)
	if !ok || len(all) != 4 {
		return request{}, errors.New("method, url, headers and body are wanted, and nothing else")
	}
	if all["method"] != http.MethodPost || all["body"] != body {
		return request{}, fmt.Errorf("it is no POST of exactly %s", body)
	}
	values, names, err := readHeaders(headers)
	if err != nil {
		return request{}, err
	}
	r := request{host: values["host"], date: values["x-amz-date"], authorization: values["authorization"], token: values["x-amz-security-token"]}
	if err := r.readScope(names, now); err != nil {
		return request{}, err
	}
	if err := m.bound(values, challenge); err != nil {
		return request{}, err
	}
	if !slices.Contains(m.cfg.Settings.hosts(r.region), r.host) {
		return request{}, fmt.Errorf("%.100q is not an endpoint of STS, in region %q, that this rule has asked", r.host, r.region)
	}
	if all["url"] != r.url() {
		return request{}, fmt.Errorf("its url is not https://%s/", r.host)
	}
	return r, nil
}

// readHeaders takes exactly the headers that there are to be, once each; names
// are those that must be signed, in order.
func readHeaders(headers map[string]any) (values map[string]string, names []string, err error) {
	values = map[string]string{}
	for _, name := range []string{"authorization", "content-type", "host", "x-amz-date", "x-amz-security-token", headerChallenge, headerTrustDomain} {
		value, there := headers[name]
		text, is := value.(string)
		switch {
		case !there && name == "x-amz-security-token": // a user's own key has none
			continue
		case !is || text == "" || len(text) > maxToken:
			return nil, nil, fmt.Errorf("header %s is missing or no text of 1 to %d bytes", name, maxToken)
		}
		values[name] = text
		if name != "authorization" {
			names = append(names, name)
		}
	}
	if len(values) != len(headers) { // another name, or one in another case
		return nil, nil, errors.New("it has headers that are none of a request to STS")
	}
	return values, names, nil
}

// readScope reads the signature's scope, and holds it against date, clock and
// the headers that must be signed.
func (r *request) readScope(names []string, now time.Time) error {
	scope := authorization.FindStringSubmatch(r.authorization)
	if scope == nil {
		return errors.New("header authorization is no signature of version 4 for STS in headers")
	}
	at, err := time.Parse(dateForm, r.date)
	switch {
	case err != nil || at.Format(dateForm) != r.date:
		return errors.New("header x-amz-date is no date")
	case at.Before(now.Add(-skew)) || at.After(now.Add(skew)):
		return fmt.Errorf("it was signed at %s: %s at most is taken, both ways: are both clocks right?", r.date, skew)
	case scope[1] != r.date[:8]:
		return errors.New("its signature is of another day than its date")
	case scope[3] != strings.Join(names, ";"):
		return fmt.Errorf("its signed headers are not exactly %s", strings.Join(names, ";"))
	case r.token != "" && !tokenPattern.MatchString(r.token):
		return errors.New("header x-amz-security-token is no session token")
	}
	r.region = scope[2]
	return nil
}

// bound holds a request against what makes it one for this join, and for us.
func (m *method) bound(values map[string]string, challenge []byte) error {
	switch {
	case values["content-type"] != contentType:
		return fmt.Errorf("header content-type is not %s", contentType)
	case values[headerChallenge] != base64.RawURLEncoding.EncodeToString(challenge):
		return errors.New("it was not signed for this challenge")
	case values[headerTrustDomain] != m.cfg.TrustDomain:
		return fmt.Errorf("it was signed for trust domain %.100q, this is %s", values[headerTrustDomain], m.cfg.TrustDomain)
	}
	return nil
}

func (r *request) url() string { return "https://" + r.host + "/" }

// header is what is sent to STS, made of what was checked.
func (r *request) header(cfg Config, challenge []byte) http.Header {
	h := http.Header{}
	h.Set("Authorization", r.authorization)
	h.Set("Content-Type", contentType)
	h.Set("X-Amz-Date", r.date)
	if r.token != "" {
		h.Set("X-Amz-Security-Token", r.token)
	}
	h.Set(headerChallenge, base64.RawURLEncoding.EncodeToString(challenge))
	h.Set(headerTrustDomain, cfg.TrustDomain)
	h.Set("Accept", "application/json") // ours: what is to be parsed is not the node's to choose
	return h
}
