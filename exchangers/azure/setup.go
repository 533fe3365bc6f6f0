package azure

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/credence-id/credence/exchangers"
)

const (
	maxField = 600 // characters
	unset    = "00000000-0000-0000-0000-000000000000"

	appType        = "azuread_application"
	principalType  = "azuread_service_principal"
	appFICType     = "azuread_application_federated_identity_credential"
	managedType    = "azurerm_user_assigned_identity"
	managedFICType = "azurerm_federated_identity_credential"
)

// names of Azure's clouds, to Terraform's providers and to az.
var cloudNames = map[string][3]string{
	"public": {"public", "public", "AzureCloud"},
	"usgov":  {"usgovernmentl4", "usgovernment", "AzureUSGovernment"},
	"china":  {"china", "china", "AzureChinaCloud"},
}

var managedIdentity = regexp.MustCompile(`^/subscriptions/([0-9A-Fa-f-]{36})/resource[Gg]roups/([A-Za-z0-9._()-]{1,90})/providers/Microsoft\.ManagedIdentity/userAssignedIdentities/([A-Za-z0-9_-]{3,128})$`)

// Setup implements exchangers.Planner. A client_id of zeros is an app's that is
// not there yet.
func (s Settings) Setup(f exchangers.Facts, c exchangers.Choices) (exchangers.Plan, error) {
	parties, err := f.Listed()
	if err == nil {
		err = f.Issues()
	}
	if err == nil {
		err = s.refused(f, parties, c)
	}
	if err != nil {
		return exchangers.Plan{}, err
	}
	p := &plan{s: s, label: f.Target.Label()}
	p.Target, p.Flow, p.Cloud = f.Target.Name, f.Target.Flow, exchangers.Cloud{Name: "azure", Partition: s.cloud(), Account: s.Tenant}
	p.Guard = []string{
		`cloud=$(az cloud show --query name --output tsv)`,
		`[ "$cloud" = ` + cloudNames[s.cloud()][2] + ` ] || { echo "az is set to $cloud: az cloud set --name ` + cloudNames[s.cloud()][2] + `, and log in" >&2; exit 1; }`,
	}
	if guid.MatchString(s.Tenant) {
		p.Guard = append(p.Guard, `tenant=$(az account show --query tenantId --output tsv)`,
			`[ "$tenant" = `+strings.ToLower(s.Tenant)+` ] || { echo "az is logged in to tenant $tenant, not `+strings.ToLower(s.Tenant)+`" >&2; exit 1; }`)
	}
	if c.ManagedIdentity != "" {
		p.managed(f, parties, c.ManagedIdentity)
	} else {
		p.app(f, parties)
		if s.ClientID == unset {
			p.Apply, err = f.Target.Document(map[string]any{"client_id": p.ref("client_id", "client_id")})
		}
	}
	p.Notes = append(p.Notes, f.ReachNote("Entra"), "Entra knows a new credential after some minutes: until then it answers AADSTS70021 or 700211")
	if n := len(parties); n >= manyCredentials {
		p.Notes = append(p.Notes, fmt.Sprintf("%d federated credentials of the %d that an app or identity can have: give the next Identities a Target with another client_id", n, maxCredentials))
	}
	return p.Plan, err
}

// refused says what Entra would not take.
func (s Settings) refused(f exchangers.Facts, parties []exchangers.Party, c exchangers.Choices) error {
	switch {
	case c.UploadKeys:
		return errors.New("uploaded keys are not taken: Entra fetches them from the issuer")
	case c.ManagedIdentity != "" && !managedIdentity.MatchString(c.ManagedIdentity):
		return errors.New("the managed identity must be /subscriptions/ID/resourceGroups/GROUP/providers/Microsoft.ManagedIdentity/userAssignedIdentities/NAME")
	case c.ManagedIdentity != "" && s.ClientID == unset:
		return errors.New("client_id is not set: az identity show has that of the managed identity")
	case c.ManagedIdentity != "" && s.Audience() != s.place().audience:
		return fmt.Errorf("audience %s: a managed identity takes %s alone", s.Audience(), s.place().audience)
	case len(parties) > maxCredentials:
		return fmt.Errorf("%d SPIFFE IDs, and an app or managed identity has at most %d federated credentials: make Targets with other client_ids, and spread the Identities over them", len(parties), maxCredentials)
	case len(f.Issuer) > maxField:
		return fmt.Errorf("the issuer has %d characters: Entra takes %d", len(f.Issuer), maxField)
	}
	for _, p := range parties {
		if !p.Exact() {
			return fmt.Errorf("identity %s: its SPIFFE ID %s is made of facts, and Entra compares a subject whole: it has no patterns for issuers like ours. Fix the facts by exact terms of its match, or make an Identity for each", p.Identity, p.SPIFFEID)
		}
		if len(p.SPIFFEID) > maxField {
			return fmt.Errorf("identity %s: its SPIFFE ID has %d characters, and Entra takes %d", p.Identity, len(p.SPIFFEID), maxField)
		}
	}
	return nil
}

