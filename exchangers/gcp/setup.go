package gcp

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/credence-id/credence/exchangers"
)

const (
	maxTrustAnchors = 3
	maxUploaded     = 8
	maxExpression   = 2048 // characters of a mapping

	poolType      = "google_iam_workload_identity_pool"
	providerType  = "google_iam_workload_identity_pool_provider"
	accountType   = "google_service_account"
	bindingType   = "google_service_account_iam_member"
	projectType   = "google_project_iam_member"
	identityUser  = "roles/iam.workloadIdentityUser"
	tokenCreator  = "roles/iam.serviceAccountTokenCreator"
	quotaConsumer = "roles/serviceusage.serviceUsageConsumer"
)

// Setup implements exchangers.Planner.
func (s Settings) Setup(f exchangers.Facts, c exchangers.Choices) (exchangers.Plan, error) {
	if c.ManagedIdentity != "" || c.UploadKeys && s.x509() {
		return exchangers.Plan{}, errors.New("a managed identity is for azure, and an X.509 provider has no keys to upload")
	}
	parties, err := f.Listed()
	if err != nil {
		return exchangers.Plan{}, err
	}
	part := strings.Split(s.name(), "/") // projects/NUMBER/locations/global/workloadIdentityPools/POOL/providers/PROVIDER
	p := &plan{label: f.Target.Label(), project: part[1], pool: part[5], provider: part[7], assertion: "assertion.sub"}
	if s.x509() {
		p.assertion = "assertion.san.uri"
	}
	p.Target, p.Flow, p.Cloud = f.Target.Name, f.Target.Flow, exchangers.Cloud{Name: "gcp", Account: p.project}
	p.Provider = exchangers.Provider{Name: "google", Source: "hashicorp/google", Version: ">= 6.10"}
	p.Guard = []string{exchangers.Shell("export", "CLOUDSDK_CORE_DISABLE_PROMPTS=1")}
	p.makePool(f)
	if s.x509() {
		err = p.makeX509(f, parties)
	} else {
		err = p.makeOIDC(f, parties, c.UploadKeys)
	}
	if err != nil {
		return exchangers.Plan{}, err
	}
	p.bind(s, parties)
	p.Notes = append(p.Notes, fmt.Sprintf("provider %s admits the Identities of this Target alone: give another Target a provider of its own in the pool", p.provider))
	for _, party := range parties {
		if !party.Exact() {
			p.Notes = append(p.Notes, party.TemplateNote())
		}
	}
	return p.Plan, nil
}

// A plan is one of Google Cloud.
type plan struct {
	exchangers.Plan
	label, project, pool, provider string
	assertion                      string // the SPIFFE ID, in CEL
}

func (p *plan) add(m exchangers.Made) { p.Resources = append(p.Resources, m) }

// flags are those that say where a pool is.
func (p *plan) flags(words ...any) []any {
	return append(words, "--location=global", "--project="+p.project)
}

// either writes a command for what is there, and one for what is not.
func either(there, change, create []any) []string {
	lines := []string{"if " + exchangers.Shell(there...) + " > /dev/null 2>&1; then", "  :", "else", "  " + exchangers.Shell(create...), "fi"}
	if change != nil {
		lines[1] = "  " + exchangers.Shell(change...)
	}
	return lines
}

func (p *plan) makePool(f exchangers.Facts) {
	group := []any{"gcloud", "iam", "workload-identity-pools"}
	p.add(exchangers.Made{
		Type: poolType, Label: p.label,
		Values: exchangers.Fields{
			{Name: "project", Value: p.project}, {Name: "workload_identity_pool_id", Value: p.pool}, {Name: "display_name", Value: clip(f.TrustDomain.Name(), 32)},
		},
		Script: either(p.flags(append(group, "describe", p.pool)...), nil,
			p.flags(append(group, "create", p.pool, "--display-name="+clip(f.TrustDomain.Name(), 32))...)),
	})
}

func clip(s string, most int) string { return s[:min(most, len(s))] }

// text is a string in CEL. SPIFFE IDs and names of ours have nothing to escape;
// names of certificates may.
func celText(s string) string { return strconv.Quote(s) }

