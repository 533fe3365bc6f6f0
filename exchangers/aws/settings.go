package aws

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/credence-id/credence/exchangers"
)

const (
	minSession = 15 * time.Minute
	maxSession = 12 * time.Hour
)

// RolesAnywhere are the settings of aws_roles_anywhere.
type RolesAnywhere struct {
	// ARN of the role to assume. Its trust policy must let
	// rolesanywhere.amazonaws.com do sts:AssumeRole, sts:TagSession and
	// sts:SetSourceIdentity.
	Role string `yaml:"role" json:"role"`
	// ARN of the trust anchor that holds our bundle.
	TrustAnchor string `yaml:"trust_anchor" json:"trust_anchor"`
	// ARN of the profile that lists the role.
	Profile string `yaml:"profile" json:"profile"`
	// The trust anchor's, which is also the default.
	Region string `yaml:"region,omitempty" json:"region,omitempty"`
	// Only for a profile with acceptRoleSessionName. The default, AWS's, is
	// the certificate's serial number.
	SessionName string `yaml:"session_name,omitempty" json:"session_name,omitempty"`
	// 15m to 12h, no more than the role allows; the default, and the most, is
	// the profile's, which alone can have a session policy too.
	Duration exchangers.Duration `yaml:"duration,omitempty" json:"duration,omitzero"`
	// A second role, assumed with the first one's session; its session is the
	// credential.
	AssumeRole *AssumeRole `yaml:"assume_role,omitempty" json:"assume_role,omitempty"`
}

// Audience is empty: the X509-SVID is presented.
func (RolesAnywhere) Audience() string { return "" }

// Validate names the field that AWS would refuse, and what it would take.
func (s RolesAnywhere) Validate() error {
	role, err := parseRole(s.Role)
	if err != nil {
		return err
	}
	anchor, err := parseAnywhere("trust_anchor", s.TrustAnchor, "trust-anchor")
	if err != nil {
		return err
	}
	profile, err := parseAnywhere("profile", s.Profile, "profile")
	if err != nil {
		return err
	}
	switch {
	case profile.region != anchor.region || profile.account != anchor.account:
		return fmt.Errorf("profile: it must be of the trust anchor's region and account (%s, %s)", anchor.region, anchor.account)
	case role.partition != anchor.partition:
		return fmt.Errorf("role: it must be of the trust anchor's partition (%s)", anchor.partition)
	case s.Region != "" && s.Region != anchor.region:
		return fmt.Errorf("region %q: it must be the trust anchor's (%s), or left out", s.Region, anchor.region)
	}
	if err := checkSession(s.SessionName, s.Duration); err != nil {
		return err
	}
	return s.AssumeRole.check(anchor.region)
}

// WebIdentity are the settings of aws_web_identity.
type WebIdentity struct {
	// ARN of the role to assume. Its trust policy names the account's OIDC
	// provider for our issuer.
	Role string `yaml:"role" json:"role"`
	// A client ID of that OIDC provider; the default is sts.amazonaws.com.
	TokenAudience string `yaml:"audience,omitempty" json:"audience,omitempty"`
	// Whose STS is asked; the default is the partition's first: us-east-1,
	// cn-north-1 or us-gov-west-1.
	Region string `yaml:"region,omitempty" json:"region,omitempty"`
	// 2 to 64 letters, digits and _+=,.@-; the default is made of the SPIFFE
	// ID's path.
	SessionName string `yaml:"session_name,omitempty" json:"session_name,omitempty"`
	// 15m to 12h, no more than the role allows; the default is 1h.
	Duration exchangers.Duration `yaml:"duration,omitempty" json:"duration,omitzero"`
	// An IAM policy in JSON, at most 2048 characters, that narrows the session.
	SessionPolicy string `yaml:"session_policy,omitempty" json:"session_policy,omitempty"`
	// ARNs of managed policies that narrow the session, at most 10.
	SessionPolicyARNs []string `yaml:"session_policy_arns,omitempty" json:"session_policy_arns,omitempty"`
	// A second role, assumed with the first one's session; its session is the
	// credential.
	AssumeRole *AssumeRole `yaml:"assume_role,omitempty" json:"assume_role,omitempty"`
}

// Limits implements exchangers.Limited.
func (s RolesAnywhere) Limits() exchangers.Limits {
	return exchangers.Limits{Provider: "Roles Anywhere", SPIFFEID: maxTag, WantsRDN: "any"}
}

