package server

import (
	"fmt"
	"slices"
	"strings"

	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/resource"
)

// maxWarnings is how many lints an answer tells.
const maxWarnings = 100

// lint warns of what was applied, or is planned: in the light of what stands
// beside it, of the nodes that stand, and of who may become one.
func (a adminService) lint(o *outcome) (warnings []string) {
	only := o.touched()
	if len(only) == 0 {
		return nil
	}
	scope := identity.Scope{
		Only: func(kind, name string) bool {
			return only[[2]string{kind, strings.TrimPrefix(name, identity.HereDeny(""))}]
		},
		Live: true, Nodes: a.places(),
	}
	for _, r := range o.stands.policy.Rules {
		scope.Sources = append(scope.Sources, resource.PolicySource(r))
	}
	all := o.stands.policy.Set.Lint(scope)
	for _, w := range all[:min(len(all), maxWarnings)] {
		warnings = append(warnings, w.String())
	}
	if n := len(all) - maxWarnings; n > 0 {
		warnings = append(warnings, fmt.Sprintf("and %d more: apply or plan in parts, or validate the files", n))
	}
	return warnings
}

// touched are the resources that an outcome names, and the Identities that list
// its Targets.
func (o *outcome) touched() map[[2]string]bool {
	only := map[[2]string]bool{}
	var targets []string
	for _, a := range o.applied {
		if a.action == "deleted" {
			continue
		}
		only[[2]string{a.kind, a.name}] = true
		if a.kind == "Target" {
			targets = append(targets, a.name)
		}
	}
	if len(targets) == 0 {
		return only
	}
	for _, r := range o.stands.resources {
		if i := r.resource.Identity; i != nil && slices.ContainsFunc(i.Targets, func(t string) bool { return slices.Contains(targets, t) }) {
			only[[2]string{r.row.Kind, r.row.Name}] = true
		}
	}
	return only
}
