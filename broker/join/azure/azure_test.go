package azure_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	evidence "github.com/credence-id/credence/agent/evidence/azure"
	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/azure"
	"github.com/credence-id/credence/broker/join/bearer"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

const (
	domain       = "example.org"
	audience     = "api://credence.example.org"
	tenant       = "11111111-2222-4333-8444-555555555555"
	otherTenant  = "99999999-2222-4333-8444-555555555555"
	subscription = "5f130ffc-0a3e-4795-b691-4f56a12a5547"
	machineID    = "bd8e7443-24a0-41f3-b949-8baf4fd1c573"
	object       = "0b1c2d3e-0000-4000-8000-00000000000a"
	client       = "0b1c2d3e-0000-4000-8000-00000000000b"
	version1     = "https://sts.windows.net/" + tenant + "/"
	version2     = "https://login.microsoftonline.com/" + tenant + "/v2.0"
	inGroup      = "/subscriptions/" + subscription + "/resourcegroups/Shop/providers/"
	vm           = inGroup + "Microsoft.Compute/virtualMachines/Web-1"
	scaleSet     = inGroup + "Microsoft.Compute/virtualMachineScaleSets/pool"
	userAssigned = inGroup + "Microsoft.ManagedIdentity/userAssignedIdentities/deploy"
)

var start = time.Date(2026, 12, 1, 10, 20, 30, 0, time.UTC)

// claims are those of a machine's own identity, in version 1.
func claims(changes map[string]any) map[string]any {
	return issuertest.With(map[string]any{
		"iss": version1, "aud": audience, "tid": tenant, "ver": "1.0", "idtyp": "app", "appid": client, "appidacr": "2", "oid": object, "sub": object, "rh": "1.AX",
		"iat": start.Add(-5 * time.Minute).Unix(), "nbf": start.Add(-5 * time.Minute).Unix(), "exp": start.Add(24 * time.Hour).Unix(), "xms_mirid": vm, "uti": "a",
	}, changes)
}

// inVersion2 are the same, with changes.
func inVersion2(changes map[string]any) map[string]any {
	return issuertest.With(claims(map[string]any{"iss": version2, "ver": "2.0", "appid": nil, "appidacr": nil, "azp": client, "azpacr": "2"}), changes)
}

func sign(t testing.TB, claims map[string]any) string {
	t.Helper()
	return issuertest.Sign(t, issuertest.RSA(), "RS256", nil, claims)
}

// content is what Azure signs about a machine.
func content(nonce string, changes map[string]any) []byte {
	all := map[string]any{
		"licenseType": "", "nonce": nonce, "plan": map[string]any{"name": "", "product": "", "publisher": ""}, "sku": "20_04-lts-gen2", "subscriptionId": subscription, "vmId": machineID,
		"timeStamp": map[string]any{"createdOn": "12/01/26 10:20:30 -0000", "expiresOn": "12/01/26 16:20:30 -0000"},
	}
	maps.Copy(all, changes)
	text, err := json.Marshal(all)
	if err != nil {
		panic(err) // strings always encode
	}
	return text
}

// An authority is Azure's, or somebody's who would be it.
type authority struct{ root, issuing *issuertest.CA }

func newAuthority(t testing.TB) authority {
	root := issuertest.NewCA(t, "Root", start, nil)
	return authority{root, issuertest.NewCA(t, "Issuing 02", start, root)}
}

func (a authority) signer(t testing.TB, key crypto.Signer, changes ...func(*x509.Certificate)) *x509.Certificate {
	return a.issuing.Issue(t, "spiffe://unused.example", start, key.Public(), append([]func(*x509.Certificate){func(c *x509.Certificate) {
		c.URIs, c.DNSNames, c.NotAfter = nil, []string{"metadata.azure.com", "westeurope.metadata.azure.com"}, start.AddDate(0, 6, 0)
	}}, changes...)...)
}

func text(all ...*x509.Certificate) (out string) {
	for _, c := range all {
		out += string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return out
}

var theirs = sync.OnceValue(func() crypto.Signer { return issuertest.NewRSA(2048) })

// A world is a broker's memory and clock, and a machine of Azure's.
type world struct {
	t         testing.TB
	now       time.Time
	settings  string
	azure     authority
	by        signer
	identity  map[string]any             // claims of its token
	document  func(nonce string) message // nil: as it should be
	published map[string]any             // by URL
	held      map[[32]byte]string        // holders
	key       identity.KeyDigest         // the node's
	der       []byte                     // the same
	metadata  *httptest.Server
	log       bytes.Buffer

	mu    sync.Mutex // guards what follows
	asked []string
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, now: start, azure: newAuthority(t), identity: claims(nil), held: map[[32]byte]string{}, published: map[string]any{
		version1 + ".well-known/openid-configuration":                  map[string]any{"issuer": version1, "jwks_uri": "https://login.windows.net/common/discovery/keys"},
		version2 + "/.well-known/openid-configuration":                 map[string]any{"issuer": version2, "jwks_uri": "https://login.microsoftonline.com/common/discovery/v2.0/keys"},
		"https://login.windows.net/common/discovery/keys":              issuertest.KeySet(issuertest.JWK("k1", issuertest.RSA().Public())),
		"https://login.microsoftonline.com/common/discovery/v2.0/keys": issuertest.KeySet(issuertest.JWK("k1", issuertest.RSA().Public())),
	}}
	w.settings = "{tenants: [" + tenant + "], audience: '" + audience + "'}"
	w.by = signer{issuertest.RSA(), w.azure.signer(t, issuertest.RSA())}
	w.nodeKey()
	w.metadata = httptest.NewServer(http.HandlerFunc(w.serve))
	t.Cleanup(w.metadata.Close)
	return w
}

