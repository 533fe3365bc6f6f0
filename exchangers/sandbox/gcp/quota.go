package gcp

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
)

// quotaHeader names the project that a call is charged to.
const quotaHeader = "X-Goog-User-Project"

// A QuotaProject can be charged by its consumers, the members that have
// serviceusage.services.use on it.
type QuotaProject struct {
	ID        string
	Consumers []string // like a Binding's members
}

var projectID = regexp.MustCompile(`^[a-z][a-z0-9-]{4,28}[a-z0-9]$`)

func (q QuotaProject) check() error {
	if !projectID.MatchString(q.ID) {
		return fmt.Errorf("quota project %q is not a project ID", q.ID)
	}
	for _, m := range q.Consumers {
		if !member.MatchString(m) {
			return fmt.Errorf("quota project %q: member %q is not a principal, principalSet or serviceAccount", q.ID, m)
		}
	}
	return nil
}

// charge refuses a call that names a project which the caller may not charge,
// whether there is one or not.
func (c *Cloud) charge(r *http.Request, caller token) *refusal {
	names := r.Header.Values(quotaHeader)
	if len(names) == 0 {
		return nil
	}
	for _, q := range c.cfg.QuotaProjects {
		if len(names) == 1 && q.ID == names[0] &&
			slices.ContainsFunc(q.Consumers, func(m string) bool { return slices.Contains(caller.members, m) }) {
			return nil
		}
	}
	return denied("serviceusage.services.use", "Caller does not have required permission to use project "+names[0]+". Grant the caller the "+
		"roles/serviceusage.serviceUsageConsumer role, or a custom role with the serviceusage.services.use permission.", "USER_PROJECT_DENIED")
}
