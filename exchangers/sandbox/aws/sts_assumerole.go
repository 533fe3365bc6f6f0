package aws

import (
	"encoding/xml"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
)

// maxChained is how long a session lives that another session asked for.
const maxChained = time.Hour

var externalIDPattern = regexp.MustCompile(`^[\w+=,.@:/-]{2,}$`)

// An assumeRoleCall is one AssumeRole request.
type assumeRoleCall struct {
	webIdentityCall // what both have
	externalID      string
}

// assumeRole chains: a session asks for one of another role of this account.
func (c *Cloud) assumeRole(r *http.Request, form map[string]string, body []byte, e *sandbox.Entry) (any, error) {
	now := c.cfg.Now()
	caller, err := c.authenticateHMAC(r, body, now)
	if err != nil {
		return nil, err
	}
	call, err := parseAssumeRole(form)
	if err != nil {
		return nil, err
	}
	e.Fields["Arn"], e.Fields["RoleArn"], e.Fields["RoleSessionName"] = caller.ARN, call.roleARN, call.sessionName
	no := refuse(http.StatusForbidden, "AccessDenied", "User: %s is not authorized to perform: sts:AssumeRole on resource: %s", caller.ARN, call.roleARN)
	target, ok := get(c, c.roles, call.roleARN)
	if !ok {
		return nil, no.because("no role %s in this account", call.roleARN)
	}
	own, ok := get(c, c.roles, caller.role)
	if !ok {
		return nil, no.because("the caller's role is gone")
	}
	if why := caller.mayChain(own, target, call); why != "" {
		return nil, no.because("%s", why)
	}
	if call.duration > maxChained {
		return nil, validation("The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining")
	}
	if call.duration > target.max {
		return nil, validation("The requested DurationSeconds exceeds the MaxSessionDuration set for this role.")
	}
	tags := caller.inherited()
	size := packed(tags, call.policies...)
	if size > 100 {
		return nil, refuse(http.StatusBadRequest, "PackedPolicyTooLarge", "Packed policy consumes %d%% of allotted space, please use smaller policy.", size)
	}
	s, err := c.issue(grant{role: target, name: call.sessionName, sourceIdentity: caller.SourceIdentity, tags: tags,
		transitive: caller.transitive, policies: call.policies, duration: call.duration, minToken: call.minToken}, now)
	if err != nil {
		return nil, err
	}
	return assumeRoleResponse{Namespace: stsNamespace, RequestID: e.ID, Result: assumeRoleResult{
		Arn: s.ARN, AssumedRoleID: s.UserID, AccessKeyID: s.AccessKeyID, SecretAccessKey: s.secret, SessionToken: s.token,
		Expiration: s.Expires.Format(time.RFC3339), SourceIdentity: s.SourceIdentity, Packed: size,
	}}, nil
}

func parseAssumeRole(form map[string]string) (*assumeRoleCall, error) {
	call := &assumeRoleCall{webIdentityCall: webIdentityCall{duration: time.Hour}}
	for _, required := range []string{"RoleArn", "RoleSessionName"} {
		if form[required] == "" {
			return nil, constraint("null", lowerFirst(required), "Member must not be null")
		}
	}
	for name, value := range form {
		switch name {
		case "ExternalId":
			if len(value) > 1224 || !externalIDPattern.MatchString(value) {
				return nil, constraint("(not shown)", "externalId", `Member must satisfy regular expression pattern: [\w+=,.@:\/-]* and have length from 2 to 1224`)
			}
			call.externalID = value
		case "WebIdentityToken", "ProviderId":
			return nil, validation("parameter %q is unknown", name)
		default:
			if err := call.read(name, value); err != nil {
				return nil, err
			}
		}
	}
	return call, nil
}

// inherited are the tags that go on to the next session.
func (s session) inherited() map[string]string {
	out := map[string]string{}
	for _, k := range s.transitive {
		out[k] = s.Tags[k]
	}
	return out
}

