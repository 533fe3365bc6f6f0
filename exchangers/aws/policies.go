package aws

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/service/sts/types"

	"github.com/credence-id/credence/exchangers"
)

// The limits of STS for session policies.
const (
	maxSessionPolicy = 2048 // characters
	maxSessionARNs   = 10
)

var (
	policyCharacters = regexp.MustCompile("^[\t\n\r\u0020-\u00ff]*$")
	policyARN        = regexp.MustCompile(`^policy/[!-~]{1,512}$`)
)

// checkPolicies judges what narrows a session. prefix is that of the fields.
func checkPolicies(prefix, inline string, arns []string, partition string) error {
	if inline != "" && !isPolicy(inline) {
		return fmt.Errorf("%ssession_policy: it must be an IAM policy in JSON, at most %d characters, with a Version of 2012-10-17 and a Statement", prefix, maxSessionPolicy)
	}
	if len(arns) > maxSessionARNs {
		return fmt.Errorf("%ssession_policy_arns: at most %d", prefix, maxSessionARNs)
	}
	for _, text := range arns {
		if a, ok := managed(text); !ok || a.partition != partition {
			return fmt.Errorf("%ssession_policy_arns: %q must be like arn:%s:iam::123456789012:policy/NAME", prefix, exchangers.Clean(text), partition)
		}
	}
	return nil
}

// managed reads the ARN of a managed policy, whose account may be aws.
func managed(text string) (arn, bool) {
	a, ok := splitARN(text)
	if !ok {
		a, ok = awsOwned(text)
	}
	return a, ok && a.service == "iam" && a.region == "" && policyARN.MatchString(a.resource)
}

func isPolicy(text string) bool {
	if len(text) > 4*maxSessionPolicy || utf8.RuneCountInString(text) > maxSessionPolicy || !policyCharacters.MatchString(text) {
		return false
	}
	var p struct {
		ID        string `json:"Id"`
		Version   string
		Statement json.RawMessage
	}
	d := json.NewDecoder(bytes.NewReader([]byte(text)))
	d.DisallowUnknownFields()
	if d.Decode(&p) != nil || d.More() || p.Version != "2012-10-17" || len(p.Statement) == 0 {
		return false
	}
	return p.Statement[0] == '{' || p.Statement[0] == '['
}

// policies are what narrows a session, as STS takes it.
func policies(inline string, arns []string) (*string, []types.PolicyDescriptorType) {
	var out []types.PolicyDescriptorType
	for i := range arns {
		out = append(out, types.PolicyDescriptorType{Arn: &arns[i]})
	}
	if inline == "" {
		return nil, out
	}
	return &inline, out
}
