package setup

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/credence-id/credence/exchangers/sandbox/azure"
)

// audiences are the clouds'.
var audiences = map[string]string{"public": "", "usgov": azure.Audience + "USGov", "china": azure.Audience + "China"}

func (m *maker) azure(r *resource, f *fields) error {
	if m.out.Azure == nil {
		audience, ok := audiences[m.Cloud.Partition]
		if !ok {
			return fmt.Errorf("cloud %q is none of Microsoft's", m.Cloud.Partition)
		}
		m.out.Azure = &azure.Config{Audience: audience}
	}
	if r.Account != "" || audiences[m.Cloud.Partition] != m.out.Azure.Audience {
		return errors.New("it is in another of Microsoft's clouds than those before: the sandbox is one")
	}
	switch r.Type {
	case "azuread_application":
		m.application(r, f)
	case "azuread_service_principal":
		f.text("client_id") // each app of the sandbox has one
	case "azuread_application_federated_identity_credential":
		return m.credential(f, f.text("application_id"), "display_name", "audiences")
	case "azurerm_user_assigned_identity":
		return m.managedIdentity(r, f)
	case "azurerm_federated_identity_credential":
		f.text("resource_group_name")
		return m.credential(f, f.text("parent_id"), "name", "audience")
	default:
		return errors.New("this type of resource is not emulated")
	}
	return nil
}

// tenant is the plan's. One that is named by a domain gets an ID.
func (m *maker) tenant() *azure.Tenant {
	t := azure.Tenant{ID: strings.ToLower(m.Cloud.Account)}
	if strings.Contains(t.ID, ".") {
		t.Domain = t.ID
		t.ID = m.uuid(&resource{Type: "tenant"}, t.Domain)
	}
	same := func(o azure.Tenant) bool { return o.ID == t.ID || t.Domain != "" && o.Domain == t.Domain }
	if i := slices.IndexFunc(m.out.Azure.Tenants, same); i >= 0 {
		return &m.out.Azure.Tenants[i]
	}
	m.out.Azure.Tenants = append(m.out.Azure.Tenants, t)
	return &m.out.Azure.Tenants[len(m.out.Azure.Tenants)-1]
}

func (m *maker) application(r *resource, f *fields) {
	app := azure.App{Kind: azure.Application, ClientID: m.uuid(r, "client_id"), ObjectID: m.uuid(r, "object_id")}
	if r.Read {
		app.ClientID = strings.ToLower(f.text("client_id"))
	} else {
		f.text("display_name")
	}
	m.choose(r, map[string]string{"client_id": app.ClientID, "id": "/applications/" + app.ClientID})
	m.register(app)
}

func (m *maker) register(app azure.App) {
	t := m.tenant()
	if !slices.ContainsFunc(t.Apps, func(a azure.App) bool { return a.ClientID == app.ClientID }) {
		t.Apps = append(t.Apps, app)
	}
}

// managedIdentity is one that is there: the Target has its client ID.
func (m *maker) managedIdentity(r *resource, f *fields) error {
	f.text("name")
	f.text("resource_group_name")
	if !r.Read || r.ID == "" {
		return errors.New("one that is not there yet, or has no client ID, is not known here")
	}
	app := azure.App{Kind: azure.ManagedIdentity, ClientID: strings.ToLower(r.ID), ObjectID: m.uuid(r, "object_id")}
	m.choose(r, map[string]string{"id": "/managed/" + app.ClientID})
	m.register(app)
	return nil
}

// credential adds one to the app, or managed identity, of an ID.
func (m *maker) credential(f *fields, id, name, audience string) error {
	id = id[strings.LastIndexByte(id, '/')+1:]
	c := azure.Credential{Name: f.text(name), Issuer: f.text("issuer"), Subject: f.text("subject")}
	f.maybe("description")
	list := f.texts(audience)
	if len(list) != 1 {
		return errors.New("audiences: exactly one is taken")
	}
	c.Audience = list[0]
	t := m.tenant()
	for i, a := range t.Apps {
		if a.ClientID == id {
			t.Apps[i].Credentials = append(a.Credentials, c)
			return nil
		}
	}
	return fmt.Errorf("application %q is not there", id)
}