// nodeKey gives the node another key.
func (w *world) nodeKey() {
	w.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	if w.key, err = identity.DigestKey(key.Public()); err != nil {
		w.t.Fatal(err)
	}
	if w.der, err = x509.MarshalPKIXPublicKey(key.Public()); err != nil {
		w.t.Fatal(err)
	}
}

// serve is instance metadata, as strict as Azure's.
func (w *world) serve(out http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	switch {
	case r.Header.Get("Metadata") != "true" || r.Header.Get("X-Forwarded-For") != "" || r.Method != http.MethodGet:
		out.WriteHeader(http.StatusBadRequest)
	case r.URL.Path == "/metadata/identity/oauth2/token" && q.Get("api-version") == "2018-02-01" && len(q["resource"]) == 1:
		fmt.Fprintf(out, `{"access_token":%q,"expires_in":"86399","resource":%q,"token_type":"Bearer"}`, sign(w.t, w.identity), q.Get("resource"))
	case r.URL.Path == "/metadata/attested/document" && q.Get("api-version") == "2021-02-01" && len(q.Get("nonce")) <= 32:
		fmt.Fprintf(out, `{"encoding":"pkcs7","signature":%q}`, base64.StdEncoding.EncodeToString(w.attest(q.Get("nonce")).der(w.t)))
	default:
		out.WriteHeader(http.StatusBadRequest)
	}
}

func (w *world) attest(nonce string) message {
	if w.document != nil {
		return w.document(nonce)
	}
	return message{by: w.by, content: content(nonce, nil)}
}

func (w *world) hold(_ context.Context, digest [32]byte, holder string, ends, _ time.Time) error {
	if ends.Before(start.Add(24*time.Hour + bearer.Skew)) {
		w.t.Errorf("it is held until %s, and a token is good after that", ends)
	}
	if by, ok := w.held[digest]; ok && by != holder {
		return broker.ErrSpent
	}
	w.held[digest] = holder
	return nil
}

func (w *world) config() azure.Config {
	w.t.Helper()
	s := new(azure.Settings)
	if err := yaml.UnmarshalWithOptions([]byte(w.settings), s, yaml.Strict()); err != nil {
		w.t.Fatal(err)
	}
	if s.Roots == "" && s.Require != "token" {
		s.Roots, s.Intermediates = text(w.azure.root.Certificate), text(w.azure.issuing.Certificate)
	}
	return azure.Config{Settings: s, TrustDomain: domain, Hold: w.hold, Taken: func(err error) bool { return errors.Is(err, broker.ErrSpent) },
		Now: func() time.Time { return w.now }, Log: slog.New(slog.NewTextHandler(&w.log, nil)),
		Get: func(_ context.Context, url string) ([]byte, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.asked = append(w.asked, url)
			document, ok := w.published[url]
			if !ok {
				return nil, fmt.Errorf("%s: status 404", url)
			}
			return json.Marshal(document)
		}}
}

