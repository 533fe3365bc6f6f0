package setup

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox/aws"
)

func (m *maker) aws(r *resource, f *fields) error {
	if m.out.AWS == nil {
		m.out.AWS = &aws.Config{Account: m.Cloud.Account, Region: m.Cloud.Region}
	}
	c := m.out.AWS
	switch {
	case c.Account != m.Cloud.Account || c.Region != m.Cloud.Region:
		return fmt.Errorf("it is in account %s, region %s: the sandbox has one of each, %s and %s", m.Cloud.Account, m.Cloud.Region, c.Account, c.Region)
	case r.Account != "" && r.Account != c.Account:
		return fmt.Errorf("it is of account %s: the sandbox has one, %s", r.Account, c.Account)
	case r.Read:
		return errors.New("one that is there already is not known here")
	}
	switch r.Type {
	case "aws_rolesanywhere_trust_anchor":
		return m.trustAnchor(r, f)
	case "aws_rolesanywhere_profile":
		m.profile(r, f)
	case "aws_iam_openid_connect_provider":
		m.oidcProvider(r, f)
	case "aws_iam_role":
		m.role(r, f)
	case "aws_iam_role_policy":
		return m.rolePolicy(f)
	default:
		return errors.New("this type of resource is not emulated")
	}
	return nil
}

// anywhereARN is the one that the Target knows, or a new one.
func (m *maker) anywhereARN(r *resource, kind string) string {
	arn := r.ID
	if arn == "" {
		arn = fmt.Sprintf("arn:%s:rolesanywhere:%s:%s:%s/%s", m.Cloud.Partition, m.Cloud.Region, m.Cloud.Account, kind, m.uuid(r, "arn"))
	}
	m.choose(r, map[string]string{"arn": arn})
	return arn
}

func (m *maker) trustAnchor(r *resource, f *fields) error {
	anchor := aws.TrustAnchor{ARN: m.anywhereARN(r, "trust-anchor")}
	f.text("name")
	anchor.Enabled = f.flag("enabled")
	var text, kind string
	f.one("source", func(f *fields) {
		kind = f.text("source_type")
		f.one("source_data", func(f *fields) { text = f.text("x509_certificate_data") })
	})
	if kind != "CERTIFICATE_BUNDLE" {
		return fmt.Errorf("source_type %q is not emulated", kind)
	}
	var err error
	anchor.Certificates, err = certificates(text)
	m.out.AWS.TrustAnchors = append(m.out.AWS.TrustAnchors, anchor)
	return err
}

func certificates(text string) (all []*x509.Certificate, err error) {
	for rest := []byte(text); len(strings.TrimSpace(string(rest))) > 0; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != "CERTIFICATE" {
			return nil, errors.New("it is not PEM of certificates alone")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

func (m *maker) profile(r *resource, f *fields) {
	f.text("name")
	m.out.AWS.Profiles = append(m.out.AWS.Profiles, aws.Profile{
		ARN: m.anywhereARN(r, "profile"), Enabled: f.flag("enabled"), RoleARNs: f.texts("role_arns"),
		Duration: time.Duration(f.number("duration_seconds")) * time.Second, AcceptRoleSessionName: f.flag("accept_role_session_name"),
	})
}

func (m *maker) oidcProvider(r *resource, f *fields) {
	p := aws.OIDCProvider{URL: f.text("url"), ClientIDs: f.texts("client_id_list")}
	m.choose(r, map[string]string{"arn": fmt.Sprintf("arn:%s:iam::%s:oidc-provider/%s", m.Cloud.Partition, m.Cloud.Account, strings.TrimPrefix(p.URL, "https://"))})
	for i, q := range m.out.AWS.OIDCProviders { // an account has one for an issuer
		if q.URL == p.URL {
			more := slices.DeleteFunc(p.ClientIDs, func(id string) bool { return slices.Contains(q.ClientIDs, id) })
			m.out.AWS.OIDCProviders[i].ClientIDs = append(q.ClientIDs, more...)
			return
		}
	}
	m.out.AWS.OIDCProviders = append(m.out.AWS.OIDCProviders, p)
}

func (m *maker) role(r *resource, f *fields) {
	name := f.text("name")
	arn := fmt.Sprintf("arn:%s:iam::%s:role%s%s", m.Cloud.Partition, m.Cloud.Account, f.text("path"), name)
	m.choose(r, map[string]string{"arn": arn, "name": name})
	if slices.ContainsFunc(m.out.AWS.Roles, func(r aws.Role) bool { return r.ARN == arn }) {
		f.fail("name", fmt.Errorf("role %s is there already, with another trust policy", name))
	}
	m.out.AWS.Roles = append(m.out.AWS.Roles, aws.Role{
		ARN: arn, MaxSessionDuration: time.Duration(f.number("max_session_duration")) * time.Second, TrustPolicy: f.document("assume_role_policy"),
	})
}

// rolePolicy takes one statement that allows to go on to another role.
func (m *maker) rolePolicy(f *fields) error {
	f.text("name")
	name, text := f.text("role"), f.document("policy")
	var p struct {
		Version   string
		Statement []struct {
			Effect, Resource string
			Action           []string
		}
	}
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return fmt.Errorf("policy: %w", err)
	}
	if len(p.Statement) != 1 || p.Statement[0].Effect != "Allow" || !slices.Contains(p.Statement[0].Action, "sts:AssumeRole") {
		return errors.New("policy: one that allows something else than sts:AssumeRole is not emulated")
	}
	for i, role := range m.out.AWS.Roles {
		if strings.HasSuffix(role.ARN, "/"+name) {
			m.out.AWS.Roles[i].MayAssume = append(role.MayAssume, p.Statement[0].Resource)
			return nil
		}
	}
	return fmt.Errorf("role %q is not there", name)
}
