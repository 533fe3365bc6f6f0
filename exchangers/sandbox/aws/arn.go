package aws

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

var errARN = errors.New("not a well-formed ARN of its kind")

var (
	accountPattern = regexp.MustCompile(`^[0-9]{12}$`)
	regionPattern  = regexp.MustCompile(`^[a-z]{2,3}(-[a-z]+)+-[0-9]{1,2}$`)
	uuidPattern    = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
	rolePattern    = regexp.MustCompile(`^role/([!-.0-~]+/)*[\w+=,.@-]{1,64}$`)
)

// An arn is arn:partition:service:region:account:resource.
type arn struct {
	partition, service, region, account, resource string
}

func splitARN(s string) (arn, error) {
	part := strings.SplitN(s, ":", 6)
	if len(part) != 6 || part[0] != "arn" || len(s) > 2048 {
		return arn{}, fmt.Errorf("%w: %q", errARN, s)
	}
	return arn{part[1], part[2], part[3], part[4], part[5]}, nil
}

// parseAnywhereARN parses the ARN of a Roles Anywhere resource, kind being
// trust-anchor or profile.
func parseAnywhereARN(s, kind string) (arn, error) {
	a, err := splitARN(s)
	if err != nil {
		return a, err
	}
	id, ok := strings.CutPrefix(a.resource, kind+"/")
	if !ok || !uuidPattern.MatchString(id) || a.service != "rolesanywhere" || a.partition != partitionOf(a.region) ||
		!regionPattern.MatchString(a.region) || !accountPattern.MatchString(a.account) {
		return a, fmt.Errorf("%w: %q is no %s", errARN, s, kind)
	}
	return a, nil
}

func parseRoleARN(s string) (arn, error) {
	a, err := splitARN(s)
	if err != nil {
		return a, err
	}
	if a.service != "iam" || a.region != "" || !accountPattern.MatchString(a.account) ||
		!strings.HasPrefix(a.partition, "aws") || !rolePattern.MatchString(a.resource) {
		return a, fmt.Errorf("%w: %q is no role", errARN, s)
	}
	return a, nil
}

// roleName is the last part of a role's resource: session ARNs drop the path.
func (a arn) roleName() string {
	return a.resource[strings.LastIndex(a.resource, "/")+1:]
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
