package aws

import (
	"context"
	"encoding/xml"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
)

var (
	policyARNField   = regexp.MustCompile(`^PolicyArns\.member\.(10|[1-9])\.arn$`)
	policyARNPattern = regexp.MustCompile(`^arn:aws[a-z-]*:iam::(aws|[0-9]{12}):policy/[!-~]{1,512}$`)
	integerPattern   = regexp.MustCompile(`^[0-9]{1,9}$`)
	errNotAuthorized = refuse(http.StatusForbidden, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity")
)

// A webIdentityCall is one AssumeRoleWithWebIdentity request.
type webIdentityCall struct {
	roleARN, sessionName, token string
	policies                    []string // inline and ARNs
	duration                    time.Duration
	minToken                    int
}

func (c *Cloud) assumeRoleWithWebIdentity(ctx context.Context, form map[string]string, e *sandbox.Entry) (any, error) {
	call, err := parseWebIdentity(form)
	if err != nil {
		return nil, err
	}
	e.Token = sandbox.HashToken(call.token)
	e.Fields["RoleArn"], e.Fields["RoleSessionName"] = call.roleARN, call.sessionName
	now := c.cfg.Now()
	id, err := c.verifyToken(ctx, call.token, now)
	if err != nil {
		return nil, err
	}
	r, ok := get(c, c.roles, call.roleARN)
	if !ok {
		return nil, errNotAuthorized.because("no role %s in this account", call.roleARN)
	}
	if err := id.mayAssume(r, c.ProviderARN(id.provider.URL), call.sessionName); err != nil {
		return nil, err
	}
	if call.duration > r.max {
		return nil, validation("The requested DurationSeconds exceeds the MaxSessionDuration set for this role.")
	}
	size := packed(id.tags, call.policies...)
	if size > 100 {
		return nil, refuse(http.StatusBadRequest, "PackedPolicyTooLarge", "Packed policy consumes %d%% of allotted space, please use smaller policy.", size)
	}
	s, err := c.issue(grant{role: r, name: call.sessionName, sourceIdentity: id.sourceIdentity,
		tags: id.tags, transitive: id.transitive, policies: call.policies, duration: call.duration, minToken: call.minToken}, now)
	if err != nil {
		return nil, err
	}
	return webIdentityOutput(s, id, c.ProviderARN(id.provider.URL), size, e.ID), nil
}

// mayAssume puts the actions that the token needs to the role's trust policy.
func (id *webIdentity) mayAssume(r role, providerARN, sessionName string) error {
	ctx := id.context()
	ctx.add("sts:RoleSessionName", sessionName)
	actions := []string{"sts:AssumeRoleWithWebIdentity"}
	if len(id.tags) > 0 {
		actions = append(actions, "sts:TagSession")
	}
	if id.sourceIdentity != "" {
		actions = append(actions, "sts:SetSourceIdentity")
	}
	for _, a := range actions {
		if !r.policy.allows(question{"Federated", []string{providerARN}, a, ctx}) {
			return errNotAuthorized.because("the trust policy of %s does not allow %s", r.text, a)
		}
	}
	return nil
}

func parseWebIdentity(form map[string]string) (*webIdentityCall, error) {
	call := &webIdentityCall{duration: time.Hour}
	for _, required := range []string{"RoleArn", "RoleSessionName", "WebIdentityToken"} {
		if form[required] == "" {
			return nil, constraint("null", lowerFirst(required), "Member must not be null")
		}
	}
	for name, value := range form {
		if err := call.read(name, value); err != nil {
			return nil, err
		}
	}
	return call, nil
}

func (call *webIdentityCall) read(name, value string) error {
	switch name {
	case "Action", "Version":
	case "RoleArn":
		if _, err := parseRoleARN(value); err != nil || len(value) < 20 {
			return constraint("'"+value+"'", "roleArn", "Member must be the ARN of a role, of 20 to 2048 characters")
		}
		call.roleARN = value
	case "RoleSessionName":
		if !sessionNamePattern.MatchString(value) {
			return constraint("'"+value+"'", "roleSessionName", `Member must satisfy regular expression pattern: [\w+=,.@-]* and have length from 2 to 64`)
		}
		call.sessionName = value
	case "WebIdentityToken":
		if len(value) < 4 || len(value) > 20000 {
			return constraint("(not shown)", "webIdentityToken", "Member must have length from 4 to 20000")
		}
		call.token = value
	case "ProviderId":
		return validation("ProviderId is for OAuth 2.0 access tokens, not for OpenID Connect ID tokens")
	default:
		return call.readOptional(name, value)
	}
	return nil
}

func (call *webIdentityCall) readOptional(name, value string) error {
	switch {
	case name == "DurationSeconds":
		sec, ok := integer(value, 900, 43200)
		if !ok {
			return constraint("'"+value+"'", "durationSeconds", "Member must have value from 900 to 43200")
		}
		call.duration = time.Duration(sec) * time.Second
	case name == "MinimumSessionTokenSize":
		n, ok := integer(value, 1, 4096)
		if !ok {
			return constraint("'"+value+"'", "minimumSessionTokenSize", "Member must have value less than or equal to 4096")
		}
		call.minToken = n
	case name == "Policy":
		if !sessionPolicyFits(value) {
			return refuse(http.StatusBadRequest, "MalformedPolicyDocument", "The policy is not a JSON object of at most 2048 characters")
		}
		call.policies = append(call.policies, value)
	case policyARNField.MatchString(name):
		if !policyARNPattern.MatchString(value) {
			return constraint("'"+value+"'", "policyArns", "Member must be the ARN of a policy")
		}
		call.policies = append(call.policies, value)
	default:
		return validation("parameter %q is unknown", name)
	}
	return nil
}

func integer(s string, low, high int) (int, bool) {
	n, err := strconv.Atoi(s)
	return n, err == nil && integerPattern.MatchString(s) && n >= low && n <= high
}

func lowerFirst(s string) string { return strings.ToLower(s[:1]) + s[1:] }

type webIdentityResponse struct {
	XMLName   xml.Name          `xml:"AssumeRoleWithWebIdentityResponse"`
	Namespace string            `xml:"xmlns,attr"`
	Result    webIdentityResult `xml:"AssumeRoleWithWebIdentityResult"`
	RequestID string            `xml:"ResponseMetadata>RequestId"`
}

type webIdentityResult struct {
	Subject         string `xml:"SubjectFromWebIdentityToken"`
	Audience        string `xml:"Audience"`
	Arn             string `xml:"AssumedRoleUser>Arn"`
	AssumedRoleID   string `xml:"AssumedRoleUser>AssumedRoleId"`
	AccessKeyID     string `xml:"Credentials>AccessKeyId"`
	SecretAccessKey string `xml:"Credentials>SecretAccessKey"`
	SessionToken    string `xml:"Credentials>SessionToken"`
	Expiration      string `xml:"Credentials>Expiration"`
	Provider        string `xml:"Provider"`
	SourceIdentity  string `xml:"SourceIdentity,omitempty"`
	Packed          int    `xml:"PackedPolicySize,omitempty"`
}

func webIdentityOutput(s session, id *webIdentity, providerARN string, packed int, requestID string) any {
	return webIdentityResponse{Namespace: stsNamespace, RequestID: requestID, Result: webIdentityResult{
		Subject: id.subject, Audience: id.audience, Arn: s.ARN, AssumedRoleID: s.UserID,
		AccessKeyID: s.AccessKeyID, SecretAccessKey: s.secret, SessionToken: s.token,
		Expiration: s.Expires.Format(time.RFC3339), Provider: providerARN,
		SourceIdentity: s.SourceIdentity, Packed: packed,
	}}
}

// context holds the condition keys of a generic issuer: aud, sub, amr, email and
// oaud. Other claims are not available to policies. Tags and the source identity
// have keys of STS.
func (id *webIdentity) context() conditionContext {
	ctx := conditionContext{}
	host := providerName(id.provider.URL)
	ctx.add(host+":aud", id.audience)
	ctx.add(host+":sub", id.subject)
	ctx.add(host+":oaud", id.original...)
	ctx.add(host+":amr", id.methods...)
	if id.email != "" {
		ctx.add(host+":email", id.email)
	}
	if id.sourceIdentity != "" {
		ctx.add("sts:SourceIdentity", id.sourceIdentity)
	}
	var keys []string
	for k, v := range id.tags {
		ctx.add("aws:RequestTag/"+k, v)
		keys = append(keys, k)
	}
	slices.Sort(keys)
	ctx.add("aws:TagKeys", keys...)
	ctx.add("sts:TransitiveTagKeys", id.transitive...)
	return ctx
}

// checkKeyCount is the quota of keys in a provider's set.
func checkKeyCount(m *sandbox.Metadata) error {
	count := map[string]int{}
	for _, k := range m.Keys {
		count[k.Type]++
	}
	if count["RSA"] > 100 || count["EC"] > 100 {
		return fmt.Errorf("%w: more than 100 RSA or 100 EC keys", sandbox.ErrKeySet)
	}
	return nil
}
