package aws

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/credence-id/credence/exchangers"
)

const maxChained = time.Hour

// AssumeRole says which role to go on to, by role chaining.
type AssumeRole struct {
	// ARN of the second role, of this account or another. Its trust policy must
	// let the first do sts:AssumeRole and, as Roles Anywhere sets a source
	// identity, sts:SetSourceIdentity.
	Role string `yaml:"role" json:"role"`
	// The one that the trust policy asks for; the default is none.
	ExternalID string `yaml:"external_id,omitempty" json:"external_id,omitempty"`
	// 2 to 64 letters, digits and _+=,.@-; the default is made of the SPIFFE
	// ID's path.
	SessionName string `yaml:"session_name,omitempty" json:"session_name,omitempty"`
	// 15m to 1h, AWS's limit for chained sessions, which is the default.
	Duration exchangers.Duration `yaml:"duration,omitempty" json:"duration,omitzero"`
	// An IAM policy in JSON, at most 2048 characters, that narrows the session.
	SessionPolicy string `yaml:"session_policy,omitempty" json:"session_policy,omitempty"`
	// ARNs of managed policies that narrow the session, at most 10.
	SessionPolicyARNs []string `yaml:"session_policy_arns,omitempty" json:"session_policy_arns,omitempty"`
	// URL of STS; the default is the Target's endpoint where that is set and
	// not AWS's own Roles Anywhere, or the region's.
	Endpoint string `yaml:"endpoint,omitempty" json:"endpoint,omitempty"`
}

var externalID = regexp.MustCompile(`^[\w+=,.@:/-]{2,}$`)

func (c *AssumeRole) check(region string) error {
	if c == nil {
		return nil
	}
	role, err := parseRole(c.Role)
	switch {
	case err != nil:
		return fmt.Errorf("assume_role.%w", err)
	case role.partition != partitionOf(region):
		return fmt.Errorf("assume_role.role: it must be of the first role's partition (%s)", partitionOf(region))
	case c.ExternalID != "" && (len(c.ExternalID) > 1224 || !externalID.MatchString(c.ExternalID)):
		return errors.New("assume_role.external_id: it must be 2 to 1224 letters, digits and _+=,.@:/-")
	case c.SessionName != "" && !sessionName.MatchString(c.SessionName):
		return fmt.Errorf("assume_role.session_name %q: it must be 2 to 64 letters, digits and _+=,.@-", exchangers.Clean(c.SessionName))
	}
	if err := c.Duration.CheckRange("assume_role.duration", minSession, maxChained); err != nil {
		return err
	}
	if err := checkPolicies("assume_role.", c.SessionPolicy, c.SessionPolicyARNs, role.partition); err != nil {
		return err
	}
	if err := exchangers.CheckEndpoint("assume_role.endpoint", c.Endpoint); err != nil {
		return err
	}
	return checkHost("assume_role.endpoint", c.Endpoint, "sts", region)
}

// chained goes on from a first session to another role's.
type chained struct {
	first    exchangers.Exchanger
	cfg      Config
	c        AssumeRole
	region   string
	endpoint string // empty: the region's
}

// chain is first itself where there is no second role.
func chain(cfg Config, first exchangers.Exchanger, c *AssumeRole, region string) exchangers.Exchanger {
	if c == nil {
		return first
	}
	x := &chained{first: first, cfg: cfg, c: *c, region: region, endpoint: c.Endpoint}
	// Who sends credentials elsewhere does not mean half of them to go to AWS.
	if x.endpoint == "" && checkHost("endpoint", cfg.Endpoint, "sts", region) == nil {
		x.endpoint = cfg.Endpoint
	}
	return x
}

// Exchange makes the first session and goes on. The first is kept nowhere.
func (x *chained) Exchange(ctx context.Context, svids exchangers.SVIDs) (exchangers.Credential, error) {
	first, err := x.first.Exchange(ctx, svids)
	if err != nil {
		return exchangers.Credential{}, err
	}
	keys := first.AWS
	client := stsClient(x.cfg, x.endpoint, x.region, sdk.CredentialsProviderFunc(func(context.Context) (sdk.Credentials, error) {
		return sdk.Credentials{AccessKeyID: keys.AccessKeyID, SecretAccessKey: keys.SecretAccessKey.Reveal(), SessionToken: keys.SessionToken.Reveal()}, nil
	}))
	in := &sts.AssumeRoleInput{RoleArn: &x.c.Role, RoleSessionName: &x.c.SessionName}
	if x.c.SessionName == "" {
		in.RoleSessionName = sdk.String(defaultSessionName(svids.ID()))
	}
	if x.c.ExternalID != "" {
		in.ExternalId = &x.c.ExternalID
	}
	if x.c.Duration != 0 {
		in.DurationSeconds = sdk.Int32(int32(time.Duration(x.c.Duration) / time.Second))
	}
	in.Policy, in.PolicyArns = policies(x.c.SessionPolicy, x.c.SessionPolicyARNs)
	out, err := client.AssumeRole(ctx, in)
	if err != nil {
		return exchangers.Credential{}, stsRefusal(err, assumeRoleHints, keys.SecretAccessKey, keys.SessionToken)
	}
	return stsCredential(x.cfg.Now(), x.region, out.Credentials, out.AssumedRoleUser, out.ResultMetadata)
}

// revoked adds to advice about the first role what the second needs.
func (c *AssumeRole) revoked(advice exchangers.Advice, now time.Time) exchangers.Advice {
	if c == nil {
		return advice
	}
	advice.Until = advice.Until.Add(maxChained)
	advice.Sessions += fmt.Sprintf("; each makes sessions of %s, which live on for at most 1h", c.Role)
	deny := putPolicy(c.Role, now, map[string]map[string][]string{})
	deny.Does = "sessions of the second role that were made before the time in it may do nothing more, other callers' among them: their agents get new ones"
	deny.Limits = []string{
		"shut the first role's sessions out before: what they make in between is not denied by it",
		fmt.Sprintf("take it away again after %s", stamp(advice.Until)),
	}
	advice.Remedies = append(advice.Remedies, deny)
	return advice
}