func (w *world) method() join.Method {
	w.t.Helper()
	m, err := azure.New(w.config())
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

func (w *world) node() evidence.Config {
	return evidence.Config{TrustDomain: domain, Audience: audience, Endpoint: w.metadata.URL}
}

// answer is the agent's own, for the key that it joins with.
func (w *world) answer(ctx context.Context, challenge []byte) ([]byte, error) {
	return w.node().Answer(ctx, challenge, w.der)
}

// join is how the machine joins, by the agent's own code.
func (w *world) join() (join.Proof, error) {
	w.t.Helper()
	shown, err := w.node().Evidence(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return w.method().Join(join.WithKey(w.t.Context(), w.key), shown, w.answer)
}

func facts(all map[string]string) map[string][]string {
	out := map[string][]string{}
	for name, value := range all {
		out["node.azure."+name] = []string{value}
	}
	return out
}

func TestJoin(t *testing.T) {
	w := newWorld(t)
	proof, err := w.join()
	if err != nil {
		t.Fatal(err)
	}
	if proof.Name != "web-1" || proof.Instance != "" || proof.DurableKey != `["machine","`+subscription+`","`+machineID+`"]` {
		t.Errorf("%+v", proof)
	}
	if d := cmp.Diff(facts(map[string]string{
		"tenant": tenant, "object_id": object, "client_id": client, "subscription": subscription, "resource_group": "shop", "vm": "web-1", "vm_id": machineID,
	}), proof.Facts.Map()); d != "" {
		t.Error(d)
	}
	w.nodeKey()
	if again, err := w.join(); err != nil || again.DurableKey != proof.DurableKey { // Azure gives the same token again
		t.Errorf("again: %v, %v", again, err)
	}
	for _, row := range []struct {
		name, as string
		claims   map[string]any
		facts    map[string]string
	}{
		{"version 2", "web-1", inVersion2(nil), map[string]string{"vm": "web-1", "client_id": client}},
		{"other cases", "web-1", claims(map[string]any{"xms_mirid": strings.ToUpper(vm), "oid": strings.ToUpper(object)}), map[string]string{"vm": "web-1", "resource_group": "shop"}},
		{"an identity that several have", "web-1", claims(map[string]any{"xms_mirid": userAssigned, "xms_az_rid": vm}), map[string]string{"vm": "web-1", "identity": "deploy", "identity_group": "shop", "identity_subscription": subscription}},
		{"an identity that tells no machine", machineID, claims(map[string]any{"xms_mirid": strings.Replace(userAssigned, subscription, otherTenant, 1)}), map[string]string{"vm": "", "identity": "deploy", "identity_subscription": otherTenant, "subscription": subscription}},
		{"a scale set", machineID, claims(map[string]any{"xms_mirid": scaleSet}), map[string]string{"scale_set": "pool", "scale_set_instance": "", "vm": ""}},
		{"a scale set's machine", "pool", claims(map[string]any{"xms_mirid": scaleSet, "xms_az_rid": scaleSet + "/virtualMachines/3"}), map[string]string{"scale_set": "pool", "scale_set_instance": "3"}},
		{"both claims alike", "web-1", claims(map[string]any{"xms_az_rid": strings.ToLower(vm)}), map[string]string{"vm": "web-1"}},
		{"one audience in a list", "web-1", claims(map[string]any{"aud": []string{audience}}), nil},
		{"no idtyp", "web-1", claims(map[string]any{"idtyp": nil}), nil},
	} {
		w := newWorld(t)
		w.identity = row.claims
		proof, err := w.join()
		if err != nil || proof.Name != row.as || proof.DurableKey != `["machine","`+subscription+`","`+machineID+`"]` {
			t.Errorf("%s: %+v, %v", row.name, proof, err)
			continue
		}
		for name, want := range row.facts {
			if got := strings.Join(proof.Facts.Get("node.azure."+name), " "); got != want {
				t.Errorf("%s: %s is %q, want %q", row.name, name, got, want)
			}
		}
	}
}

// Whatever is not the tenant's word about a managed identity, to us and now, is
// refused before a challenge is put, and leads nowhere.
//
// Regression: CVE-2026-11800
// Regression: CVE-2025-52477
func TestTokens(t *testing.T) {
	w := newWorld(t)
	w.settings = "{tenants: [" + tenant + ", " + otherTenant + "], audience: '" + audience + "'}"
	const neighbour = "https://sts.windows.net/" + otherTenant + "/"
	w.published[neighbour+".well-known/openid-configuration"] = map[string]any{"issuer": neighbour, "jwks_uri": "https://login.windows.net/common/discovery/keys"} // Azure's tenants have the same
	rows := map[string]string{}
	for name, c := range map[string]map[string]any{
		"another audience":                 claims(map[string]any{"aud": "api://credence.example.com"}),
		"Azure's audience":                 claims(map[string]any{"aud": "https://management.azure.com/"}),
		"an audience's slash":              claims(map[string]any{"aud": audience + "/"}),
		"an audience's list":               claims(map[string]any{"aud": []string{audience, "https://management.azure.com/"}}),
		"no audience":                      claims(map[string]any{"aud": nil}),
		"another tenant":                   claims(map[string]any{"iss": "https://sts.windows.net/" + object + "/", "tid": object}),
		"another tenant's claim":           claims(map[string]any{"tid": otherTenant}),
		"another tenant's issuer":          claims(map[string]any{"iss": "https://sts.windows.net/" + otherTenant + "/"}),
		"no tenant":                        claims(map[string]any{"tid": nil}),
		"many tenants":                     claims(map[string]any{"tid": []string{tenant}}),
		"the common tenant":                claims(map[string]any{"iss": "https://sts.windows.net/common/"}),
		"a tenant in a template":           claims(map[string]any{"iss": "https://login.microsoftonline.com/{tenantid}/v2.0"}),
		"an issuer without its slash":      claims(map[string]any{"iss": strings.TrimSuffix(version1, "/")}),
		"an issuer's suffix":               claims(map[string]any{"iss": version1 + ".evil.example"}),
		"an issuer's prefix":               claims(map[string]any{"iss": "https://evil.example/" + version1}),
		"an issuer's case":                 claims(map[string]any{"iss": "https://STS.windows.net/" + tenant + "/"}),
		"an issuer's dots":                 claims(map[string]any{"iss": "https://sts.windows.net/x/../" + tenant + "/"}),
		"an issuer's homograph":            claims(map[string]any{"iss": "https://sts.windоws.net/" + tenant + "/"}),
		"another cloud's issuer":           claims(map[string]any{"iss": "https://sts.chinacloudapi.cn/" + tenant + "/"}),
		"no issuer":                        claims(map[string]any{"iss": nil}),
		"version 2 of issuer 1":            inVersion2(map[string]any{"iss": version1}),
		"version 1 of issuer 2":            claims(map[string]any{"iss": version2}),
		"no version":                       claims(map[string]any{"ver": nil}),
		"expired":                          claims(map[string]any{"exp": start.Add(-61 * time.Second).Unix()}),
		"of the future":                    claims(map[string]any{"iat": start.Add(61 * time.Second).Unix(), "nbf": nil}),
		"too old":                          claims(map[string]any{"iat": start.Add(-24*time.Hour - 61*time.Second).Unix()}),
		"without an age":                   claims(map[string]any{"iat": nil}),
		"of a person":                      claims(map[string]any{"scp": "user_impersonation", "idtyp": "user", "upn": "ana@acme.example"}),
		"of a person's scope":              claims(map[string]any{"scp": "user_impersonation"}),
		"of a person's kind":               claims(map[string]any{"idtyp": "user"}),
		"of a device":                      claims(map[string]any{"idtyp": "device"}),
		"of a pairwise subject":            claims(map[string]any{"sub": "Xv2kLqZ"}),
		"of another's subject":             claims(map[string]any{"sub": client}),
		"of no object":                     claims(map[string]any{"oid": nil}),
		"of no application":                claims(map[string]any{"appid": nil}),
		"of an application's name":         claims(map[string]any{"appid": "deploy"}),
		"of two applications":              claims(map[string]any{"azp": otherTenant}),
		"of version 2's claim in 1":        claims(map[string]any{"appid": nil, "azp": client}),
		"of version 1's claim in 2":        inVersion2(map[string]any{"azp": nil, "appid": client}),
		"of an app with a secret":          claims(map[string]any{"xms_mirid": nil, "appidacr": "1"}),
		"of a machine but no identity":     claims(map[string]any{"xms_mirid": nil, "xms_az_rid": vm}),
		"of a list of identities":          claims(map[string]any{"xms_mirid": []string{vm}}),
		"of a claim's other spelling":      claims(map[string]any{"xms_mirid": nil, "XMS_MIRID": vm}),
		"of a web site":                    claims(map[string]any{"xms_mirid": inGroup + "Microsoft.Web/sites/shop"}),
		"of an Arc machine":                claims(map[string]any{"xms_mirid": inGroup + "Microsoft.HybridCompute/machines/web-1"}),
		"on another machine":               claims(map[string]any{"xms_az_rid": inGroup + "Microsoft.Compute/virtualMachines/web-2"}),
		"on an identity":                   claims(map[string]any{"xms_mirid": userAssigned, "xms_az_rid": userAssigned}),
		"on a number":                      claims(map[string]any{"xms_mirid": userAssigned, "xms_az_rid": 1}),
		"on a machine of another set":      claims(map[string]any{"xms_mirid": scaleSet, "xms_az_rid": scaleSet + "2/virtualMachines/3"}),
		"on a set, of a machine of it":     claims(map[string]any{"xms_mirid": scaleSet + "/virtualMachines/3", "xms_az_rid": scaleSet}),
		"of another subscription's system": claims(map[string]any{"xms_az_rid": strings.Replace(vm, subscription, otherTenant, 1)}),
	} {
		rows[name] = sign(t, c)
	}
	good := sign(t, claims(nil))
	other := theirs()
	rows["by another's key of its number"] = issuertest.Sign(t, other, "RS256", nil, claims(nil))
	rows["by an unknown key"] = issuertest.Sign(t, other, "RS256", map[string]any{"kid": "k2"}, claims(nil))
	rows["by a key that it brings"] = issuertest.Sign(t, other, "RS256", map[string]any{"jwk": issuertest.JWK("k1", other.Public())}, claims(nil))
	rows["by a chain that it brings"] = issuertest.Sign(t, other, "RS256", map[string]any{"x5c": []string{"AAAA"}}, claims(nil))
	rows["by a key that it links"] = issuertest.Sign(t, other, "RS256", map[string]any{"jku": "https://evil.example/keys"}, claims(nil))
	rows["by nothing"] = issuertest.Sign(t, issuertest.RSA(), "none", nil, claims(nil))
	rows["by another algorithm"] = issuertest.Sign(t, issuertest.RSA(), "PS256", nil, claims(nil))
	rows["nothing"] = ""
	rows["truncated"] = good[:len(good)-8]
	rows["oversized"] = good + strings.Repeat("A", 16<<10)
	rows["dots"] = strings.Repeat(".", 16<<10)
	m := w.method()
	for name, token := range rows {
		shown, err := json.Marshal(map[string]string{"token": token})
		if err != nil {
			t.Fatal(err)
		}
		proof, err := m.Join(join.WithKey(t.Context(), w.key), shown, func(context.Context, []byte) ([]byte, error) {
			t.Errorf("a token %s: a challenge is put", name)
			return nil, errors.New("no")
		})
		if !errors.Is(err, join.ErrEvidence) || proof.DurableKey != "" {
			t.Errorf("a token %s: %v, %v", name, proof, err)
		}
	}
	for _, url := range w.asked {
		if _, ok := w.published[url]; !ok {
			t.Errorf("%s was asked", url)
		}
	}
	for name, text := range map[string]string{
		"nothing": "", "a token alone": good, "a list": "[]", "null": "null", "{}": "{}", "a token twice": `{"token":"` + good + `","token":"` + good + `"}`,
		"a document beside it": `{"token":"` + good + `","document":"MIIC"}`, "no text": `{"token":1}`,
	} {
		if _, err := m.Join(join.WithKey(t.Context(), w.key), []byte(text), nil); !errors.Is(err, join.ErrEvidence) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(w.held) != 0 {
		t.Errorf("%d are held", len(w.held))
	}
}

// Where an issuer can't be asked nothing is judged.
func TestIssuerAway(t *testing.T) {
	w := newWorld(t)
	clear(w.published)
	if _, err := w.join(); err == nil || errors.Is(err, join.ErrEvidence) {
		t.Error(err)
	}
}

// Only the true signer counts: the one certificate that the message names as its
// signer's, whose key made the signature, that is the metadata service's by name and
// ends in the rule's roots. What the bag holds besides decides nothing.
//
// Regression: SPIRE azure_imds
func TestSigners(t *testing.T) {
	w := newWorld(t)
	rogue := authority{root: issuertest.NewCA(t, "Root", start, issuertest.NewCA(t, "Another", start, nil))}
	rogue.issuing = issuertest.NewCA(t, "Issuing 02", start, rogue.root)
	key := theirs().(interface {
		crypto.Signer
	})
	rsaKey := keyOf(t, key)
	with := func(a authority, changes ...func(*x509.Certificate)) signer {
		return signer{rsaKey, a.signer(t, key, changes...)}
	}
	named := func(names ...string) signer {
		return with(w.azure, func(c *x509.Certificate) { c.DNSNames = names })
	}
	evil := with(rogue)               // Azure's name, under a root of its own
	site := named("www.evil.example") // a certificate that anybody can have
	twin := with(rogue, func(c *x509.Certificate) { c.DNSNames = []string{"metadata.azure.com"} })
	root, issuing := w.azure.root.Certificate, w.azure.issuing.Certificate
	good := func(nonce string) message { return message{by: w.by, content: content(nonce, nil)} }
	change := func(f func(*message)) func(string) message {
		return func(nonce string) message { m := good(nonce); f(&m); return m }
	}
	by := func(s signer, bag ...*x509.Certificate) func(string) message {
		return change(func(m *message) { m.by, m.bag = s, bag })
	}
	rows := map[string]func(string) message{
		"another root's":                    by(evil),
		"another root's, with its chain":    by(evil, evil.cert, rogue.issuing.Certificate, rogue.root.Certificate),
		"another root's, Azure's first":     by(evil, w.by.cert, evil.cert),
		"another root's, Azure's last":      by(evil, evil.cert, w.by.cert),
		"another root's, all of Azure's":    by(evil, w.by.cert, issuing, root, evil.cert, rogue.issuing.Certificate),
		"another root's, Azure's alone":     by(evil, w.by.cert),
		"another who says he's Azure":       change(func(m *message) { m.by, m.named, m.bag = evil, w.by.cert, []*x509.Certificate{w.by.cert} }),
		"another who says he's Azure, both": change(func(m *message) { m.by, m.named, m.bag = evil, w.by.cert, []*x509.Certificate{w.by.cert, evil.cert} }),
		"a site's under Azure's root":       by(site),
		"a site's, Azure's first":           by(site, w.by.cert, site.cert),
		"a site's, Azure's last":            by(site, site.cert, w.by.cert),
		"two signers, Azure's first":        change(func(m *message) { m.more = [][]byte{message{by: evil, content: m.content}.info(t)} }),
		"two signers, Azure's last":         change(func(m *message) { m.more, m.by = [][]byte{m.info(t)}, evil }),
		"Azure twice":                       change(func(m *message) { m.more = [][]byte{m.info(t)} }),
		"no bag":                            change(func(m *message) { m.noBag = true }),
		"an empty bag":                      change(func(m *message) { m.bag = []*x509.Certificate{} }),
		"the signer's certificate twice":    change(func(m *message) { m.bag = []*x509.Certificate{w.by.cert, w.by.cert} }),
		"a bag of nine": change(func(m *message) {
			m.bag = []*x509.Certificate{w.by.cert, root, root, root, root, root, root, root, root}
		}),
		"another content": func(nonce string) message {
			m := good(nonce)
			m.shown = content(nonce, map[string]any{"vmId": otherTenant})
			return m
		},
		"another digest":                         change(func(m *message) { m.digest = sha1OID }),
		"another algorithm":                      change(func(m *message) { m.algorithm = oid(1, 5) }),
		"PSS":                                    change(func(m *message) { m.algorithm = oid(1, 10) }),
		"attributes of another content":          change(func(m *message) { m.attributes = attributes([]byte("{}")) }),
		"a name that has Azure's":                by(named("metadata.azure.com.evil.example")),
		"a name that ends so":                    by(named("evilmetadata.azure.com")),
		"a name beside it":                       by(named("azure.com", "management.azure.com")),
		"another cloud's name":                   by(named("metadata.azure.us")),
		"a name in its subject":                  by(with(w.azure, func(c *x509.Certificate) { c.DNSNames, c.Subject.CommonName = nil, "metadata.azure.com" })),
		"names without end":                      by(named(append(manyNames(64), "metadata.azure.com")...)),
		"a CA's":                                 by(with(w.azure, func(c *x509.Certificate) { c.IsCA = true })),
		"a mail signer's":                        by(with(w.azure, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection} })),
		"one that ended":                         by(with(w.azure, func(c *x509.Certificate) { c.NotAfter = start.Add(-time.Second) })),
		"one of the future":                      by(with(w.azure, func(c *x509.Certificate) { c.NotBefore = start.Add(time.Second) })),
		"one under another that has Azure's key": by(twin, twin.cert, issuing, root),
	}
	for name, document := range rows {
		t.Run(name, func(t *testing.T) {
			w.document = document
			if proof, err := w.join(); !errors.Is(err, join.ErrEvidence) || proof.DurableKey != "" {
				t.Errorf("%v, %v", proof, err)
			}
		})
	}
	if len(w.held) != 0 {
		t.Errorf("%d are held", len(w.held))
	}
	for name, document := range map[string]func(string) message{
		"as it is":           good,
		"with its chain":     by(w.by, issuing, w.by.cert, root),
		"with another's":     by(w.by, evil.cert, w.by.cert),
		"the digest's name":  change(func(m *message) { m.digest, m.algorithm = sha256OID, sha256OID }),
		"the signature's":    change(func(m *message) { m.algorithm = sha256RSAOID }),
		"with attributes":    change(func(m *message) { m.attributes = attributes(m.content) }),
		"a region's name":    by(named("westeurope.metadata.azure.com")),
		"a name in capitals": by(named("Metadata.Azure.com")),
	} {
		w.document = document
		if _, err := w.join(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What a stranger puts into the bag is looked at before anything is computed by it.
//
// Regression: SPIRE 1.14.2 x509pop
func TestBagsCostLittle(t *testing.T) {
	w := newWorld(t)
	great := &rsa.PublicKey{N: new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), 16383), big.NewInt(1)), E: 1<<31 - 1}
	costly := w.azure.issuing.Issue(t, "spiffe://unused.example", start, great, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign })
	for name, row := range map[string]struct {
		bag  []*x509.Certificate
		want string
	}{
		"a great key":             {[]*x509.Certificate{w.by.cert, costly}, "a key that is none of"},
		"a great key of a signer": {[]*x509.Certificate{costly, w.by.cert}, "a key that is none of"},
		"a hundred":               {slices.Repeat([]*x509.Certificate{w.azure.root.Certificate}, 100), "truncated"}, // larger than any element may be
		"nine":                    {slices.Repeat([]*x509.Certificate{w.azure.root.Certificate}, 9), "more than 8 certificates"},
	} {
		w.document = func(nonce string) message { return message{by: w.by, content: content(nonce, nil), bag: row.bag} }
		if err := w.offer(w.raw); !errors.Is(err, join.ErrEvidence) || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v, want %s", name, err, row.want)
		}
	}
}