// mayChain says why not, or nothing. The target's trust policy must name the
// caller's role or session; where it names the account alone, the role itself
// must be allowed to. What narrows the session must allow it in any case. The
// source identity and transitive tags go on, and need their own actions.
func (s session) mayChain(own, target role, call *assumeRoleCall) string {
	account := own.arn.account
	named := []string{own.text, s.ARN}
	all := append(named, account, "arn:"+own.arn.partition+":iam::"+account+":root")
	ctx := conditionContext{}
	ctx.add("sts:RoleSessionName", call.sessionName)
	ctx.add("aws:PrincipalArn", own.text)
	ctx.add("aws:PrincipalAccount", account)
	if call.externalID != "" {
		ctx.add("sts:ExternalId", call.externalID)
	}
	if s.SourceIdentity != "" {
		ctx.add("aws:SourceIdentity", s.SourceIdentity)
	}
	for k, v := range s.Tags {
		ctx.add("aws:PrincipalTag/"+k, v)
	}
	actions := []string{"sts:AssumeRole"}
	if s.SourceIdentity != "" {
		actions = append(actions, "sts:SetSourceIdentity")
	}
	if len(s.transitive) > 0 {
		actions = append(actions, "sts:TagSession")
	}
	for _, a := range actions {
		if !target.policy.allows(question{kind: "AWS", principals: all, action: a, context: ctx}) {
			return "the trust policy of " + target.text + " does not allow " + a
		}
		directly := target.policy.allows(question{kind: "AWS", principals: named, action: a, context: ctx})
		if !directly && !slices.Contains(own.mayAssume, target.text) {
			return own.text + " has no permission of its own, and is not named"
		}
		for _, p := range s.policies {
			if !sessionPolicyAllows(p, a, target.text) {
				return "a session policy does not allow " + a
			}
		}
	}
	return ""
}

// sessionPolicyAllows evaluates the statements of a session policy that have
// Effect, Action and Resource alone. Of one with more it hears a Deny as if it
// held, an Allow not at all; and it does not know what a managed policy allows.
func sessionPolicyAllows(text, action, resource string) bool {
	o, err := sandbox.ParseObject([]byte(text))
	list, ok := o["Statement"].([]any)
	if !ok {
		list = []any{o["Statement"]}
	}
	allowed := false
	for _, v := range list {
		st, isObject := v.(map[string]any)
		if err != nil || !isObject {
			return false
		}
		simple := only(st, "Sid", "Effect", "Action", "Resource") == nil
		actions, err1 := textList(st["Action"])
		resources, err2 := textList(st["Resource"])
		matches := simple && err1 == nil && err2 == nil &&
			slices.ContainsFunc(actions, func(a string) bool { return glob(strings.ToLower(a), strings.ToLower(action)) }) &&
			slices.ContainsFunc(resources, func(r string) bool { return glob(r, resource) })
		switch {
		case st["Effect"] == "Allow":
			allowed = allowed || matches
		case matches || !simple || err1 != nil || err2 != nil:
			return false
		}
	}
	return allowed
}

type assumeRoleResponse struct {
	XMLName   xml.Name         `xml:"AssumeRoleResponse"`
	Namespace string           `xml:"xmlns,attr"`
	Result    assumeRoleResult `xml:"AssumeRoleResult"`
	RequestID string           `xml:"ResponseMetadata>RequestId"`
}

type assumeRoleResult struct {
	Arn             string `xml:"AssumedRoleUser>Arn"`
	AssumedRoleID   string `xml:"AssumedRoleUser>AssumedRoleId"`
	AccessKeyID     string `xml:"Credentials>AccessKeyId"`
	SecretAccessKey string `xml:"Credentials>SecretAccessKey"`
	SessionToken    string `xml:"Credentials>SessionToken"`
	Expiration      string `xml:"Credentials>Expiration"`
	SourceIdentity  string `xml:"SourceIdentity,omitempty"`
	Packed          int    `xml:"PackedPolicySize,omitempty"`
}
