package awsiam

import (
	"errors"
	"fmt"
	"mime"
	"regexp"

	"github.com/credence-id/credence/broker/join/bearer"
)

// maxAnswer bounds what STS answers; it needs less than 500 bytes.
const maxAnswer = 8 << 10

const namePattern = `[\w+=,.@-]`

var (
	partitions = `arn:(aws|aws-cn|aws-us-gov|aws-iso|aws-iso-b|aws-iso-e|aws-iso-f|aws-eusc)`
	userARN    = regexp.MustCompile(`^` + partitions + `:iam::([0-9]{12}):user/(?:[!-.0-~]+/)*(` + namePattern + `{1,64})$`)
	roleARN    = regexp.MustCompile(`^` + partitions + `:sts::([0-9]{12}):assumed-role/(` + namePattern + `{1,64})/(` + namePattern + `{2,64})$`)
	userID     = regexp.MustCompile(`^AIDA[A-Z0-9]{12,124}$`)
	roleID     = regexp.MustCompile(`^AROA[A-Z0-9]{12,124}:`)
	instanceID = regexp.MustCompile(`^i-([0-9a-f]{8}|[0-9a-f]{17})$`)
)

// A caller is whom STS knows a signature by: a user, or a session of a role.
type caller struct {
	account, arn, userID, partition string
	user                            string
	role, session                   string
}

// instance is the instance of EC2 that a session is named after, or empty.
func (c *caller) instance() string {
	if instanceID.MatchString(c.session) {
		return c.session
	}
	return ""
}

// readAnswer reads what STS answers to GetCallerIdentity, in JSON.
func readAnswer(kind string, text []byte) (caller, error) {
	if media, _, err := mime.ParseMediaType(kind); err != nil || media != "application/json" {
		return caller{}, fmt.Errorf("it answers in %.80q", kind)
	}
	if len(text) > maxAnswer {
		return caller{}, fmt.Errorf("it answers more than %d bytes", maxAnswer)
	}
	all, err := bearer.Object(text)
	if err != nil {
		return caller{}, err
	}
	response, _ := all["GetCallerIdentityResponse"].(map[string]any)
	result, _ := response["GetCallerIdentityResult"].(map[string]any)
	var c caller
	for name, field := range map[string]*string{"Account": &c.account, "Arn": &c.arn, "UserId": &c.userID} {
		var ok bool
		if *field, ok = result[name].(string); !ok {
			return caller{}, fmt.Errorf("its answer has no %s", name)
		}
	}
	if len(all) != 1 || len(result) != 3 {
		return caller{}, errors.New("its answer holds more than a caller's identity")
	}
	return c, nil
}

// read takes the ARN apart, of the kinds that a machine may be, and holds its
// parts against the rest.
func (c *caller) read() error {
	if m := roleARN.FindStringSubmatch(c.arn); m != nil {
		c.partition, c.role, c.session = m[1], m[3], m[4]
		id := roleID.FindString(c.userID)
		if m[2] != c.account || id == "" || c.userID[len(id):] != c.session {
			return errors.New("what STS says of the role's session does not fit together")
		}
		return nil
	}
	m := userARN.FindStringSubmatch(c.arn)
	if m == nil {
		return fmt.Errorf("%.200q is no user and no session of a role: root users and federated users are no machine's", c.arn)
	}
	c.partition, c.user = m[1], m[3]
	if m[2] != c.account || !userID.MatchString(c.userID) {
		return errors.New("what STS says of the user does not fit together")
	}
	return nil
}