// A plan is one of Azure.
type plan struct {
	exchangers.Plan
	s     Settings
	label string
}

func (p *plan) add(m exchangers.Made) { p.Resources = append(p.Resources, m) }

// ref is what the app says of itself.
func (p *plan) ref(attr, variable string) exchangers.Ref {
	r := exchangers.Ref{Type: appType, Label: p.label, Attr: attr, Var: variable, Read: p.s.ClientID != unset}
	if attr == "client_id" && r.Read {
		r.Known = p.s.ClientID
	}
	return r
}

// app is an app registration, made where there is none, with its credentials.
func (p *plan) app(f exchangers.Facts, parties []exchangers.Party) {
	p.Provider = exchangers.Provider{Name: "azuread", Source: "hashicorp/azuread", Version: ">= 3.0", Config: exchangers.Fields{
		{Name: "environment", Value: cloudNames[p.s.cloud()][0]}, {Name: "tenant_id", Value: p.s.Tenant},
	}}
	if p.s.ClientID != unset {
		p.add(exchangers.Made{
			Type: appType, Label: p.label, ID: p.s.ClientID, Read: true,
			Values: exchangers.Fields{{Name: "client_id", Value: p.s.ClientID}},
			Script: []string{"client_id=" + p.s.ClientID},
		})
		p.Notes = append(p.Notes, fmt.Sprintf("client_id %s is taken for an app registration's: of a user-assigned managed identity, name it by --managed-identity RESOURCE-ID", p.s.ClientID))
	} else {
		p.newApp("credence-" + f.Target.Name)
	}
	p.Notes = append(p.Notes, "the app's service principal may do nothing by this: give it the roles (az role assignment create) or API permissions that the workload needs")
	for _, c := range p.credentials(f, parties) {
		query := fmt.Sprintf("[?name=='%s'].name | [0]", c.name)
		file := exchangers.Fields{{Name: "name", Value: c.name}, {Name: "issuer", Value: f.Issuer}, {Name: "subject", Value: c.subject}, {Name: "audiences", Value: exchangers.List(p.s.Audience())}, {Name: "description", Value: c.description}}
		p.add(exchangers.Made{
			Type: appFICType, Label: c.label,
			Values: exchangers.Fields{
				{Name: "application_id", Value: p.ref("id", "")}, {Name: "display_name", Value: c.name}, {Name: "description", Value: c.description},
				{Name: "audiences", Value: exchangers.List(p.s.Audience())}, {Name: "issuer", Value: f.Issuer}, {Name: "subject", Value: c.subject},
			},
			Script: []string{
				exchangers.ShellFile(c.name+".json", file),
				`if [ -n "$(` + exchangers.Shell("az", "ad", "app", "federated-credential", "list", "--id", exchangers.Word(`"$client_id"`), "--query", query, "--output", "tsv") + `)" ]; then`,
				"  " + exchangers.Shell("az", "ad", "app", "federated-credential", "update", "--id", exchangers.Word(`"$client_id"`), "--federated-credential-id", c.name, "--parameters", exchangers.FileWord("@", c.name+".json")),
				"else",
				"  " + exchangers.Shell("az", "ad", "app", "federated-credential", "create", "--id", exchangers.Word(`"$client_id"`), "--parameters", exchangers.FileWord("@", c.name+".json")) + " > /dev/null",
				"fi",
			},
		})
	}
}