// Intermediates are the rule's or the bag's: nothing that a certificate links is asked.
func TestIntermediates(t *testing.T) {
	w := newWorld(t)
	cfg := w.config()
	cfg.Settings.Intermediates = ""
	m, err := azure.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	linked := w.azure.signer(t, issuertest.RSA(), func(c *x509.Certificate) { c.IssuingCertificateURL = []string{w.metadata.URL + "/issuing.crt"} })
	w.by.cert = linked
	try := func() error {
		shown, err := w.node().Evidence(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, err = m.Join(join.WithKey(t.Context(), w.key), shown, w.answer)
		return err
	}
	if err := try(); !errors.Is(err, join.ErrEvidence) || !strings.Contains(err.Error(), `"Issuing 02"`) {
		t.Errorf("without: %v", err)
	}
	w.document = func(nonce string) message {
		return message{by: w.by, content: content(nonce, nil), bag: []*x509.Certificate{linked, w.azure.issuing.Certificate}}
	}
	if err := try(); err != nil {
		t.Errorf("in the bag: %v", err)
	}
}

func TestDocuments(t *testing.T) {
	w := newWorld(t)
	stamp := func(created, expires any) map[string]any {
		return map[string]any{"timeStamp": map[string]any{"createdOn": created, "expiresOn": expires}}
	}
	const from, to = "12/01/26 10:20:30 -0000", "12/01/26 16:20:30 -0000"
	for name, changes := range map[string]map[string]any{
		"for another challenge":       {"nonce": "00112233445566778899aabbccddeeff"},
		"for none":                    {"nonce": ""},
		"for a time":                  {"nonce": "20261201-102030"},
		"for a list":                  {"nonce": []string{}},
		"of another subscription":     {"subscriptionId": otherTenant},
		"of no subscription":          {"subscriptionId": ""},
		"of a subscription's name":    {"subscriptionId": "prod"},
		"of no machine":               {"vmId": nil},
		"of a machine's name":         {"vmId": "web-1"},
		"of a machine with a line":    {"vmId": machineID + "\n"},
		"of no time":                  {"timeStamp": nil},
		"of a time in numbers":        stamp(1, 2),
		"of a time in another form":   stamp("2026-12-01T10:20:30Z", to),
		"without an end":              stamp(from, ""),
		"of the future":               stamp("12/01/26 10:21:31 -0000", to),
		"expired":                     stamp("12/01/26 04:19:29 -0000", "12/01/26 10:19:29 -0000"),
		"that ends before it begins":  stamp(from, "12/01/26 10:20:29 -0000"),
		"that is good for days":       stamp(from, "12/03/26 10:20:30 -0000"),
		"of the future, in zones":     stamp("12/01/26 11:20:30 -0000", to),
		"of an hour's zone too early": stamp("12/01/26 10:20:30 -0100", to),
	} {
		w.document = func(nonce string) message { return message{by: w.by, content: content(nonce, changes)} }
		shown, err := w.node().Evidence(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		// A document without the nonce the agent would not take, so it is asked here.
		proof, err := w.method().Join(join.WithKey(t.Context(), w.key), shown, func(ctx context.Context, challenge []byte) ([]byte, error) {
			return w.raw(challenge), nil
		})
		if !errors.Is(err, join.ErrEvidence) || proof.DurableKey != "" {
			t.Errorf("a document %s: %v, %v", name, proof, err)
		}
	}
	for name, changes := range map[string]map[string]any{
		"as it is": {}, "skew of theirs": stamp("12/01/26 10:21:29 -0000", to), "skew of ours": stamp("12/01/26 10:15:30 -0000", "12/01/26 10:19:31 -0000"),
		"in capitals": {"vmId": strings.ToUpper(machineID), "subscriptionId": strings.ToUpper(subscription)}, "with more": {"isConfidential": true},
	} {
		w.document = func(nonce string) message { return message{by: w.by, content: content(nonce, changes)} }
		if _, err := w.join(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, text := range map[string]string{"twice": `{"vmId":"` + otherTenant + `","vmId":"` + machineID + `"}`, "no object": "[]", "no JSON": "MII"} {
		w.document = func(nonce string) message {
			return message{by: w.by, content: []byte(strings.Replace(text, `{`, `{"nonce":"`+nonce+`",`, 1))}
		}
		if err := w.offer(func(challenge []byte) []byte { return w.raw(challenge) }); !errors.Is(err, join.ErrEvidence) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// raw is what metadata gives for a challenge, whatever its nonce.
func (w *world) raw(challenge []byte) []byte {
	var der []byte
	catch := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		der = w.attest(r.URL.Query().Get("nonce")).der(w.t)
		out.WriteHeader(http.StatusNotFound)
	}))
	defer catch.Close()
	_, _ = (evidence.Config{TrustDomain: domain, Endpoint: catch.URL}).Answer(w.t.Context(), challenge, w.der)
	return der
}

func (w *world) offer(answer func(challenge []byte) []byte) error {
	shown, err := w.node().Evidence(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	_, err = w.method().Join(join.WithKey(w.t.Context(), w.key), shown, func(_ context.Context, challenge []byte) ([]byte, error) { return answer(challenge), nil })
	return err
}

// A document is for one challenge, one trust domain and one key.
func TestDocumentsAreForOneUse(t *testing.T) {
	w := newWorld(t)
	var seen []byte
	if err := w.offer(func(challenge []byte) []byte { seen, _ = w.answer(t.Context(), challenge); return seen }); err != nil {
		t.Fatal(err)
	}
	elsewhere := w.node()
	elsewhere.TrustDomain = "evil.example"
	own := w.der
	w.nodeKey()
	for name, answer := range map[string]func([]byte) []byte{
		"a replay":               func([]byte) []byte { return seen },
		"another key's":          func(challenge []byte) []byte { der, _ := w.node().Answer(t.Context(), challenge, own); return der },
		"another trust domain's": func(challenge []byte) []byte { der, _ := elsewhere.Answer(t.Context(), challenge, w.der); return der },
		"another challenge's": func(challenge []byte) []byte {
			challenge = append([]byte{challenge[0] ^ 1}, challenge[1:]...)
			der, _ := w.answer(t.Context(), challenge)
			return der
		},
		"nothing": func([]byte) []byte { return nil },
		"base64": func(challenge []byte) []byte {
			der, _ := w.answer(t.Context(), challenge)
			return []byte(base64.StdEncoding.EncodeToString(der))
		},
		"a byte after it": func(challenge []byte) []byte { der, _ := w.answer(t.Context(), challenge); return append(der, 0) },
		"truncated":       func(challenge []byte) []byte { der, _ := w.answer(t.Context(), challenge); return der[:len(der)-1] },
		"deep":            func([]byte) []byte { return bytes.Repeat([]byte{0x30, 0x80}, 4000) },
	} {
		if err := w.offer(answer); !errors.Is(err, join.ErrEvidence) {
			t.Errorf("%s: %v", name, err)
		}
	}
	shown, err := w.node().Evidence(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.method().Join(t.Context(), shown, w.answer); err == nil || errors.Is(err, join.ErrEvidence) {
		t.Errorf("without a key to bind to: %v", err)
	}
	away := errors.New("the stream ended")
	if _, err := w.method().Join(join.WithKey(t.Context(), w.key), shown, func(context.Context, []byte) ([]byte, error) { return nil, away }); !errors.Is(err, away) || errors.Is(err, join.ErrEvidence) {
		t.Errorf("no answer: %v", err)
	}
}

// A token that was stolen is nothing with another machine's document, and that machine
// can't keep it from whom it belongs to.
func TestStolenTokens(t *testing.T) {
	thief := func(nonce string) message {
		return message{content: content(nonce, map[string]any{"vmId": otherTenant})}
	}
	for name, row := range map[string]struct {
		claims map[string]any
		stolen bool // a token of later may be
	}{
		"a machine's own": {claims(nil), false},
		"several's":       {claims(map[string]any{"xms_mirid": userAssigned, "xms_az_rid": vm}), true},
	} {
		w := newWorld(t)
		steal := func(nonce string) message { m := thief(nonce); m.by = w.by; return m }
		w.identity = row.claims
		if _, err := w.join(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		w.document = steal
		if _, err := w.join(); !errors.Is(err, join.ErrEvidence) {
			t.Errorf("%s, stolen: %v", name, err)
		}
		w.identity = issuertest.With(row.claims, map[string]any{"uti": "b"})
		if _, err := w.join(); errors.Is(err, join.ErrEvidence) == row.stolen {
			t.Errorf("%s, the next one stolen: %v", name, err)
		}
		w.document = nil
		if _, err := w.join(); (err == nil) == row.stolen {
			t.Errorf("%s, the next one's owner: %v", name, err)
		}
	}
	shared := newWorld(t) // a set's identity, and one that tells no machine, are many machines'
	for _, c := range []map[string]any{claims(map[string]any{"xms_mirid": scaleSet}), claims(map[string]any{"xms_mirid": userAssigned})} {
		shared.identity = c
		for _, id := range []string{machineID, otherTenant} {
			shared.document = func(nonce string) message {
				return message{by: shared.by, content: content(nonce, map[string]any{"vmId": id})}
			}
			if proof, err := shared.join(); err != nil || !strings.Contains(proof.DurableKey, id) {
				t.Errorf("%s: %v, %v", id, proof, err)
			}
		}
	}
}

// A rule may want one of the two.
func TestRequire(t *testing.T) {
	w := newWorld(t)
	w.settings = "{require: token, tenants: [" + tenant + "], audience: '" + audience + "'}"
	alone := func(c map[string]any) (join.Proof, error) {
		w.identity = c
		shown, err := w.node().Evidence(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return w.method().Join(t.Context(), shown, nil) // no challenge is put
	}
	proof, err := alone(claims(nil))
	if err != nil || proof.DurableKey != `["resource","`+strings.ToLower(vm)+`"]` || proof.Name != "web-1" || len(proof.Facts.Get("node.azure.vm_id")) != 0 {
		t.Errorf("a token alone: %+v, %v", proof, err)
	}
	if again, err := alone(claims(nil)); err != nil || again.DurableKey != proof.DurableKey {
		t.Errorf("again: %v, %v", again, err)
	}
	for name, id := range map[string]string{"a scale set": scaleSet, "an identity": userAssigned} {
		if _, err := alone(claims(map[string]any{"xms_mirid": id})); !errors.Is(err, join.ErrEvidence) {
			t.Errorf("a token of %s alone: %v", name, err)
		}
	}
	w.settings = "{require: attested}"
	proof, err = w.method().Join(join.WithKey(t.Context(), w.key), []byte("{}"), w.answer)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(facts(map[string]string{"subscription": subscription, "vm_id": machineID}), proof.Facts.Map()); d != "" || proof.Name != machineID || proof.DurableKey != `["machine","`+subscription+`","`+machineID+`"]` {
		t.Errorf("a document alone: %+v %s", proof, d)
	}
	if proof, err := w.join(); err != nil || len(proof.Facts.Get("node.azure.vm")) != 0 {
		t.Errorf("a token that nobody wants: %+v, %v", proof, err)
	}
}

// Where the store is away nothing is taken.
func TestStoreIsAway(t *testing.T) {
	w := newWorld(t)
	cfg, full := w.config(), errors.New("disk full")
	cfg.Hold = func(context.Context, [32]byte, string, time.Time, time.Time) error { return full }
	m, err := azure.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	shown, err := w.node().Evidence(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Join(join.WithKey(t.Context(), w.key), shown, w.answer); !errors.Is(err, full) || errors.Is(err, join.ErrEvidence) {
		t.Error(err)
	}
}

// The built-in roots are good for years, and a certificate that ends soon is told once.
func TestEndings(t *testing.T) {
	all := (&azure.Settings{}).Endings()
	if len(all) < 2 {
		t.Fatalf("%v", all)
	}
	for _, e := range all {
		if e.What == "" || e.At.Before(time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)) {
			t.Errorf("%+v: put the next one into the data file", e)
		}
	}
	if all := (&azure.Settings{Require: "token"}).Endings(); len(all) != 0 {
		t.Errorf("where none is used: %v", all)
	}
	w := newWorld(t)
	ending := issuertest.NewCA(t, "Ending", start, w.azure.root, func(c *x509.Certificate) { c.NotAfter = start.AddDate(0, 0, 89) })
	cfg := w.config()
	cfg.Settings.Intermediates += text(ending.Certificate)
	m, err := azure.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		_, _ = m.Join(t.Context(), []byte("{}"), nil)
	}
	if n := strings.Count(w.log.String(), "by which Azure's machines join ends"); n != 1 || !strings.Contains(w.log.String(), "CN=Ending") {
		t.Errorf("%d warnings: %s", n, &w.log)
	}
}

func TestSettings(t *testing.T) {
	ca := text(newAuthority(t).root.Certificate)
	leaf := text(newAuthority(t).signer(t, issuertest.RSA()))
	for text, field := range map[string]string{
		"{tenants: [" + tenant + "], audience: 'api://x'}":                                                                         "",
		"{tenants: [" + strings.ToUpper(tenant) + "], audience: " + client + ", cloud: usgov, require: both}":                      "",
		"{tenants: [" + tenant + "], audience: 'https://management.azure.com/', shared_audience: true}":                            "",
		"{tenants: [" + tenant + "], audience: 'https://credence.example.org'}":                                                    "",
		"{require: attested, cloud: china}":                                                                                        "",
		"{tenants: [" + tenant + "], audience: 'https://management.azure.com/'}":                                                   "audience",
		"{tenants: [" + tenant + "], audience: 'https://management.azure.com'}":                                                    "audience",
		"{tenants: [" + tenant + "], audience: 'HTTPS://Management.Azure.com./'}":                                                  "audience",
		"{tenants: [" + tenant + "], audience: 'https://management.core.windows.net/'}":                                            "audience",
		"{tenants: [" + tenant + "], audience: 'https://vault.azure.net'}":                                                         "audience",
		"{tenants: [" + tenant + "], audience: 'https://graph.microsoft.com:443/'}":                                                "audience",
		"{tenants: [" + tenant + "], audience: 'https://management.usgovcloudapi.net'}":                                            "audience",
		"{tenants: [" + tenant + "], audience: 00000003-0000-0000-c000-000000000000}":                                              "audience",
		"{tenants: [" + tenant + "], audience: 'spn:797f4846-ba00-4fd7-ba43-dac1f8f63013'}":                                        "audience",
		"{tenants: [" + tenant + "], audience: 'credence://example.org/workload'}":                                                 "audience",
		"{tenants: [" + tenant + "]}":                                                                                              "audience",
		"{audience: 'api://x'}":                                                                                                    "tenants",
		"{tenants: [common], audience: 'api://x'}":                                                                                 "tenants",
		"{tenants: ['" + tenant + "/x'], audience: 'api://x'}":                                                                     "tenants",
		"{tenants: [" + tenant + "], audience: 'api://x', cloud: germany}":                                                         "cloud",
		"{tenants: [" + tenant + "], audience: 'api://x', require: any}":                                                           "require",
		"{tenants: [" + tenant + "], audience: 'api://x', max_age: 48h}":                                                           "max_age",
		"{tenants: [" + tenant + "], audience: 'api://x', jwks: '{}'}":                                                             "jwks",
		"{tenants: [" + tenant + "], audience: 'api://x', ca: x}":                                                                  "ca",
		"{require: attested, tenants: [" + tenant + "]}":                                                                           "tenants",
		"{require: attested, roots: x}":                                                                                            "roots",
		"{require: attested, roots: \"" + strings.ReplaceAll(leaf, "\n", "\\n") + "\"}":                                            "roots",
		"{require: attested, intermediates: \"" + strings.ReplaceAll(ca, "\n", "\\n") + "x\"}":                                     "intermediates",
		"{require: token, tenants: [" + tenant + "], audience: 'api://x', roots: \"" + strings.ReplaceAll(ca, "\n", "\\n") + "\"}": "roots",
	} {
		s := new(azure.Settings)
		if err := yaml.UnmarshalWithOptions([]byte(text), s, yaml.Strict()); err != nil {
			t.Fatal(err)
		}
		err := s.Validate()
		if (err == nil) != (field == "") || err != nil && !strings.HasPrefix(err.Error(), field+":") {
			t.Errorf("%s: %v", text, err)
		}
	}
}
