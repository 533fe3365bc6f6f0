package oauth

import (
	"errors"
	"fmt"
	"strings"

	"github.com/credence-id/credence/exchangers"
)

const (
	mountType    = "vault_jwt_auth_backend"
	roleType     = "vault_jwt_auth_backend_role"
	backendType  = "vault_auth_backend"
	certRoleType = "vault_cert_auth_backend_role"
	tokenTTL     = 3600 // seconds; a role without one makes tokens of the mount's
)

// Setup implements exchangers.Planner. What an OAuth server must hold has no
// common form: there the plan is notes alone.
func (s Settings) Setup(f exchangers.Facts, c exchangers.Choices) (exchangers.Plan, error) {
	if c != (exchangers.Choices{}) {
		return exchangers.Plan{}, errors.New("a managed identity and uploaded keys are for other providers")
	}
	parties, err := f.Listed()
	if err != nil {
		return exchangers.Plan{}, err
	}
	set := s.set()
	if len(set) != 1 {
		return exchangers.Plan{}, s.Validate()
	}
	p := &plan{Plan: exchangers.Plan{Target: f.Target.Name, Flow: f.Target.Flow}, label: f.Target.Label()}
	switch m := set[0].(type) {
	case *VaultJWT:
		if err := f.Issues(); err != nil {
			return exchangers.Plan{}, err
		}
		p.vault(m.URL, m.Namespace)
		err = p.jwtRole(f, *m, parties)
	case *VaultCert:
		p.vault(m.URL, m.Namespace)
		err = p.certRole(f, *m, parties)
	default:
		err = f.Issues()
		p.Cloud = exchangers.Cloud{Name: "oauth"}
		p.notes(f, set[0], parties)
	}
	for _, party := range parties {
		if !party.Exact() {
			p.Notes = append(p.Notes, party.TemplateNote())
		}
	}
	return p.Plan, err
}

// A plan is one of OpenBao or Vault, or of an OAuth server.
type plan struct {
	exchangers.Plan
	label string
}

func (p *plan) add(m exchangers.Made) { p.Resources = append(p.Resources, m) }

func (p *plan) vault(url, namespace string) {
	p.Cloud = exchangers.Cloud{Name: "vault", Account: namespace}
	config := exchangers.Fields{{Name: "address", Value: url}}
	p.Guard = []string{
		"vault=vault; command -v vault > /dev/null 2>&1 || vault=bao",
		exchangers.Shell("export", "VAULT_ADDR="+url, "BAO_ADDR="+url),
	}
	if namespace != "" {
		config = append(config, exchangers.Field{Name: "namespace", Value: namespace})
		p.Guard = append(p.Guard, exchangers.Shell("export", "VAULT_NAMESPACE="+namespace, "BAO_NAMESPACE="+namespace))
	}
	p.Provider = exchangers.Provider{Name: "vault", Source: "hashicorp/vault", Version: ">= 4.0", Config: config}
	p.Notes = append(p.Notes, "the role's tokens may do nothing yet: set its token_policies to what the workload needs")
}

var vault = exchangers.Word(`"$vault"`)

// enable makes a mount where there is none.
func enable(kind, mount string) string {
	return `"$vault" auth list -format=json | grep -q ` + exchangers.Shell(`"`+mount+`/"`) + " || " + exchangers.Shell(vault, "auth", "enable", "-path="+mount, kind)
}

func (p *plan) jwtRole(f exchangers.Facts, m VaultJWT, parties []exchangers.Party) error {
	mount := or(m.Mount, "jwt")
	p.add(exchangers.Made{
		Type: mountType, Label: p.label,
		Values: exchangers.Fields{
			{Name: "path", Value: mount}, {Name: "type", Value: "jwt"}, {Name: "oidc_discovery_url", Value: f.Issuer}, {Name: "bound_issuer", Value: f.Issuer},
			{Name: "jwt_supported_algs", Value: exchangers.List("RS256")},
		},
		Script: []string{
			enable("jwt", mount),
			exchangers.Shell(vault, "write", "auth/"+mount+"/config", "oidc_discovery_url="+f.Issuer, "bound_issuer="+f.Issuer, "jwt_supported_algs=RS256"),
		},
	})
	kind, subjects := "string", []string{}
	for _, party := range parties {
		subject := party.SPIFFEID
		if !party.Exact() {
			kind = "glob"
			subject, _ = party.Globs()
		}
		subjects = append(subjects, subject)
	}
	claims := exchangers.Fields{{Name: "sub", Value: strings.Join(subjects, ",")}}
	role := exchangers.Fields{
		{Name: "role_type", Value: "jwt"}, {Name: "user_claim", Value: "sub"}, {Name: "bound_audiences", Value: exchangers.List(m.TokenAudience)},
		{Name: "bound_claims_type", Value: kind}, {Name: "bound_claims", Value: claims}, {Name: "token_ttl", Value: tokenTTL},
	}
	written := append(exchangers.Fields{}, role...)
	written[4].Value = exchangers.Fields{{Name: "sub", Value: exchangers.List(subjects...)}}
	p.add(exchangers.Made{
		Type: roleType, Label: p.label,
		Values: append(exchangers.Fields{
			{Name: "backend", Value: exchangers.Ref{Type: mountType, Label: p.label, Attr: "path", Known: mount}}, {Name: "role_name", Value: m.Role},
		}, role...),
		Script: []string{
			exchangers.ShellFile("role.json", written),
			exchangers.Shell(vault, "write", "auth/"+mount+"/role/"+m.Role, exchangers.FileWord("@", "role.json")),
		},
	})
	p.Notes = append(p.Notes, f.ReachNote("The server")+"; one with a certificate of a private CA wants oidc_discovery_ca_pem besides")
	if kind == "glob" {
		p.Notes = append(p.Notes, "a star of bound_claims goes beyond a segment of the SPIFFE ID, and no second pattern can hold it: see that no other Identity's SPIFFE ID is matched")
	}
	return nil
}

