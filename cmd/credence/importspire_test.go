package main_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	credence "github.com/credence-id/credence/cmd/credence"
)

// spireEntries are what SPIRE prints, of every kind that is carried and that is
// not. Its numbers of 64 bits are strings.
const spireEntries = `{"entries": [
 {"id": "n1", "spiffe_id": {"trust_domain": "example.org", "path": "/cluster/prod"}, "parent_id": {"trust_domain": "example.org", "path": "/spire/server"},
  "selectors": [{"type": "k8s_psat", "value": "cluster:prod"}, {"type": "k8s_psat", "value": "agent_ns:spire"}], "x509_svid_ttl": 0, "expires_at": "0", "revision_number": "0"},
 {"id": "n2", "spiffe_id": {"trust_domain": "example.org", "path": "/fleet"}, "parent_id": {"trust_domain": "example.org", "path": "/spire/server"},
  "selectors": [{"type": "aws_iid", "value": "tag:fleet:blue"}]},
 {"id": "e1", "spiffe_id": {"trust_domain": "example.org", "path": "/ns/shop/sa/checkout"}, "parent_id": {"trust_domain": "example.org", "path": "/cluster/prod"},
  "selectors": [{"type": "k8s", "value": "ns:shop"}, {"type": "k8s", "value": "sa:checkout"}, {"type": "k8s", "value": "pod-label:app.kubernetes.io/name:web:1"}],
  "x509_svid_ttl": 3600, "jwt_svid_ttl": 300, "federates_with": ["partner.example"], "dns_names": ["checkout.shop.svc"], "hint": "main", "expires_at": "0", "created_at": "1700000000"},
 {"id": "e2", "spiffe_id": {"trust_domain": "example.org", "path": "/web"}, "parent_id": {"trust_domain": "example.org", "path": "/spire/agent/join_token/9d1f"},
  "selectors": [{"type": "unix", "value": "uid:33"}, {"type": "unix", "value": "path:/usr/sbin/nginx"}]},
 {"id": "e3", "spiffe_id": {"trust_domain": "example.org", "path": "/web"}, "parent_id": {"trust_domain": "example.org", "path": "/spire/agent/aws_iid/123456789012/eu-west-1/i-0abc"},
  "selectors": [{"type": "unix", "value": "user:www-data"}]},
 {"id": "e4", "spiffe_id": {"trust_domain": "example.org", "path": "/Web"}, "parent_id": {"trust_domain": "example.org", "path": "/spire/agent/k8s_psat/prod/7f3a"},
  "selectors": [{"type": "docker", "value": "label:tier:web"}, {"type": "docker", "value": "label:tier:web"}]},
 {"id": "x1", "spiffe_id": {"trust_domain": "example.org", "path": "/x1"}, "parent_id": {"trust_domain": "example.org", "path": "/fleet"}, "selectors": [{"type": "unix", "value": "uid:1"}]},
 {"id": "x2", "spiffe_id": {"trust_domain": "example.org", "path": "/x2"}, "parent_id": {"trust_domain": "example.org", "path": "/cluster/prod"}, "selectors": [{"type": "unix", "value": "group:www-data"}, {"type": "unix", "value": "uid:1"}]},
 {"id": "x3", "spiffe_id": {"trust_domain": "example.org", "path": "/x3"}, "parent_id": {"trust_domain": "example.org", "path": "/cluster/prod"}, "selectors": [{"type": "unix", "value": "uid:1"}, {"type": "unix", "value": "uid:2"}]},
 {"id": "x4", "spiffe_id": {"trust_domain": "example.org", "path": "/x4"}, "parent_id": {"trust_domain": "example.org", "path": "/cluster/prod"}, "selectors": [{"type": "k8s", "value": "ns:sh*p"}]},
 {"id": "x5", "spiffe_id": {"trust_domain": "example.org", "path": "/x5"}, "parent_id": {"trust_domain": "example.org", "path": "/cluster/prod"}, "selectors": [{"type": "unix", "value": "uid:1"}], "downstream": true},
 {"id": "x6", "spiffe_id": {"trust_domain": "example.org", "path": "/x6"}, "parent_id": {"trust_domain": "example.org", "path": "/cluster/prod"}, "selectors": [{"type": "unix", "value": "uid:1"}], "admin": true},
 {"id": "x7", "spiffe_id": {"trust_domain": "example.org", "path": "/x7"}, "parent_id": {"trust_domain": "example.org", "path": "/cluster/prod"}, "selectors": [{"type": "unix", "value": "uid:1"}], "expires_at": "1700000000"},
 {"id": "x8", "spiffe_id": {"trust_domain": "example.org", "path": "/x8"}, "parent_id": {"trust_domain": "example.org", "path": "/cluster/prod"}, "selectors": [{"type": "unix", "value": "uid:1"}], "expires_at": "32503680000"},
 {"id": "x9", "spiffe_id": {"trust_domain": "example.org", "path": "/x9"}, "parent_id": {"trust_domain": "example.org", "path": "/cluster/prod"}, "selectors": [], "store_svid": true},
 {"id": "xa", "spiffe_id": {"trust_domain": "example.org", "path": "/xa"}, "parent_id": {"trust_domain": "example.org", "path": "/cluster/prod"}, "selectors": []}
], "next_page_token": ""}`

