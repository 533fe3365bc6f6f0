package aws

import (
	"fmt"
	"strings"
	"time"

	"github.com/credence-id/credence/exchangers"
)

func nameOf(role string) string { return role[strings.LastIndexByte(role, '/')+1:] }

// pathOf is a role's path, from / to /.
func pathOf(role string) string {
	a, _ := splitARN(role)
	path := strings.TrimPrefix(a.resource, "role")
	return path[:strings.LastIndexByte(path, '/')+1]
}

func seconds(d, otherwise time.Duration) int {
	if d == 0 {
		d = otherwise
	}
	return int(d / time.Second)
}

// known is an ARN that is there; one of zeros is not.
func known(arn string) string {
	if strings.HasSuffix(arn, "/"+unset) {
		return ""
	}
	return arn
}

// find sets a variable to the ARN of what has a name, or is that of the Target.
// Text output is made page by page, so it is not asked for.
func find(variable, command, list, kind, name, target string) string {
	query := fmt.Sprintf("%s[?name=='%s' || %s=='%s'].%s | [0]", list, name, kind+"Arn", target, kind+"Arn")
	return variable + "=$(" + exchangers.Shell("aws", "rolesanywhere", command, "--query", query, "--output", "json") + ` | tr -d '"')`
}

// anchor is the trust anchor. One is enough for a trust domain, but each Target
// has its own: it is removed with it.
func (p *plan) anchor(f exchangers.Facts, trust exchangers.Trust, target string) {
	name := "credence-" + strings.ReplaceAll(f.Target.Name, ".", "_")
	text := exchangers.PEM(trust.Anchors...)
	p.add(exchangers.Made{
		Type: anchorType, Label: f.Target.Label(), ID: known(target),
		Values: exchangers.Fields{
			{Name: "name", Value: name}, {Name: "enabled", Value: true},
			{Name: "source", Value: exchangers.Blocks{{
				{Name: "source_type", Value: "CERTIFICATE_BUNDLE"},
				{Name: "source_data", Value: exchangers.Blocks{{{Name: "x509_certificate_data", Value: text}}}},
			}}},
		},
		Script: []string{
			exchangers.ShellFile("anchor.json", exchangers.Fields{
				{Name: "sourceType", Value: "CERTIFICATE_BUNDLE"},
				{Name: "sourceData", Value: exchangers.Fields{{Name: "x509CertificateData", Value: text}}},
			}),
			find("trust_anchor", "list-trust-anchors", "trustAnchors", "trustAnchor", name, target),
			`if [ "$trust_anchor" = null ]; then`,
			"  trust_anchor=$(" + exchangers.Shell("aws", "rolesanywhere", "create-trust-anchor", "--name", name, "--enabled",
				"--source", exchangers.FileWord("file://", "anchor.json"), "--query", "trustAnchor.trustAnchorArn", "--output", "text") + ")",
			"else",
			"  " + exchangers.Shell("aws", "rolesanywhere", "update-trust-anchor", "--trust-anchor-id", exchangers.Word(`"${trust_anchor##*/}"`),
				"--source", exchangers.FileWord("file://", "anchor.json")) + " > /dev/null",
			"fi",
		},
	})
}

func (p *plan) profile(f exchangers.Facts, s RolesAnywhere, role exchangers.Ref) {
	name, life := "credence-"+strings.ReplaceAll(f.Target.Name, ".", "_"), seconds(time.Duration(s.Duration), time.Hour)
	own := "--no-accept-role-session-name"
	if s.SessionName != "" {
		own = "--accept-role-session-name"
	}
	p.add(exchangers.Made{
		Type: profileType, Label: f.Target.Label(), ID: known(s.Profile),
		Values: exchangers.Fields{
			{Name: "name", Value: name}, {Name: "enabled", Value: true}, {Name: "role_arns", Value: exchangers.List(role)},
			{Name: "duration_seconds", Value: life}, {Name: "accept_role_session_name", Value: s.SessionName != ""},
		},
		Script: []string{
			find("profile", "list-profiles", "profiles", "profile", name, s.Profile),
			`if [ "$profile" = null ]; then`,
			"  profile=$(" + exchangers.Shell("aws", "rolesanywhere", "create-profile", "--name", name, "--enabled", "--role-arns", role,
				"--duration-seconds", life, own, "--query", "profile.profileArn", "--output", "text") + ")",
			"else",
			"  " + exchangers.Shell("aws", "rolesanywhere", "update-profile", "--profile-id", exchangers.Word(`"${profile##*/}"`), "--role-arns", role,
				"--duration-seconds", life, own) + " > /dev/null",
			"fi",
		},
	})
}