func (p *plan) certRole(f exchangers.Facts, m VaultCert, parties []exchangers.Party) error {
	trust, err := f.Trusted(len(f.Anchors))
	if err != nil {
		return err
	}
	if trust.Issuer != nil {
		return errors.New("the root signs for others too, each of whom could log in: a cert role can't ask for an issuer. Take anchor: ours in broker.yaml, or vault_jwt")
	}
	p.Notes = append(p.Notes, trust.Notes...)
	mount := or(m.Mount, "cert")
	p.add(exchangers.Made{
		Type: backendType, Label: p.label,
		Values: exchangers.Fields{{Name: "type", Value: "cert"}, {Name: "path", Value: mount}},
		Script: []string{enable("cert", mount)},
	})
	var uris []string
	for _, party := range parties {
		uri := party.SPIFFEID
		if !party.Exact() {
			uri, _ = party.Globs()
			p.Notes = append(p.Notes, "a star of allowed_uri_sans goes beyond a segment of the SPIFFE ID, and no second pattern can hold it: see that no other Identity's SPIFFE ID is matched")
		}
		uris = append(uris, uri)
		if !strings.Contains(strings.ToUpper(party.Subject), "CN=") {
			p.Notes = append(p.Notes, fmt.Sprintf("Identity %s has no CN in its x509.subject, and these servers name who logs in by it: give it subject: \"CN=%s\"", party.Identity, party.Identity))
		}
	}
	text := exchangers.PEM(trust.Anchors...)
	p.add(exchangers.Made{
		Type: certRoleType, Label: p.label,
		Values: exchangers.Fields{
			{Name: "backend", Value: exchangers.Ref{Type: backendType, Label: p.label, Attr: "path", Known: mount}}, {Name: "name", Value: m.Role},
			{Name: "certificate", Value: text}, {Name: "allowed_uri_sans", Value: exchangers.List(uris...)}, {Name: "token_ttl", Value: tokenTTL},
		},
		Script: []string{
			exchangers.ShellFile("bundle.pem", text),
			exchangers.Shell(vault, "write", "auth/"+mount+"/certs/"+m.Role, exchangers.FileWord("certificate=@", "bundle.pem"),
				"allowed_uri_sans="+strings.Join(uris, ","), fmt.Sprintf("token_ttl=%d", tokenTTL)),
		},
	})
	return nil
}

// notes say what any OAuth server has to know.
func (p *plan) notes(f exchangers.Facts, m mode, parties []exchangers.Party) {
	var subjects []string
	for _, party := range parties {
		subjects = append(subjects, party.SPIFFEID)
	}
	p.Notes = append(p.Notes,
		fmt.Sprintf("trust issuer %s: discovery at %s/.well-known/openid-configuration, keys at %s/keys, RS256", f.Issuer, f.Issuer, f.Issuer),
		fmt.Sprintf("take tokens whose aud is %s, byte for byte", m.audience()),
		fmt.Sprintf("and whose sub is %s", strings.Join(subjects, " or ")),
		map[string]string{
			"token_exchange":   "as the subject token of a token exchange (RFC 8693), type " + jwtType,
			"client_assertion": "as a client's assertion (RFC 7523 §2.2): register a client for each subject, without a secret",
			"jwt_bearer":       "as an authorization grant (RFC 7523 §2.1)",
		}[m.name()],
		"what is given for them is the server's to decide: map each sub to as little as the workload needs",
	)
}