func TestImportSPIRE(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "entries.json")
	if err := os.WriteFile(file, []byte(spireEntries), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, bad bytes.Buffer
	code := credence.Run(t.Context(), []string{"import", "spire", file, "--parent", "spiffe://example.org/spire/agent/join_token/9d1f=node.name:web-1", "--audience", "orders"}, strings.NewReader(""), &out, &bad)
	if code != 1 {
		t.Errorf("exit code %d, for what is left out\n%s", code, &bad)
	}
	const want = `---
kind: Identity
name: ns-shop-sa-checkout
spiffe_id: /ns/shop/sa/checkout
match:
  - node.kubernetes.cluster: prod
    node.kubernetes.namespace: spire
    workload.kubernetes.namespace: shop
    workload.kubernetes.service_account: checkout
    workload.kubernetes.labels.app.kubernetes.io/name: web:1
x509:
  ttl: 1h0m0s
  dns_names:
    - checkout.shop.svc
jwt:
  ttl: 5m0s
  audiences:
    - orders
federates_with:
  - partner.example
hint: main
---
kind: Identity
name: web
spiffe_id: /web
match:
  - node.name: web-1
    workload.unix.uid: "33"
    workload.unix.path: /usr/sbin/nginx
  - node.aws_ec2.account: "123456789012"
    node.aws_ec2.region: eu-west-1
    node.aws_ec2.instance_id: i-0abc
    workload.unix.user: www-data
jwt:
  audiences:
    - orders
---
kind: Identity
name: web-2
spiffe_id: /Web
match:
  - node.kubernetes.cluster: prod
    node.kubernetes.node_uid: 7f3a
    workload.docker.labels.tier: web
jwt:
  audiences:
    - orders
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, want := range []string{
		`"n2", spiffe://example.org/fleet: an alias of nodes: there is no fact for the selector "aws_iid:tag:fleet:blue"`,
		`"x1", spiffe://example.org/x1: which nodes its parent /fleet stands for`,
		`"x2", spiffe://example.org/x2: there is no fact for the selector "unix:group:www-data"`,
		`"x3", spiffe://example.org/x3: two selectors ask for different values of workload.unix.uid`,
		`"x4", spiffe://example.org/x4: workload.kubernetes.namespace would have to be "sh*p"`,
		`"x5", spiffe://example.org/x5: it is for another server`,
		`"x6", spiffe://example.org/x6: it is for an administrator`,
		`"x7", spiffe://example.org/x7: it has ended`,
		`"x8", spiffe://example.org/x8: it ends at 3000-01-01T00:00:00Z`,
		`"x9", spiffe://example.org/x9: its SVID is put into a store`,
		`"xa", spiffe://example.org/xa: it has no selectors`,
		"14 entries, 3 Identities, 11 left out",
	} {
		if !strings.Contains(bad.String(), want) {
			t.Errorf("it doesn't say %s", want)
		}
	}

	// What it prints is taken.
	policy := filepath.Join(dir, "identities.yaml")
	if err := os.WriteFile(policy, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	out.Reset()
	bad.Reset()
	if code := credence.Run(t.Context(), []string{"validate", policy}, strings.NewReader(""), &out, &bad); code != 0 {
		t.Errorf("validate: exit code %d\n%s", code, &bad)
	}
}

func TestImportSPIRERefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ text, flag, want string }{
		"nothing":       {"", "", "not what spire-server entry show"},
		"other JSON":    {`{"items": []}`, "", "no entries"},
		"one page":      {`{"entries": [], "next_page_token": "x"}`, "", "one page of several"},
		"a wrong type":  {`{"entries": [{"selectors": "unix"}]}`, "", "not what spire-server entry show"},
		"no fact":       {spireEntries, "--parent=/x=node.name", "want PARENT=FACT:VALUE"},
		"no node fact":  {spireEntries, "--parent=/x=workload.unix.uid:0", "want PARENT=FACT:VALUE"},
		"no such value": {spireEntries, "--parent=/x=node.name:", "want PARENT=FACT:VALUE"},
	} {
		args := []string{"import", "spire", "-"}
		if c.flag != "" {
			args = append(args, c.flag)
		}
		var out, bad bytes.Buffer
		if code := credence.Run(t.Context(), args, strings.NewReader(c.text), &out, &bad); code != 2 || !strings.Contains(bad.String(), c.want) || out.Len() > 0 {
			t.Errorf("%s: exit code %d, %s%s", name, code, &out, &bad)
		}
	}
}
