package aws

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
)

var sessionNamePattern = regexp.MustCompile(`^[\w+=,.@-]{2,64}$`)

// An anywhereCall is one CreateSession request whose signature verified.
type anywhereCall struct {
	leaf  *x509.Certificate
	chain []*x509.Certificate // as sent: intermediates only, unverified

	anchorARN, profileARN, roleARN string
	anchor, profile, role          arn
	duration                       time.Duration // zero if not asked for
	sessionName                    string        // empty if not asked for
}

var anywhereARNs = []string{"trustAnchorArn", "profileArn", "roleArn"}

// parse reads the parameters: the ARNs from the query or the body, or equally
// from both, the rest from the body.
func (a *anywhereCall) parse(query string, body []byte) error {
	o, err := sandbox.ParseObject(body)
	if err != nil {
		return invalid("%v", err)
	}
	arns, err := parseARNQuery(query)
	if err != nil {
		return invalid("%v", err)
	}
	for name, v := range o {
		if err := a.readMember(name, v, arns); err != nil {
			return invalid("%v", err)
		}
	}
	return a.readARNs(arns)
}

func parseARNQuery(query string) (map[string]string, error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return nil, fmt.Errorf("parsing query: %w", err)
	}
	arns := map[string]string{}
	for name, v := range values {
		if !slices.Contains(anywhereARNs, name) || len(v) != 1 || v[0] == "" {
			return nil, fmt.Errorf("query parameter %q is unknown, empty or stands twice", name)
		}
		arns[name] = v[0]
	}
	return arns, nil
}

func (a *anywhereCall) readMember(name string, v any, arns map[string]string) error {
	text, isText := v.(string)
	switch name {
	case "trustAnchorArn", "profileArn", "roleArn":
		if had, ok := arns[name]; !isText || ok && had != text {
			return fmt.Errorf("%s is no text, or differs between query and body", name)
		}
		arns[name] = text
	case "durationSeconds":
		return a.readDuration(v)
	case "roleSessionName":
		if !isText || !sessionNamePattern.MatchString(text) {
			return errors.New("roleSessionName must match [\\w+=,.@-]{2,64}")
		}
		a.sessionName = text
	case "instanceProperties":
		return checkProperties(v)
	default:
		return fmt.Errorf("member %q is unknown", name)
	}
	return nil
}

func (a *anywhereCall) readDuration(v any) error {
	n, ok := v.(json.Number)
	sec, err := strconv.Atoi(n.String())
	if !ok || err != nil || sec < 900 || sec > 43200 {
		return errors.New("durationSeconds must be an integer from 900 to 43200")
	}
	a.duration = time.Duration(sec) * time.Second
	return nil
}

// checkProperties checks the shape of what some clients tell about their host.
// No decision depends on it.
func checkProperties(v any) error {
	o, ok := v.(map[string]any)
	for _, p := range o {
		if _, isText := p.(string); !isText {
			ok = false
		}
	}
	if !ok || len(o) > 200 {
		return errors.New("instanceProperties must map at most 200 names to texts")
	}
	return nil
}

func (a *anywhereCall) readARNs(arns map[string]string) error {
	var err1, err2, err3 error
	a.anchorARN, a.profileARN, a.roleARN = arns["trustAnchorArn"], arns["profileArn"], arns["roleArn"]
	a.anchor, err1 = parseAnywhereARN(a.anchorARN, "trust-anchor")
	a.profile, err2 = parseAnywhereARN(a.profileARN, "profile")
	a.role, err3 = parseRoleARN(a.roleARN)
	for _, err := range []error{err1, err2, err3} {
		if err != nil {
			return invalid("%v", err)
		}
	}
	return nil
}

// oneHome says whether all three ARNs stand in one account, and in the region.
func (a *anywhereCall) oneHome(region string) bool {
	return a.anchor.region == region && a.profile.region == region &&
		a.anchor.account == a.profile.account && a.anchor.account == a.role.account &&
		a.anchor.partition == a.role.partition
}

// fields are the parameters for the record.
func (a *anywhereCall) fields() map[string]string {
	f := map[string]string{"trustAnchorArn": a.anchorARN, "profileArn": a.profileARN, "roleArn": a.roleARN}
	maps.DeleteFunc(f, func(_, v string) bool { return v == "" })
	if a.duration > 0 {
		f["durationSeconds"] = strconv.Itoa(int(a.duration / time.Second))
	}
	if a.sessionName != "" {
		f["roleSessionName"] = a.sessionName
	}
	return f
}

func (p profile) lists(roleARN string) bool { return slices.Contains(p.RoleARNs, roleARN) }

// grant says what the session would be: its duration, name, tags and source
// identity.
func (a *anywhereCall) grant(p profile, r role) (grant, error) {
	g := grant{role: r, name: a.sessionName, duration: p.Duration}
	if a.duration > 0 {
		g.duration = min(p.Duration, a.duration)
	}
	if g.duration > r.max {
		return g, unable(r.text, "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.")
	}
	if g.name != "" && !p.AcceptRoleSessionName {
		return g, denied("Access Denied").because("profile does not accept roleSessionName")
	}
	if g.name == "" {
		g.name = hexSerial(a.leaf)
	}
	if p.SessionPolicy != "" {
		g.policies = []string{p.SessionPolicy}
	}
	var err error
	if g.tags, err = mapAttributes(a.leaf, p.AttributeMappings); err != nil {
		return g, unable(r.text, err.Error())
	}
	if g.sourceIdentity, err = sourceIdentity(a.leaf); err != nil || !sessionNamePattern.MatchString(g.name) {
		return g, unable(r.text, "").because("session name %q, source identity: %v", g.name, err)
	}
	return g, nil
}

func (a *anywhereCall) output(s session, g grant, packed int) *createSessionOutput {
	return &createSessionOutput{
		CredentialSet: []credentialSet{{
			AssumedRoleUser: assumedRoleUser{s.ARN, s.UserID},
			Credentials: credentials{s.AccessKeyID, s.secret, s.token,
				s.Expires.Format(time.RFC3339)},
			PackedPolicySize: packed,
			RoleArn:          g.role.text,
			SourceIdentity:   g.sourceIdentity,
		}},
		SubjectArn: strings.Join([]string{"arn", a.anchor.partition, "rolesanywhere", a.anchor.region,
			a.anchor.account, "subject/" + subjectID(a.leaf)}, ":"),
	}
}