// subject maps google.subject: to the SPIFFE ID or, of those that are too long
// for it, to a name of the Identity's.
func (p *plan) subject(parties []exchangers.Party) (string, error) {
	mapped := p.assertion
	for i := len(parties) - 1; i >= 0; i-- {
		if party := parties[i]; party.Exact() && len(party.SPIFFEID) > maxSubject {
			if p.assertion != "assertion.sub" {
				return "", fmt.Errorf("identity %s: %s has %d bytes, and a subject %d: an X509-SVID with a longer one is not presented", party.Identity, party.SPIFFEID, len(party.SPIFFEID), maxSubject)
			}
			mapped = fmt.Sprintf("%s == %s ? %s : %s", p.assertion, celText(party.SPIFFEID), celText(subjectOf(party)), mapped)
			p.Notes = append(p.Notes, fmt.Sprintf("%s has %d bytes, and a subject %d: it is mapped to %s, which the bindings name", party.SPIFFEID, len(party.SPIFFEID), maxSubject, subjectOf(party)))
		}
	}
	if len(mapped) > maxExpression {
		return "", fmt.Errorf("the SPIFFE IDs that are longer than %d bytes make a mapping of %d characters, and %d are taken: shorten them, or make several Targets of this one", maxSubject, len(mapped), maxExpression)
	}
	return mapped, nil
}

// subjectOf is the google.subject of a party whose SPIFFE ID is one.
func subjectOf(p exchangers.Party) string {
	if len(p.SPIFFEID) <= maxSubject {
		return p.SPIFFEID
	}
	sum := sha256.Sum256([]byte(p.SPIFFEID))
	return fmt.Sprintf("credence:%s:%x", p.Identity, sum[:8])
}

// mapping is the provider's. A template is told by an attribute.
func (p *plan) mapping(parties []exchangers.Party) (exchangers.Fields, error) {
	subject, err := p.subject(parties)
	if err != nil {
		return nil, err
	}
	fields, attribute := exchangers.Fields{{Name: "google.subject", Value: subject}}, "\"\""
	for i := len(parties) - 1; i >= 0; i-- {
		if party := parties[i]; !party.Exact() {
			attribute = fmt.Sprintf("%s.matches(%s) ? %s : %s", p.assertion, celText(party.Regexp()), celText(party.Identity), attribute)
		}
	}
	if attribute == "\"\"" {
		return fields, nil
	}
	if len(attribute) > maxExpression {
		return nil, fmt.Errorf("the Identities with templates make a mapping of %d characters, and %d are taken: make several Targets of this one", len(attribute), maxExpression)
	}
	return append(fields, exchangers.Field{Name: "attribute.identity", Value: attribute}), nil
}

// condition admits the parties alone; where that is too long, the trust domain.
func (p *plan) condition(f exchangers.Facts, parties []exchangers.Party, issuer *x509.Certificate) string {
	var exact, terms []string
	for _, party := range parties {
		if party.Exact() {
			exact = append(exact, celText(party.SPIFFEID))
		} else {
			terms = append(terms, fmt.Sprintf("%s.matches(%s)", p.assertion, celText(party.Regexp())))
		}
	}
	if len(exact) > 0 {
		terms = append([]string{fmt.Sprintf("%s in [%s]", p.assertion, strings.Join(exact, ", "))}, terms...)
	}
	who, pinned := strings.Join(terms, " || "), ""
	if issuer != nil {
		pinned = fmt.Sprintf(" && assertion.issuer.dn.cn == %s", celText(issuer.Subject.CommonName))
		if o := issuer.Subject.Organization; len(o) > 0 {
			pinned += fmt.Sprintf(" && assertion.issuer.dn.o == %s", celText(o[0]))
		}
		if ou := issuer.Subject.OrganizationalUnit; len(ou) > 0 {
			pinned += fmt.Sprintf(" && assertion.issuer.dn.ou == %s", celText(ou[0]))
		}
	}
	if len(who)+len(pinned)+2 > maxCondition {
		who = fmt.Sprintf("%s.startsWith(%s)", p.assertion, celText(f.TrustDomain.IDString()+"/"))
		p.Notes = append(p.Notes, fmt.Sprintf("the condition admits the whole trust domain: that of %d Identities would be too long. The bindings name each", len(parties)))
	}
	if len(terms) > 1 && pinned != "" {
		who = "(" + who + ")"
	}
	return who + pinned
}

