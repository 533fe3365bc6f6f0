package aws

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/credence-id/credence/exchangers"
)

const (
	maxAnchors     = 2
	maxPolicy      = 2048 // characters of a trust policy, unless a quota is raised
	unset          = "00000000-0000-0000-0000-000000000000"
	roleType       = "aws_iam_role"
	anchorType     = "aws_rolesanywhere_trust_anchor"
	profileType    = "aws_rolesanywhere_profile"
	oidcType       = "aws_iam_openid_connect_provider"
	rolePolicyType = "aws_iam_role_policy"
)

var errChoices = errors.New("a managed identity and uploaded keys are for other providers")

// Setup implements exchangers.Planner. A trust anchor or profile whose UUID is
// all zeros is not there yet.
func (s RolesAnywhere) Setup(f exchangers.Facts, c exchangers.Choices) (exchangers.Plan, error) {
	if c != (exchangers.Choices{}) {
		return exchangers.Plan{}, errChoices
	}
	parties, err := f.Listed()
	if err != nil {
		return exchangers.Plan{}, err
	}
	trust, err := f.Trusted(maxAnchors)
	if err != nil {
		return exchangers.Plan{}, err
	}
	where, err := parseAnywhere("trust_anchor", s.TrustAnchor, "trust-anchor")
	if err != nil {
		return exchangers.Plan{}, err
	}
	p := newPlan(f, where.region, where)
	p.Notes = append(p.Notes, trust.Notes...)
	label := f.Target.Label()
	anchor := exchangers.Ref{Type: anchorType, Label: label, Attr: "arn", Var: "trust_anchor"}
	profile := exchangers.Ref{Type: profileType, Label: label, Attr: "arn", Var: "profile"}
	statements, err := s.trustPolicy(parties, trust, anchor)
	if err != nil {
		return exchangers.Plan{}, err
	}
	p.anchor(f, trust, s.TrustAnchor)
	role := p.role(label, s.Role, time.Duration(s.Duration), "", statements)
	p.profile(f, s, role)
	if s.AssumeRole != nil {
		p.second(label, s.AssumeRole, role, s.Role, "sts:AssumeRole", "sts:SetSourceIdentity")
	}
	for _, party := range parties {
		if party.Subject == "" {
			p.Notes = append(p.Notes, fmt.Sprintf("Identity %s has no x509.subject, and Roles Anywhere takes no certificate without one: give it subject: \"CN=%s\"", party.Identity, party.Identity))
		}
	}
	p.Apply, err = f.Target.Document(map[string]any{"trust_anchor": anchor, "profile": profile})
	return p.finished(s.Role, parties), err
}

// Setup implements exchangers.Planner.
func (s WebIdentity) Setup(f exchangers.Facts, c exchangers.Choices) (exchangers.Plan, error) {
	if c != (exchangers.Choices{}) {
		return exchangers.Plan{}, errChoices
	}
	parties, err := f.Listed()
	if err == nil {
		err = f.Issues()
	}
	if err != nil {
		return exchangers.Plan{}, err
	}
	where, err := parseRole(s.Role)
	if err != nil {
		return exchangers.Plan{}, err
	}
	p := newPlan(f, s.region(), where)
	label, host := f.Target.Label(), strings.TrimPrefix(f.Issuer, "https://")
	provider := exchangers.Ref{Type: oidcType, Label: label, Attr: "arn", Known: fmt.Sprintf("arn:%s:iam::%s:oidc-provider/%s", where.partition, where.account, host)}
	p.oidcProvider(f, s, provider)
	var statements []any
	for _, c := range subjects(parties, host+":sub") {
		c.equals = append(c.equals, exchangers.Field{Name: host + ":aud", Value: s.Audience()})
		statements = append(statements, allow("Federated", provider, c, "sts:AssumeRoleWithWebIdentity"))
	}
	role := p.role(label, s.Role, time.Duration(s.Duration), "", statements)
	if s.AssumeRole != nil {
		p.second(label, s.AssumeRole, role, s.Role, "sts:AssumeRole")
	}
	p.Notes = append(p.Notes, f.ReachNote("AWS"))
	if strings.Contains(strings.SplitN(host, "/", 2)[0], ":") {
		p.Notes = append(p.Notes, fmt.Sprintf("issuer %s has a port: IAM wants none", f.Issuer))
	}
	p.Notes = append(p.Notes, fmt.Sprintf("an account has one OIDC provider for an issuer: where it is there for another Target already, terraform import %s.%s %s. Thumbprints are for a certificate of a private CA alone", oidcType, label, provider.Known))
	return p.finished(s.Role, parties), nil
}

// A plan is one of AWS.
type plan struct {
	exchangers.Plan
	region, account string
}

func newPlan(f exchangers.Facts, region string, where arn) *plan {
	p := &plan{region: region, account: where.account}
	p.Target, p.Flow = f.Target.Name, f.Target.Flow
	p.Cloud = exchangers.Cloud{Name: "aws", Partition: where.partition, Account: where.account, Region: region}
	p.Provider = exchangers.Provider{Name: "aws", Source: "hashicorp/aws", Version: ">= 5.60", Config: exchangers.Fields{
		{Name: "region", Value: region}, {Name: "allowed_account_ids", Value: exchangers.List(where.account)},
	}}
	p.Guard = []string{
		exchangers.Shell("export", "AWS_REGION="+region), "export AWS_PAGER=",
		`account=$(aws sts get-caller-identity --query Account --output text)`,
		`[ "$account" = ` + where.account + ` ] || { echo "these credentials are of account $account, not ` + where.account + `" >&2; exit 1; }`,
	}
	return p
}

