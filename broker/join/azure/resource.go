package azure

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Kinds of resources.
const (
	virtualMachine = "microsoft.compute/virtualmachines"
	scaleSet       = "microsoft.compute/virtualmachinescalesets"
	userAssigned   = "microsoft.managedidentity/userassignedidentities"
	maxResource    = 1 << 10
)

// A resource is what an Azure resource ID names, in lower case: Azure tells no cases
// apart, and writes the same one in several.
type resource struct {
	subscription, group, kind, name string
	instance                        string // of a scale set
}

var (
	guid         = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	groupPattern = regexp.MustCompile(`^[a-z0-9_().-]{0,89}[a-z0-9_()-]$`)
	namePattern  = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_.-]{0,126}[a-z0-9_])?$`)
)

// parseResource reads the ID of a machine, a scale set, a machine of one, or a
// user-assigned identity, and refuses everything else.
func parseResource(text string) (resource, error) {
	if len(text) > maxResource {
		return resource{}, fmt.Errorf("a resource ID of %d bytes", len(text))
	}
	for _, c := range []byte(text) {
		if c <= ' ' || c > '~' { // before cases are made one: beyond ASCII, some letters would become these
			return resource{}, fmt.Errorf("resource ID %.200q: it has letters that none of these has", text)
		}
	}
	parts := strings.Split(strings.ToLower(text), "/")
	if len(parts) != 9 && len(parts) != 11 || parts[0] != "" || parts[1] != "subscriptions" || parts[3] != "resourcegroups" || parts[5] != "providers" {
		return resource{}, fmt.Errorf("resource ID %.200q: /subscriptions/ID/resourceGroups/NAME/providers/... of a machine is wanted", text)
	}
	r := resource{subscription: parts[2], group: parts[4], kind: parts[6] + "/" + parts[7], name: parts[8]}
	switch {
	case !guid.MatchString(r.subscription) || !groupPattern.MatchString(r.group) || !namePattern.MatchString(r.name):
		return resource{}, fmt.Errorf("resource ID %.200q: its subscription, group or name is none", text)
	case r.kind != virtualMachine && r.kind != scaleSet && r.kind != userAssigned:
		return resource{}, fmt.Errorf("resource ID %.200q: it is of no virtual machine", text)
	case len(parts) == 9:
		return r, nil
	}
	if r.instance = parts[10]; r.kind != scaleSet || parts[9] != "virtualmachines" || !namePattern.MatchString(r.instance) {
		return resource{}, errors.New("resource ID: more follows than a scale set's machine")
	}
	return r, nil
}

// single says whether one machine is named.
func (r resource) single() bool {
	return r.kind == virtualMachine || r.kind == scaleSet && r.instance != ""
}

// within says whether a machine is another resource, or of that scale set.
func (r resource) within(other resource) bool {
	if other.instance == "" {
		r.instance = ""
	}
	return r == other
}

// String is the ID as resources are compared.
func (r resource) String() string {
	text := "/subscriptions/" + r.subscription + "/resourcegroups/" + r.group + "/providers/" + r.kind + "/" + r.name
	if r.instance != "" {
		text += "/virtualmachines/" + r.instance
	}
	return text
}
