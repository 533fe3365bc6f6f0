package gcp

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/credence-id/credence/exchangers"
)

var accountEmail = regexp.MustCompile(`^([a-z0-9-]{6,30})@([a-z][a-z0-9-]{4,28}[a-z0-9])\.iam\.gserviceaccount\.com$`)

// members are the parties as bindings name them.
func (p *plan) members(parties []exchangers.Party) (all []string) {
	pool := fmt.Sprintf("projects/%s/locations/global/workloadIdentityPools/%s", p.project, p.pool)
	for _, party := range parties {
		member := fmt.Sprintf("principal://iam.googleapis.com/%s/subject/%s", pool, subjectOf(party))
		if !party.Exact() {
			member = fmt.Sprintf("principalSet://iam.googleapis.com/%s/attribute.identity/%s", pool, party.Identity)
		}
		if !slices.Contains(all, member) {
			all = append(all, member)
		}
	}
	return all
}

// bind lets the parties be the service account, by way of the delegates, or
// says whom a resource must name.
func (p *plan) bind(s Settings, parties []exchangers.Party) {
	members := p.members(parties)
	if s.ServiceAccount == "" {
		p.Notes = append(p.Notes, fmt.Sprintf("the tokens are of the federated principal itself: give it a role on each resource that the workload needs (gcloud RESOURCE add-iam-policy-binding --role=ROLE --member=MEMBER), for %s", strings.Join(members, " and ")))
		return
	}
	accounts := append(slices.Clone(s.Delegates), s.ServiceAccount)
	role := identityUser
	if len(s.Delegates) > 0 {
		role = tokenCreator // to go on by delegation takes more than to be an account
	}
	for i, account := range accounts {
		ref := p.account(account, i)
		for n, member := range members {
			p.binding(ref, fmt.Sprintf("%s_%d_%d", p.label, i, n), role, member)
		}
		members, role = []string{"serviceAccount:" + account}, tokenCreator
	}
	if s.QuotaProject != "" {
		for n, member := range p.members(parties) {
			p.add(exchangers.Made{
				Type: projectType, Label: fmt.Sprintf("%s_%d", p.label, n),
				Values: exchangers.Fields{{Name: "project", Value: s.QuotaProject}, {Name: "role", Value: quotaConsumer}, {Name: "member", Value: member}},
				Script: []string{exchangers.Shell("gcloud", "projects", "add-iam-policy-binding", s.QuotaProject, "--role="+quotaConsumer, "--member="+member, "--condition=None") + " > /dev/null"},
			})
		}
	}
	p.Notes = append(p.Notes, fmt.Sprintf("service account %s may do nothing by this: give it the roles that the workload needs", s.ServiceAccount))
	if s.Lifetime > exchangers.Duration(maxFederated) {
		p.Notes = append(p.Notes, "a lifetime of more than 1h needs the organization policy constraints/iam.allowServiceAccountCredentialLifetimeExtension to name the service account")
	}
}

// account makes a service account unless it is there. One that is named by its
// number is there.
func (p *plan) account(name string, i int) exchangers.Ref {
	id := "projects/-/serviceAccounts/" + name
	part := accountEmail.FindStringSubmatch(name)
	if part == nil {
		return exchangers.Ref{Known: id}
	}
	label := fmt.Sprintf("%s_%d", p.label, i)
	p.add(exchangers.Made{
		Type: accountType, Label: label, ID: name,
		Values: exchangers.Fields{{Name: "project", Value: part[2]}, {Name: "account_id", Value: part[1]}, {Name: "create_ignore_already_exists", Value: true}},
		Script: either([]any{"gcloud", "iam", "service-accounts", "describe", name, "--project=" + part[2]}, nil,
			[]any{"gcloud", "iam", "service-accounts", "create", part[1], "--project=" + part[2]}),
	})
	return exchangers.Ref{Type: accountType, Label: label, Attr: "name", Known: id}
}

func (p *plan) binding(account exchangers.Ref, label, role, member string) {
	var id any = account
	if account.Type == "" {
		id = account.Known
	}
	name := account.Known[strings.LastIndexByte(account.Known, '/')+1:]
	p.add(exchangers.Made{
		Type: bindingType, Label: label,
		Values: exchangers.Fields{{Name: "service_account_id", Value: id}, {Name: "role", Value: role}, {Name: "member", Value: member}},
		Script: []string{exchangers.Shell("gcloud", "iam", "service-accounts", "add-iam-policy-binding", name, "--role="+role, "--member="+member) + " > /dev/null"},
	})
}