func (p *plan) finished(role string, parties []exchangers.Party) exchangers.Plan {
	for _, party := range parties {
		if !party.Exact() {
			p.Notes = append(p.Notes, party.TemplateNote())
		}
	}
	p.Notes = append(p.Notes, fmt.Sprintf("role %s may do nothing yet: attach the policies that the workload needs", nameOf(role)))
	return p.Plan
}

func (p *plan) add(m exchangers.Made) { p.Resources = append(p.Resources, m) }

// A clause is one statement's conditions.
type clause struct{ equals, like, unlike exchangers.Fields }

// fields are the condition of a statement.
func (c clause) fields(more ...exchangers.Field) exchangers.Fields {
	var out exchangers.Fields
	for _, op := range []exchangers.Field{{Name: "StringEquals", Value: c.equals}, {Name: "StringLike", Value: c.like}, {Name: "StringNotLike", Value: c.unlike}} {
		if keys := op.Value.(exchangers.Fields); len(keys) > 0 {
			out = append(out, op)
		}
	}
	return append(out, more...)
}

// subjects are the clauses under which key names one of the parties: all exact
// IDs in one, a template in one of its own. A star of IAM's goes beyond a
// segment, so the number of segments is held too.
func subjects(parties []exchangers.Party, key string) (all []clause) {
	var exact []any
	for _, p := range parties {
		if p.Exact() {
			exact = append(exact, p.SPIFFEID)
			continue
		}
		like, unlike := p.Globs()
		c := clause{like: exchangers.Fields{{Name: key, Value: like}}}
		if unlike != "" {
			c.unlike = exchangers.Fields{{Name: key, Value: unlike}}
		}
		all = append(all, c)
	}
	switch len(exact) {
	case 0:
		return all
	case 1:
		return append([]clause{{equals: exchangers.Fields{{Name: key, Value: exact[0]}}}}, all...)
	}
	return append([]clause{{equals: exchangers.Fields{{Name: key, Value: exact}}}}, all...)
}

// allow is a statement of a trust policy.
func allow(kind string, principal any, c clause, actions ...any) exchangers.Fields {
	return allowIf(kind, principal, c.fields(), actions...)
}

func allowIf(kind string, principal any, condition exchangers.Fields, actions ...any) exchangers.Fields {
	statement := exchangers.Fields{
		{Name: "Effect", Value: "Allow"},
		{Name: "Principal", Value: exchangers.Fields{{Name: kind, Value: principal}}},
		{Name: "Action", Value: actions},
	}
	if len(condition) > 0 {
		statement = append(statement, exchangers.Field{Name: "Condition", Value: condition})
	}
	return statement
}

// trustPolicy pins the role to the parties and the anchor and, under a root
// that is shared, to the issuer.
func (s RolesAnywhere) trustPolicy(parties []exchangers.Party, trust exchangers.Trust, anchor exchangers.Ref) ([]any, error) {
	for _, p := range parties {
		if p.Exact() && len(p.SPIFFEID) > maxTag {
			return nil, fmt.Errorf("identity %s: %s has %d bytes, and Roles Anywhere maps no more than %d into a session tag: no policy can name it", p.Identity, p.SPIFFEID, len(p.SPIFFEID), maxTag)
		}
	}
	issuer, err := issuerTags(trust)
	if err != nil {
		return nil, err
	}
	var statements []any
	for _, c := range subjects(parties, "aws:PrincipalTag/x509SAN/URI") {
		c.equals = append(c.equals, issuer...)
		source := exchangers.Field{Name: "ArnEquals", Value: exchangers.Fields{{Name: "aws:SourceArn", Value: anchor}}}
		statements = append(statements, allowIf("Service", "rolesanywhere.amazonaws.com", c.fields(source), "sts:AssumeRole", "sts:TagSession", "sts:SetSourceIdentity"))
	}
	return statements, nil
}

// issuerTags are the names of the issuer that stay when it is renewed.
func issuerTags(trust exchangers.Trust) (tags exchangers.Fields, err error) {
	if trust.Issuer == nil {
		return nil, nil
	}
	names := trust.Issuer.Subject
	for _, n := range []struct {
		tag    string
		values []string
	}{{"CN", []string{names.CommonName}}, {"O", names.Organization}, {"OU", names.OrganizationalUnit}, {"C", names.Country}, {"ST", names.Province}, {"L", names.Locality}} {
		if value := strings.Join(n.values, "/"); value != "" { // as Roles Anywhere joins them
			tags = append(tags, exchangers.Field{Name: "aws:PrincipalTag/x509Issuer/" + n.tag, Value: value})
		}
	}
	if len(tags) == 0 || names.CommonName == "" {
		return nil, errors.New("the root signs for others too, and our issuing CA has no common name to tell it by: take anchor: ours in broker.yaml")
	}
	return tags, nil
}
