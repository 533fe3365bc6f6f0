package aws

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/exchangers"
)

// maxTag is the longest value of a session tag: a longer SPIFFE ID is in none.
const (
	maxTag        = 256
	maxWebSubject = 255 // bytes of a token's sub
)

// A policy is an IAM policy, or a statement of one.
type policy struct {
	Version   string      `json:"Version"`
	Statement []statement `json:"Statement"`
}

type statement struct {
	Sid       string                         `json:"Sid"`
	Effect    string                         `json:"Effect"`
	Principal map[string]string              `json:"Principal,omitempty"`
	Action    string                         `json:"Action"`
	Resource  string                         `json:"Resource,omitempty"`
	Condition map[string]map[string][]string `json:"Condition"`
}

func document(v any) json.RawMessage {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings alone
	}
	return text
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// putPolicy denies sessions of a role that were made until now.
func putPolicy(role string, now time.Time, who map[string]map[string][]string) exchangers.Remedy {
	who["DateLessThan"] = map[string][]string{"aws:TokenIssueTime": {stamp(now)}}
	deny := document(policy{"2012-10-17", []statement{{
		Sid: "CredenceRevoked", Effect: "Deny", Action: "*", Resource: "*", Condition: who,
	}}})
	return exchangers.Remedy{
		Document: deny,
		Command: []string{
			"aws", "iam", "put-role-policy", "--role-name", role[strings.LastIndexByte(role, '/')+1:],
			"--policy-name", "CredenceRevoked-" + now.UTC().Format("20060102T150405Z"), "--policy-document", string(deny),
		},
	}
}

// Revoke implements exchangers.Revoker.
func (s RolesAnywhere) Revoke(c exchangers.Cut) exchangers.Advice {
	anchor, _ := splitARN(s.TrustAnchor)
	advice := exchangers.Advice{
		Until: c.Now.Add(maxSession),
		Sessions: fmt.Sprintf("AWS takes no session back: those that our agents have live for %s, one that a thief made for as long as the profile allows, at most 12h",
			asked(s.Duration, "the profile's duration (1h unless set)")),
	}
	if c.Until.After(c.Now) {
		for _, l := range c.CRLs {
			advice.Remedies = append(advice.Remedies, exchangers.Remedy{
				Does: fmt.Sprintf("no new session for an SVID on this list, from the next CreateSession on; without it they are made until %s", stamp(c.Until)),
				Limits: []string{
					"a trust anchor holds 2 CRLs, and one call a second is taken: where there are 2 already, replace one whose SVIDs have ended (list-crls, update-crl --crl-id)",
					fmt.Sprintf("the list is made anew by itself, this copy of it is not: until %s import it again (update-crl) when something more is revoked", stamp(c.Until)),
				},
				Command: []string{
					"aws", "rolesanywhere", "import-crl", "--name", "credence-" + l.Issuer, "--crl-data", "fileb://" + l.File,
					"--trust-anchor-arn", s.TrustAnchor, "--enabled", "--region", anchor.region,
				},
			})
		}
	}
	uris := []string{}
	for _, id := range c.IDs {
		if len(id.String()) <= maxTag {
			uris = append(uris, id.String())
		} else {
			advice.Missing = append(advice.Missing, fmt.Sprintf("%s is longer than a session tag (%d): no policy can name it", id, maxTag))
		}
	}
	if len(uris) == 0 {
		return s.AssumeRole.revoked(advice, c.Now)
	}
	deny := putPolicy(s.Role, c.Now, map[string]map[string][]string{"StringEquals": {"aws:PrincipalTag/x509SAN/URI": uris}})
	deny.Does = "sessions that were made before the time in it may do nothing more; newer ones, of the SVIDs that agents get now, may"
	deny.Limits = []string{
		"import the CRL first, and put the time of that into the policy if it took a while: what a thief makes in between is not denied by it",
		"the profile must map x509SAN URI, as it does unless that was taken out: where the tag is missing nothing is denied",
		fmt.Sprintf("take it away again after %s", stamp(advice.Until)),
	}
	advice.Remedies = append(advice.Remedies, deny)
	return s.AssumeRole.revoked(advice, c.Now)
}

// Revoke implements exchangers.Revoker.
func (s WebIdentity) Revoke(c exchangers.Cut) exchangers.Advice {
	role, _ := splitARN(s.Role)
	advice := exchangers.Advice{
		Until: c.Now.Add(maxSession),
		Sessions: fmt.Sprintf("AWS takes no session back: those that our agents have live for %s, one that a thief made for as long as the role allows, at most 12h",
			asked(s.Duration, "1h")),
		Missing: []string{fmt.Sprintf("STS knows no revoked token and no cut-off: it takes each JWT-SVID until it ends, the last one at %s", stamp(c.Until))},
	}
	var ids, users []string
	for _, id := range c.IDs {
		ids = append(ids, id.String())
		users = append(users, "*:"+s.sessionName(id))
	}
	if host, ok := strings.CutPrefix(c.Issuer, "https://"); ok && c.Until.After(c.Now) {
		provider := fmt.Sprintf("arn:%s:iam::%s:oidc-provider/%s", role.partition, role.account, host)
		advice.Remedies = append(advice.Remedies, exchangers.Remedy{
			Does: "no new session for these subjects, old tokens and new ones alike: the workload is shut out too, until it is taken away again",
			Limits: []string{
				"add this statement to the role's trust policy (aws iam get-role shows it): the call replaces it whole",
				fmt.Sprintf("after %s the old tokens have ended: take it away again", stamp(c.Until)),
			},
			Command: []string{"aws", "iam", "update-assume-role-policy", "--role-name", s.Role[strings.LastIndexByte(s.Role, '/')+1:], "--policy-document", "file://TRUST-POLICY-WITH-THE-STATEMENT.json"},
			Document: document(statement{
				Sid: "CredenceRevoked", Effect: "Deny", Principal: map[string]string{"Federated": provider}, Action: "sts:AssumeRoleWithWebIdentity",
				Condition: map[string]map[string][]string{"StringEquals": {host + ":sub": ids}},
			}),
		})
	}
	deny := putPolicy(s.Role, c.Now, map[string]map[string][]string{"StringLike": {"aws:userid": users}})
	deny.Does = "sessions that our agents made for these subjects before the time in it may do nothing more"
	deny.Limits = []string{
		"who has a token names his session himself: without StringLike it denies all sessions of the role from before that time, his and those of other workloads, whose agents get new ones at half of their life",
		fmt.Sprintf("take it away again after %s", stamp(advice.Until)),
	}
	advice.Remedies = append(advice.Remedies, deny)
	return s.AssumeRole.revoked(advice, c.Now)
}

func asked(d exchangers.Duration, otherwise string) string {
	if d == 0 {
		return otherwise
	}
	return exchangers.Brief(time.Duration(d))
}

// sessionName is the one set or, since a SPIFFE ID is never a legal one, the
// end of the ID's path and a digest of the whole ID.
func (s WebIdentity) sessionName(id spiffeid.ID) string {
	if s.SessionName != "" {
		return s.SessionName
	}
	return defaultSessionName(id)
}