// role is one with a trust policy. account is empty where it is the plan's.
func (p *plan) role(label, arn string, life time.Duration, account string, statements []any) exchangers.Ref {
	name, path, most := nameOf(arn), pathOf(arn), max(3600, seconds(life, 0))
	policy := exchangers.Fields{{Name: "Version", Value: "2012-10-17"}, {Name: "Statement", Value: statements}}
	if text, err := policy.MarshalJSON(); err == nil && len(text) > maxPolicy {
		p.Notes = append(p.Notes, fmt.Sprintf("the trust policy of role %s has about %d characters: IAM takes %d unless the quota for it is raised (8192 at most)", name, len(text), maxPolicy))
	}
	aws, file := exchangers.Word("aws"), "trust-"+label+".json"
	if account != "" {
		aws = "second"
	}
	p.add(exchangers.Made{
		Type: roleType, Label: label, ID: arn, Account: account,
		Values: exchangers.Fields{
			{Name: "name", Value: name}, {Name: "path", Value: path}, {Name: "max_session_duration", Value: most},
			{Name: "assume_role_policy", Value: exchangers.Document{Value: policy}},
		},
		Script: []string{
			exchangers.ShellFile(file, policy),
			"if " + exchangers.Shell(aws, "iam", "get-role", "--role-name", name) + " > /dev/null 2>&1; then",
			"  " + exchangers.Shell(aws, "iam", "update-assume-role-policy", "--role-name", name, "--policy-document", exchangers.FileWord("file://", file)),
			"  " + exchangers.Shell(aws, "iam", "update-role", "--role-name", name, "--max-session-duration", most),
			"else",
			"  " + exchangers.Shell(aws, "iam", "create-role", "--role-name", name, "--path", path, "--max-session-duration", most,
				"--assume-role-policy-document", exchangers.FileWord("file://", file)) + " > /dev/null",
			"  " + exchangers.Shell(aws, "iam", "wait", "role-exists", "--role-name", name),
			"fi",
		},
	})
	return exchangers.Ref{Type: roleType, Label: label, Attr: "arn", Known: arn}
}

// second is the role of assume_role: it trusts the first, which may assume it.
func (p *plan) second(label string, c *AssumeRole, first exchangers.Ref, firstARN string, actions ...any) {
	var equals clause
	if c.ExternalID != "" {
		equals.equals = exchangers.Fields{{Name: "sts:ExternalId", Value: c.ExternalID}}
	}
	account := ""
	if a, _ := splitARN(c.Role); a.account != p.account {
		account = a.account
		p.Guard = append(p.Guard,
			`second() { aws --profile "${SECOND_PROFILE:?it must name a profile of account `+account+`}" "$@"; }`,
			`account=$(second sts get-caller-identity --query Account --output text)`,
			`[ "$account" = `+account+` ] || { echo "SECOND_PROFILE is of account $account, not `+account+`" >&2; exit 1; }`)
		p.Notes = append(p.Notes, fmt.Sprintf("role %s is of account %s: Terraform's provider aws.second and the script's SECOND_PROFILE need credentials there", nameOf(c.Role), account))
	}
	second := p.role(label+"_second", c.Role, time.Duration(c.Duration), account, []any{allow("AWS", first, equals, actions...)})
	may := exchangers.Fields{{Name: "Version", Value: "2012-10-17"}, {Name: "Statement", Value: []any{exchangers.Fields{
		{Name: "Effect", Value: "Allow"}, {Name: "Action", Value: actions}, {Name: "Resource", Value: second},
	}}}}
	file := "permit-" + label + ".json"
	p.add(exchangers.Made{
		Type: rolePolicyType, Label: label,
		Values: exchangers.Fields{
			{Name: "name", Value: "credence-assume-role"},
			{Name: "role", Value: exchangers.Ref{Type: roleType, Label: label, Attr: "name", Known: nameOf(firstARN)}},
			{Name: "policy", Value: exchangers.Document{Value: may}},
		},
		Script: []string{
			exchangers.ShellFile(file, may),
			exchangers.Shell("aws", "iam", "put-role-policy", "--role-name", nameOf(firstARN), "--policy-name", "credence-assume-role",
				"--policy-document", exchangers.FileWord("file://", file)),
		},
	})
	p.Notes = append(p.Notes, fmt.Sprintf("role %s may do nothing yet: attach the policies that the workload needs", nameOf(c.Role)))
}

func (p *plan) oidcProvider(f exchangers.Facts, s WebIdentity, provider exchangers.Ref) {
	p.add(exchangers.Made{
		Type: oidcType, Label: f.Target.Label(), ID: provider.Known,
		Values: exchangers.Fields{{Name: "url", Value: f.Issuer}, {Name: "client_id_list", Value: exchangers.List(s.Audience())}},
		Script: []string{
			"if " + exchangers.Shell("aws", "iam", "get-open-id-connect-provider", "--open-id-connect-provider-arn", provider) + " > /dev/null 2>&1; then",
			"  " + exchangers.Shell("aws", "iam", "add-client-id-to-open-id-connect-provider", "--open-id-connect-provider-arn", provider, "--client-id", s.Audience()),
			"else",
			"  " + exchangers.Shell("aws", "iam", "create-open-id-connect-provider", "--url", f.Issuer, "--client-id-list", s.Audience()) + " > /dev/null",
			"fi",
		},
	})
}
