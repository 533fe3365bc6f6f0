package aws

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
)

// RolesAnywhere is the endpoint of Roles Anywhere: POST /sessions.
func (c *Cloud) RolesAnywhere() http.Handler {
	return c.AnywhereFaults.Wrap(sandbox.Serve("rolesanywhere", c.cfg.Now, c.cfg.Log, func(w http.ResponseWriter, r *http.Request, e *sandbox.Entry) {
		w.Header().Set("X-Amzn-Requestid", e.ID)
		out, err := c.createSession(r, e)
		if err != nil {
			writeAnywhereError(w, asRefusal(err), e)
			return
		}
		writeJSON(w, http.StatusCreated, out)
	}))
}

// anywhereFault writes a bare error status as Roles Anywhere would.
func anywhereFault(w http.ResponseWriter, status int) {
	code := "InternalServerException"
	if status == http.StatusTooManyRequests {
		code = "ThrottlingException"
	}
	writeAnywhereError(w, refuse(status, code, "%s", http.StatusText(status)), &sandbox.Entry{})
}

// createSession answers one call. The signature is checked before anything that
// the request says is looked at, resources before what they permit.
func (c *Cloud) createSession(r *http.Request, e *sandbox.Entry) (*createSessionOutput, error) {
	if r.URL.EscapedPath() != "/sessions" {
		return nil, refuse(http.StatusNotFound, "UnknownOperationException", "no such operation")
	}
	if r.Method != http.MethodPost {
		return nil, refuse(http.StatusMethodNotAllowed, "UnknownOperationException", "method is not allowed")
	}
	now := c.cfg.Now()
	if !c.bucket.take(now) {
		return nil, refuse(http.StatusTooManyRequests, "ThrottlingException", "Rate exceeded")
	}
	body, err := sandbox.ReadBody(r, "application/json")
	if err != nil {
		return nil, invalid("%v", err)
	}
	call, err := c.authenticateX509(r, body, now)
	if err != nil {
		return nil, err
	}
	if err := call.parse(r.URL.RawQuery, body); err != nil {
		return nil, err
	}
	e.Fields = call.fields()
	return c.answer(call, now)
}

func (c *Cloud) answer(call *anywhereCall, now time.Time) (*createSessionOutput, error) {
	anchor, profile, role, err := c.resources(call)
	if err != nil {
		return nil, err
	}
	if err := call.checkCertificates(anchor, now); err != nil {
		return nil, err
	}
	g, err := call.grant(profile, role)
	if err != nil {
		return nil, err
	}
	if !anywhereAllowed(role, call, g) {
		return nil, unable(role.text, "").because("trust policy")
	}
	s, err := c.issue(g, now)
	if err != nil {
		return nil, err
	}
	return call.output(s, g, packed(g.tags, profile.SessionPolicy)), nil
}

// resources looks up what the call names. All three must stand in one account
// and region before any of them is said to exist or not.
func (c *Cloud) resources(call *anywhereCall) (anchor, profile, role, error) {
	a, okA := get(c, c.anchors, call.anchorARN)
	p, okP := get(c, c.profiles, call.profileARN)
	r, okR := get(c, c.roles, call.roleARN)
	var err *refusal
	switch {
	case !call.oneHome(c.cfg.Region):
		err = denied("Trust anchor, profile and role must be in the account and region of the request")
	case !okA:
		err = refuse(http.StatusNotFound, "ResourceNotFoundException", "Trust anchor not found")
	case !okP:
		err = refuse(http.StatusNotFound, "ResourceNotFoundException", "Profile not found")
	case !a.enabled:
		err = denied("Trust anchor is disabled")
	case !p.Enabled:
		err = denied("Profile is disabled")
	case !p.lists(call.roleARN):
		err = denied("Role is not in the profile")
	case !okR:
		err = unable(call.roleARN, "").because("no such role")
	default:
		return a, p, r, nil
	}
	return a, p, r, err
}

// anywhereAllowed puts the three actions that Roles Anywhere needs to the role's
// trust policy.
func anywhereAllowed(r role, call *anywhereCall, g grant) bool {
	ctx := conditionContext{}
	ctx.add("aws:SourceArn", call.anchorARN)
	ctx.add("aws:SourceAccount", call.anchor.account)
	ctx.add("sts:SourceIdentity", g.sourceIdentity)
	for k, v := range g.tags {
		ctx.add("aws:PrincipalTag/"+k, v)
	}
	for _, action := range []string{"sts:AssumeRole", "sts:TagSession", "sts:SetSourceIdentity"} {
		if !r.policy.allows(question{"Service", []string{"rolesanywhere.amazonaws.com"}, action, ctx}) {
			return false
		}
	}
	return true
}

func unable(roleARN, why string) *refusal {
	if why != "" {
		why = " " + why
	}
	return denied("Unable to assume role for %s.%s", roleARN, why)
}

func asRefusal(err error) *refusal {
	var r *refusal
	if errors.As(err, &r) {
		return r
	}
	return refuse(http.StatusInternalServerError, "InternalFailure", "internal failure").because("%v", err)
}

func writeAnywhereError(w http.ResponseWriter, err *refusal, e *sandbox.Entry) {
	e.Code, e.Reason = err.code, err.reason
	if e.Reason == "" {
		e.Reason = err.message
	}
	w.Header().Set("X-Amzn-Errortype", err.code)
	if err.status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", http.MethodPost)
	}
	writeJSON(w, err.status, map[string]string{"message": err.message})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("encoding %T: %v", v, err)) // our own types always encode
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(b)
}

type createSessionOutput struct {
	CredentialSet []credentialSet `json:"credentialSet"`
	SubjectArn    string          `json:"subjectArn"`
}

type credentialSet struct {
	AssumedRoleUser  assumedRoleUser `json:"assumedRoleUser"`
	Credentials      credentials     `json:"credentials"`
	PackedPolicySize int             `json:"packedPolicySize"`
	RoleArn          string          `json:"roleArn"`
	SourceIdentity   string          `json:"sourceIdentity"`
}

type assumedRoleUser struct {
	Arn           string `json:"arn"`
	AssumedRoleID string `json:"assumedRoleId"`
}

type credentials struct {
	AccessKeyID     string `json:"accessKeyId"`
	SecretAccessKey string `json:"secretAccessKey"`
	SessionToken    string `json:"sessionToken"`
	Expiration      string `json:"expiration"`
}