func (p *plan) makeOIDC(f exchangers.Facts, parties []exchangers.Party, upload bool) error {
	if err := f.Issues(); err != nil {
		return err
	}
	oidc := exchangers.Fields{{Name: "issuer_uri", Value: f.Issuer}}
	more := []any{"--issuer-uri=" + f.Issuer}
	var file []string
	if upload {
		if len(f.JWKS) == 0 || len(f.Keys) > 2*maxUploaded {
			return errors.New("there are no keys to upload yet: credence ca show says what they wait for")
		}
		oidc = append(oidc, exchangers.Field{Name: "jwks_json", Value: string(f.JWKS)})
		file = []string{exchangers.ShellFile("jwks.json", exchangers.Text(f.JWKS))}
		more = append(more, exchangers.Word(`--jwk-json-path="$dir/jwks.json"`))
		p.Notes = append(p.Notes, "the keys are handed over as they are now: set up again after each rotation (credence ca show) and before the next key signs, or every exchange fails")
	} else {
		p.Notes = append(p.Notes, f.ReachNote("Google"))
	}
	return p.makeProvider(f, parties, nil, "oidc", exchangers.Blocks{oidc}, more, file)
}

func (p *plan) makeX509(f exchangers.Facts, parties []exchangers.Party) error {
	trust, err := f.Trusted(maxTrustAnchors)
	if err != nil {
		return err
	}
	if trust.Issuer != nil && trust.Issuer.Subject.CommonName == "" {
		return errors.New("the root signs for others too, and our issuing CA has no common name to tell it by: take anchor: ours in broker.yaml")
	}
	p.Notes = append(p.Notes, trust.Notes...)
	var anchors exchangers.Blocks
	config := "trustStore:\n  trustAnchors:\n"
	for _, c := range trust.Anchors {
		text := exchangers.PEM(c)
		anchors = append(anchors, exchangers.Fields{{Name: "pem_certificate", Value: text}})
		config += "  - pemCertificate: |\n      " + strings.ReplaceAll(strings.TrimSuffix(string(text), "\n"), "\n", "\n      ") + "\n"
	}
	x := exchangers.Blocks{{{Name: "trust_store", Value: exchangers.Blocks{{{Name: "trust_anchors", Value: anchors}}}}}}
	return p.makeProvider(f, parties, trust.Issuer, "x509", x, []any{exchangers.Word(`--trust-store-config-path="$dir/trust-store.yaml"`)},
		[]string{exchangers.ShellFile("trust-store.yaml", exchangers.Text(config))})
}

// makeProvider makes the OIDC or X.509 provider.
func (p *plan) makeProvider(f exchangers.Facts, parties []exchangers.Party, issuer *x509.Certificate, kind string, own exchangers.Blocks, more []any, before []string) error {
	mapping, err := p.mapping(parties)
	if err != nil {
		return err
	}
	condition := p.condition(f, parties, issuer)
	var maps []string
	for _, m := range mapping {
		maps = append(maps, m.Name+"="+m.Value.(string))
	}
	group := []any{"gcloud", "iam", "workload-identity-pools", "providers"}
	// ^;^ makes the list's separator one that stands in no expression of ours.
	flags := p.flags(append([]any{p.provider, "--workload-identity-pool=" + p.pool,
		"--attribute-mapping=^;^" + strings.Join(maps, ";"), "--attribute-condition=" + condition}, more...)...)
	p.add(exchangers.Made{
		Type: providerType, Label: p.label,
		Values: exchangers.Fields{
			{Name: "project", Value: p.project},
			{Name: "workload_identity_pool_id", Value: exchangers.Ref{Type: poolType, Label: p.label, Attr: "workload_identity_pool_id", Known: p.pool}},
			{Name: "workload_identity_pool_provider_id", Value: p.provider},
			{Name: "attribute_mapping", Value: mapping}, {Name: "attribute_condition", Value: condition}, {Name: kind, Value: own},
		},
		Script: append(before, either(p.flags(append(group, "describe", p.provider, "--workload-identity-pool="+p.pool)...),
			append(append(group[:len(group):len(group)], "update-"+kind), flags...), append(append(group[:len(group):len(group)], "create-"+kind), flags...))...),
	})
	return nil
}
