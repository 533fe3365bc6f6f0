package setup

import (
	"errors"
	"fmt"
	"strings"

	"github.com/credence-id/credence/exchangers/sandbox/gcp"
)

func (m *maker) gcp(r *resource, f *fields) error {
	if m.out.GCP == nil {
		m.out.GCP = &gcp.Config{}
	}
	if r.Read || r.Account != "" {
		return errors.New("one that is there already, or in another project, is not known here")
	}
	switch r.Type {
	case "google_iam_workload_identity_pool":
		m.pool(r, f)
	case "google_iam_workload_identity_pool_provider":
		return m.provider(f)
	case "google_service_account":
		m.serviceAccount(r, f)
	case "google_service_account_iam_member":
		return m.binding(f)
	case "google_project_iam_member":
		return m.quota(f)
	default:
		return errors.New("this type of resource is not emulated")
	}
	return nil
}

func (m *maker) pool(r *resource, f *fields) {
	p := gcp.Pool{Project: f.text("project"), ID: f.text("workload_identity_pool_id")}
	f.maybe("display_name")
	m.choose(r, map[string]string{"workload_identity_pool_id": p.ID})
	for _, q := range m.out.GCP.Pools {
		if q.Name() == p.Name() {
			return
		}
	}
	m.out.GCP.Pools = append(m.out.GCP.Pools, p)
}

func (m *maker) provider(f *fields) error {
	project, pool := f.text("project"), f.text("workload_identity_pool_id")
	p := gcp.Provider{ID: f.text("workload_identity_pool_provider_id"), AttributeCondition: f.maybe("attribute_condition"), AttributeMapping: map[string]string{}}
	v, _ := f.take("attribute_mapping")
	mapping, ok := v.(map[string]any)
	for name, e := range mapping {
		text, isText := e.(string)
		p.AttributeMapping[name], ok = text, ok && isText
	}
	if !ok {
		f.fail("attribute_mapping", errType)
	}
	f.one("oidc", func(f *fields) {
		p.Issuer = f.text("issuer_uri")
		if keys := f.maybe("jwks_json"); keys != "" {
			p.KeySet = []byte(keys)
		}
		if _, ok := f.left["allowed_audiences"]; ok {
			p.AllowedAudiences = f.texts("allowed_audiences")
		}
	})
	f.one("x509", func(f *fields) {
		f.one("trust_store", func(f *fields) {
			p.TrustStore = &gcp.TrustStore{}
			f.each("trust_anchors", func(f *fields) {
				certs, err := certificates(f.text("pem_certificate"))
				if err != nil || len(certs) != 1 {
					f.fail("pem_certificate", fmt.Errorf("it is not one certificate: %w", errors.Join(err, errType)))
				}
				p.TrustStore.Anchors = append(p.TrustStore.Anchors, certs...)
			})
		})
	})
	for i, q := range m.out.GCP.Pools {
		if q.Project == project && q.ID == pool {
			m.out.GCP.Pools[i].Providers = append(q.Providers, p)
			return nil
		}
	}
	return fmt.Errorf("pool %q is not there", pool)
}

func (m *maker) serviceAccount(r *resource, f *fields) {
	email := fmt.Sprintf("%s@%s.iam.gserviceaccount.com", f.text("account_id"), f.text("project"))
	again := f.flag("create_ignore_already_exists")
	m.choose(r, map[string]string{"email": email, "name": "projects/-/serviceAccounts/" + email})
	for i, a := range m.out.GCP.ServiceAccounts {
		if a.Email == email {
			if !again {
				f.fail("account_id", fmt.Errorf("service account %s is there already", m.out.GCP.ServiceAccounts[i].Email))
			}
			return
		}
	}
	m.out.GCP.ServiceAccounts = append(m.out.GCP.ServiceAccounts, gcp.ServiceAccount{
		Email: email, UniqueID: fmt.Sprintf("1%020d", len(m.out.GCP.ServiceAccounts)+1),
	})
}

func (m *maker) binding(f *fields) error {
	id, b := f.text("service_account_id"), gcp.Binding{Role: f.text("role"), Members: []string{f.text("member")}}
	email := id[strings.LastIndexByte(id, '/')+1:]
	for i, a := range m.out.GCP.ServiceAccounts {
		if a.Email == email {
			m.out.GCP.ServiceAccounts[i].Bindings = append(a.Bindings, b)
			return nil
		}
	}
	return fmt.Errorf("service account %q is not there: name it by its address", email)
}

func (m *maker) quota(f *fields) error {
	id, member := f.text("project"), f.text("member")
	if role := f.text("role"); role != "roles/serviceusage.serviceUsageConsumer" {
		return fmt.Errorf("role %q is not emulated", role)
	}
	for i, q := range m.out.GCP.QuotaProjects {
		if q.ID == id {
			m.out.GCP.QuotaProjects[i].Consumers = append(q.Consumers, member)
			return nil
		}
	}
	m.out.GCP.QuotaProjects = append(m.out.GCP.QuotaProjects, gcp.QuotaProject{ID: id, Consumers: []string{member}})
	return nil
}