// Limits implements exchangers.Limited.
func (s WebIdentity) Limits() exchangers.Limits {
	return exchangers.Limits{Provider: "AWS", SPIFFEID: maxWebSubject}
}

// Audience of the JWT-SVID.
func (s WebIdentity) Audience() string {
	if s.TokenAudience != "" {
		return s.TokenAudience
	}
	return "sts.amazonaws.com"
}

// Validate names the field that AWS would refuse, and what it would take.
func (s WebIdentity) Validate() error {
	role, err := parseRole(s.Role)
	if err != nil {
		return err
	}
	if !audience.MatchString(s.Audience()) {
		return errors.New("audience: it must be 1 to 255 printable characters without spaces")
	}
	if s.Region != "" && (!region.MatchString(s.Region) || partitionOf(s.Region) != role.partition) {
		return fmt.Errorf("region %q: it must be one of the role's partition (%s)", s.Region, role.partition)
	}
	if err := checkSession(s.SessionName, s.Duration); err != nil {
		return err
	}
	if err := checkPolicies("", s.SessionPolicy, s.SessionPolicyARNs, role.partition); err != nil {
		return err
	}
	return s.AssumeRole.check(s.region())
}

func (s WebIdentity) region() string {
	if s.Region != "" {
		return s.Region
	}
	switch strings.SplitN(s.Role, ":", 3)[1] {
	case "aws-cn":
		return "cn-north-1"
	case "aws-us-gov":
		return "us-gov-west-1"
	}
	return "us-east-1"
}

func checkSession(name string, d exchangers.Duration) error {
	if name != "" && !sessionName.MatchString(name) {
		return fmt.Errorf("session_name %q: it must be 2 to 64 letters, digits and _+=,.@-", name)
	}
	return d.CheckRange("duration", minSession, maxSession)
}

var (
	account     = regexp.MustCompile(`^[0-9]{12}$`)
	region      = regexp.MustCompile(`^[a-z]{2,4}(-[a-z]{1,20}){1,3}-[0-9]{1,2}$`)
	uuid        = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
	roleName    = regexp.MustCompile(`^role/([!-.0-~]{1,511}/)*[\w+=,.@-]{1,64}$`)
	sessionName = regexp.MustCompile(`^[\w+=,.@-]{2,64}$`)
	audience    = regexp.MustCompile(`^[!-~]{1,255}$`)
)

// arn is arn:partition:service:region:account:resource.
type arn struct{ partition, service, region, account, resource string }

func splitARN(s string) (arn, bool) {
	part := strings.SplitN(s, ":", 6)
	if len(part) != 6 || part[0] != "arn" || len(s) < 20 || len(s) > 2048 {
		return arn{}, false
	}
	a := arn{part[1], part[2], part[3], part[4], part[5]}
	known := a.partition == "aws" || a.partition == "aws-cn" || a.partition == "aws-us-gov"
	return a, known && account.MatchString(a.account)
}

func parseRole(s string) (arn, error) {
	a, ok := splitARN(s)
	if !ok || a.service != "iam" || a.region != "" || !roleName.MatchString(a.resource) {
		return arn{}, fmt.Errorf("role %q: it must be like arn:aws:iam::123456789012:role/NAME", exchangers.Clean(s))
	}
	return a, nil
}

func parseAnywhere(field, s, kind string) (arn, error) {
	a, ok := splitARN(s)
	id, is := strings.CutPrefix(a.resource, kind+"/")
	if !ok || !is || a.service != "rolesanywhere" || !uuid.MatchString(id) || !region.MatchString(a.region) || partitionOf(a.region) != a.partition {
		return arn{}, fmt.Errorf("%s %q: it must be like arn:aws:rolesanywhere:REGION:123456789012:%s/UUID", field, exchangers.Clean(s), kind)
	}
	return a, nil
}

func partitionOf(region string) string {
	switch {
	case strings.HasPrefix(region, "cn-"):
		return "aws-cn"
	case strings.HasPrefix(region, "us-gov-"):
		return "aws-us-gov"
	}
	return "aws"
}

// awsOwned reads an ARN whose account is AWS itself.
func awsOwned(s string) (arn, bool) {
	part := strings.SplitN(s, ":", 6)
	if len(part) != 6 || part[4] != "aws" {
		return arn{}, false
	}
	part[4] = "000000000000"
	return splitARN(strings.Join(part, ":"))
}