func (p *plan) newApp(name string) {
	p.add(exchangers.Made{
		Type: appType, Label: p.label,
		Values: exchangers.Fields{{Name: "display_name", Value: name}},
		Script: []string{
			"client_id=$(" + exchangers.Shell("az", "ad", "app", "list", "--display-name", name, "--query", fmt.Sprintf("[?displayName=='%s'].appId | [0]", name), "--output", "tsv") + ")",
			`[ -n "$client_id" ] || client_id=$(` + exchangers.Shell("az", "ad", "app", "create", "--display-name", name, "--query", "appId", "--output", "tsv") + ")",
		},
	})
	p.add(exchangers.Made{
		Type: principalType, Label: p.label,
		Values: exchangers.Fields{{Name: "client_id", Value: p.ref("client_id", "client_id")}},
		Script: []string{`az ad sp show --id "$client_id" > /dev/null 2>&1 || az ad sp create --id "$client_id" > /dev/null`},
	})
}

// managed adds the credentials to a user-assigned managed identity. One write
// is taken at a time.
func (p *plan) managed(f exchangers.Facts, parties []exchangers.Party, id string) {
	part := managedIdentity.FindStringSubmatch(id)
	p.Provider = exchangers.Provider{Name: "azurerm", Source: "hashicorp/azurerm", Version: ">= 4.0", Config: exchangers.Fields{
		{Name: "environment", Value: cloudNames[p.s.cloud()][1]}, {Name: "subscription_id", Value: part[1]}, {Name: "features", Value: exchangers.Blocks{{}}},
	}}
	p.Notes = append(p.Notes, fmt.Sprintf("managed identity %s may do nothing by this: give it the roles that the workload needs (az role assignment create)", part[3]))
	p.add(exchangers.Made{
		Type: managedType, Label: p.label, ID: p.s.ClientID, Read: true,
		Values: exchangers.Fields{{Name: "name", Value: part[3]}, {Name: "resource_group_name", Value: part[2]}},
		Script: []string{
			"client_id=$(" + exchangers.Shell("az", "identity", "show", "--ids", id, "--query", "clientId", "--output", "tsv") + ")",
			`[ "$client_id" = ` + p.s.ClientID + ` ] || { echo "the managed identity's client_id is $client_id, not ` + p.s.ClientID + `" >&2; exit 1; }`,
		},
	})
	for _, c := range p.credentials(f, parties) {
		p.add(exchangers.Made{
			Type: managedFICType, Label: c.label,
			Values: exchangers.Fields{
				{Name: "name", Value: c.name}, {Name: "resource_group_name", Value: part[2]},
				{Name: "parent_id", Value: exchangers.Ref{Type: managedType, Label: p.label, Attr: "id", Read: true, Known: id}},
				{Name: "audience", Value: exchangers.List(p.s.Audience())}, {Name: "issuer", Value: f.Issuer}, {Name: "subject", Value: c.subject},
			},
			Script: []string{exchangers.Shell("az", "identity", "federated-credential", "create", "--name", c.name, "--identity-name", part[3], "--resource-group", part[2],
				"--subscription", part[1], "--issuer", f.Issuer, "--subject", c.subject, "--audiences", p.s.Audience()) + " > /dev/null"},
		})
	}
	if len(parties) > 1 {
		p.Notes = append(p.Notes, "Azure takes one change of a managed identity's credentials at a time: terraform apply -parallelism=1")
	}
}

// A credential is a federated identity credential.
type credential struct{ label, name, subject, description string }

// credentials are those of the parties. A name is legal, and another for each
// SPIFFE ID: 3 to 120 letters, digits and -_.
func (p *plan) credentials(f exchangers.Facts, parties []exchangers.Party) (all []credential) {
	for _, party := range parties {
		sum := sha256.Sum256([]byte(party.SPIFFEID))
		name := fmt.Sprintf("credence-%s-%x", strings.ReplaceAll(party.Identity, ".", "-"), sum[:4])
		all = append(all, credential{
			label: fmt.Sprintf("%s_%x", p.label, sum[:4]), name: name, subject: party.SPIFFEID,
			description: fmt.Sprintf("Identity %s of trust domain %s", party.Identity, f.TrustDomain.Name()),
		})
	}
	return all
}
