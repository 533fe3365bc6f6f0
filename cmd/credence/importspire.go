package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/resource"
	"github.com/credence-id/credence/cmd/cli"
)

// maxSPIREEntries is how many bytes of SPIRE's entries are read: some 100,000 of them.
const maxSPIREEntries = 64 << 20

func (p *program) importCommand() *cobra.Command {
	var parents, audiences []string
	spire := &cobra.Command{
		Use: "spire FILE", Short: "Turn SPIRE's registration entries into Identities", Args: cobra.ExactArgs(1),
		Long: `Import reads what "spire-server entry show -output json" printed, from a file or
from - (standard input), and prints Identities for "credence apply". It asks nobody
and writes nothing.

An entry's selectors become terms. Its parent becomes terms on the node: by the
selectors of the parent's own entry, if it is an alias of nodes; by what an agent's
SPIFFE ID says of it; or by --parent. What cannot be carried as it was is left out
whole, since less of a match would let more in: each such entry is named on standard
error with the reason, and the exit code is 1.

SPIRE gives a JWT-SVID for any audience. Here none is given that is not listed:
--audience lists them for every Identity ("**" is any).`,
		Example: `  echo '{"entries": [{"id": "e1", "spiffe_id": {"path": "/web"},' > entries.json
  echo '"parent_id": {"path": "/spire/agent/join_token/9d1f"},' >> entries.json
  echo '"selectors": [{"type": "unix", "value": "uid:33"}]}]}' >> entries.json
  credence import spire entries.json --parent /spire/agent/join_token/9d1f=node.name:web-1`,
		RunE: func(cmd *cobra.Command, args []string) error {
			i := spireImport{audiences: audiences, parents: map[string][]identity.Term{}}
			for _, text := range parents {
				if err := i.parent(text); err != nil {
					return cli.BadInput(err)
				}
			}
			entries, err := p.readEntries(args[0])
			if err != nil {
				return cli.BadInput(err)
			}
			return p.printImported(&i, entries)
		},
	}
	spire.Flags().StringArrayVar(&parents, "parent", nil, "PARENT=FACT:VALUE: terms on the node in place of a parent's path; repeat for more of each")
	spire.Flags().StringArrayVar(&audiences, "audience", nil, "an audience that JWT-SVIDs are given for; repeat for more")
	return cli.Group("import", "Take over what other systems hold", spire)
}

// A spireEntry is a registration entry as SPIRE's API tells it in JSON, where
// numbers of 64 bits are strings.
type spireEntry struct {
	ID            string          `json:"id"`
	SPIFFEID      spireID         `json:"spiffe_id"`
	ParentID      spireID         `json:"parent_id"`
	Selectors     []spireSelector `json:"selectors"`
	X509TTL       int64           `json:"x509_svid_ttl"`
	JWTTTL        int64           `json:"jwt_svid_ttl"`
	FederatesWith []string        `json:"federates_with"`
	DNSNames      []string        `json:"dns_names"`
	ExpiresAt     json.Number     `json:"expires_at"`
	Admin         bool            `json:"admin"`
	Downstream    bool            `json:"downstream"`
	StoreSVID     bool            `json:"store_svid"`
	Hint          string          `json:"hint"`
}

type spireID struct {
	TrustDomain string `json:"trust_domain"`
	Path        string `json:"path"`
}

type spireSelector struct{ Type, Value string }

func (p *program) readEntries(file string) ([]spireEntry, error) {
	in := p.In
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, maxSPIREEntries+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	if len(text) > maxSPIREEntries {
		return nil, fmt.Errorf("%s: more than %d MiB", file, maxSPIREEntries>>20)
	}
	var all struct {
		Entries       []spireEntry `json:"entries"`
		NextPageToken string       `json:"next_page_token"`
	}
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, fmt.Errorf("%s: not what spire-server entry show -output json prints: %w", file, err)
	}
	if all.NextPageToken != "" {
		return nil, fmt.Errorf("%s: it is one page of several: put all entries into one file", file)
	}
	if len(all.Entries) == 0 {
		return nil, fmt.Errorf("%s: there are no entries in it", file)
	}
	return all.Entries, nil
}

func (p *program) printImported(i *spireImport, entries []spireEntry) error {
	identities, left := i.all(entries, time.Now())
	for _, one := range identities {
		text, err := resource.Resource{Kind: "Identity", Name: one.Name, Identity: &one}.YAML()
		if err != nil {
			return err
		}
		fmt.Fprintf(p.Out, "---\n%s", text)
	}
	for _, l := range left {
		fmt.Fprintln(p.Err, "left out:", l)
	}
	fmt.Fprintf(p.Err, "%d entries, %d Identities, %d left out; see what they do with: credence plan -f FILE\n", len(entries)-i.aliases, len(identities), len(left))
	if len(left) > 0 {
		return cli.WithCode(1, nil)
	}
	return nil
}

// A spireImport turns entries into Identities.
type spireImport struct {
	audiences []string
	parents   map[string][]identity.Term // by path: what was said of them, or what their own entries say
	aliases   int
}

// parent takes PARENT=FACT:VALUE.
func (i *spireImport) parent(text string) error {
	path, term, ok := strings.Cut(text, "=")
	fact, value, valued := strings.Cut(term, ":")
	if !ok || !valued || !strings.HasPrefix(fact, "node.") || value == "" {
		return fmt.Errorf("--parent %q: want PARENT=FACT:VALUE, as /spire/agent/join_token/9d1f=node.name:web-1", text)
	}
	if rest, full := strings.CutPrefix(path, "spiffe://"); full {
		_, path, _ = strings.Cut(rest, "/")
		path = "/" + path
	}
	i.parents[path] = append(i.parents[path], identity.Term{Name: fact, Pattern: value})
	return nil
}

// all turns entries into Identities, by name, and says why others are left out.
func (i *spireImport) all(entries []spireEntry, now time.Time) (identities []identity.Identity, left []string) {
	var workloads []spireEntry
	for _, e := range entries {
		if e.ParentID.Path != "/spire/server" {
			workloads = append(workloads, e)
			continue
		}
		i.aliases++
		terms, err := spireTerms(e.Selectors, nodeSelectors)
		switch {
		case len(i.parents[e.SPIFFEID.Path]) > 0: // said on the command line
		case err != nil:
			left = append(left, e.describe()+": an alias of nodes: "+err.Error())
		default:
			i.parents[e.SPIFFEID.Path] = terms
		}
	}
	byName := map[string]*identity.Identity{}
	for _, e := range workloads {
		one, err := i.one(e, now)
		if err != nil {
			left = append(left, e.describe()+": "+err.Error())
			continue
		}
		merge(byName, one)
	}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		identities = append(identities, *byName[name])
	}
	return identities, left
}

func (e spireEntry) describe() string {
	return fmt.Sprintf("entry %.64q, spiffe://%.255s%.512s", e.ID, e.SPIFFEID.TrustDomain, e.SPIFFEID.Path)
}

// one turns an entry into an Identity, whole or not at all.
func (i *spireImport) one(e spireEntry, now time.Time) (identity.Identity, error) {
	fail := func(format string, args ...any) (identity.Identity, error) {
		return identity.Identity{}, fmt.Errorf(format, args...)
	}
	switch ends, _ := strconv.ParseInt(e.ExpiresAt.String(), 10, 64); {
	case e.Downstream:
		return fail("it is for another server (downstream), and no Identity gives a CA")
	case e.Admin:
		return fail("it is for an administrator (admin): name it under roles: in broker.yaml")
	case e.StoreSVID:
		return fail("its SVID is put into a store (store_svid): see outputs: of agent.yaml")
	case ends != 0 && ends <= now.Unix():
		return fail("it has ended")
	case ends != 0:
		return fail("it ends at %s, and an Identity doesn't end by itself", time.Unix(ends, 0).UTC().Format(time.RFC3339))
	}
	terms, err := i.node(e.ParentID)
	if err != nil {
		return identity.Identity{}, err
	}
	workload, err := spireTerms(e.Selectors, workloadSelectors)
	if err != nil {
		return identity.Identity{}, err
	}
	one := identity.Identity{
		Name: nameOfPath(e.SPIFFEID.Path), SPIFFEID: e.SPIFFEID.Path, Hint: e.Hint,
		Match: []identity.Item{{Terms: append(slices.Clone(terms), workload...)}},
	}
	for _, td := range e.FederatesWith {
		one.FederatesWith = append(one.FederatesWith, strings.TrimPrefix(td, "spiffe://"))
	}
	if e.X509TTL > 0 || len(e.DNSNames) > 0 {
		one.X509 = &identity.X509{TTL: time.Duration(e.X509TTL) * time.Second, DNSNames: e.DNSNames}
	}
	if len(i.audiences) > 0 {
		one.JWT = &identity.JWT{TTL: time.Duration(e.JWTTTL) * time.Second}
		for _, a := range i.audiences {
			one.JWT.Audiences = append(one.JWT.Audiences, identity.Audience{Pattern: a})
		}
	}
	return one, nil
}

// node returns the terms that stand for a parent.
func (i *spireImport) node(parent spireID) ([]identity.Term, error) {
	if terms := i.parents[parent.Path]; len(terms) > 0 {
		return terms, nil
	}
	parts := strings.Split(strings.TrimPrefix(parent.Path, "/spire/agent/"), "/")
	var facts []string
	switch {
	case !strings.HasPrefix(parent.Path, "/spire/agent/"):
	case parts[0] == "k8s_psat" && len(parts) == 3:
		facts = []string{"node.kubernetes.cluster", "node.kubernetes.node_uid"}
	case parts[0] == "aws_iid" && len(parts) == 4:
		facts = []string{"node.aws_ec2.account", "node.aws_ec2.region", "node.aws_ec2.instance_id"}
	case parts[0] == "gcp_iit" && len(parts) == 3:
		facts = []string{"node.gcp.project", "node.gcp.instance_id"}
	}
	if facts == nil {
		return nil, fmt.Errorf("which nodes its parent %s stands for is not known here: say --parent %[1]s=FACT:VALUE", parent.Path)
	}
	var terms []identity.Term
	for n, fact := range facts {
		term, err := exactTerm(fact, parts[n+1])
		if err != nil {
			return nil, err
		}
		terms = append(terms, term)
	}
	return terms, nil
}

// Facts by selector: its type and the first words of its value. A dot at the end
// stands for one more word, which is the fact's last part.
var (
	workloadSelectors = map[string]string{
		"unix:uid": "workload.unix.uid", "unix:user": "workload.unix.user", "unix:gid": "workload.unix.gid", "unix:supplementary_gid": "workload.unix.groups", "unix:supplementary_group": "workload.unix.group_names",
		"unix:path": "workload.unix.path", "unix:sha256": "workload.unix.sha256",
		"k8s:ns": "workload.kubernetes.namespace", "k8s:sa": "workload.kubernetes.service_account", "k8s:pod-label": "workload.kubernetes.labels.",
		"k8s:pod-name": "workload.kubernetes.pod", "k8s:pod-uid": "workload.kubernetes.pod_uid", "k8s:node-name": "workload.kubernetes.node",
		"k8s:container-name": "workload.kubernetes.container", "k8s:container-image": "workload.kubernetes.image",
		"docker:label": "workload.docker.labels.", "docker:image_id": "workload.docker.image_id",
		"systemd:id": "workload.systemd.unit", "systemd:fragment_path": "workload.systemd.fragment_path",
	}
	nodeSelectors = map[string]string{
		"k8s_psat:cluster": "node.kubernetes.cluster", "k8s_psat:agent_ns": "node.kubernetes.namespace", "k8s_psat:agent_sa": "node.kubernetes.service_account",
		"k8s_psat:agent_pod_name": "node.kubernetes.pod", "k8s_psat:agent_pod_uid": "node.kubernetes.pod_uid",
		"k8s_psat:agent_node_name": "node.kubernetes.node", "k8s_psat:agent_node_uid": "node.kubernetes.node_uid",
		"aws_iid:instance:id": "node.aws_ec2.instance_id", "aws_iid:image:id": "node.aws_ec2.image_id", "aws_iid:az": "node.aws_ec2.availability_zone",
		"gcp_iit:project-id": "node.gcp.project", "gcp_iit:zone": "node.gcp.zone", "gcp_iit:instance-name": "node.gcp.instance_name", "gcp_iit:sa": "node.gcp.service_account",
		"azure_msi:tenant-id": "node.azure.tenant", "azure_msi:subscription-id": "node.azure.subscription",
		"x509pop:subject:cn": "node.x509.cn",
	}
)

// spireTerms turns all selectors into terms, or says which cannot be.
func spireTerms(selectors []spireSelector, facts map[string]string) (terms []identity.Term, err error) {
	if len(selectors) == 0 {
		return nil, errors.New("it has no selectors")
	}
	for _, s := range selectors {
		term, err := spireTerm(s, facts)
		if err != nil {
			return nil, err
		}
		if at := slices.IndexFunc(terms, func(t identity.Term) bool { return t.Name == term.Name }); at >= 0 && terms[at] != term {
			return nil, fmt.Errorf("two selectors ask for different values of %s", term.Name)
		} else if at < 0 {
			terms = append(terms, term)
		}
	}
	return terms, nil
}

func spireTerm(s spireSelector, facts map[string]string) (identity.Term, error) {
	text := s.Type + ":" + s.Value
	for cut := len(text); cut > 0; cut = strings.LastIndexByte(text[:cut], ':') {
		fact, known := facts[text[:cut]]
		if !known || cut == len(text) {
			continue
		}
		value := text[cut+1:]
		if strings.HasSuffix(fact, ".") {
			key, rest, ok := strings.Cut(value, ":")
			if !ok || key == "" {
				break
			}
			fact, value = fact+key, rest
		}
		return exactTerm(fact, value)
	}
	return identity.Term{}, fmt.Errorf("there is no fact for the selector %.200q", text)
}

// exactTerm asks for a value as it is: what would be a pattern here was none there.
func exactTerm(fact, value string) (identity.Term, error) {
	if value == "" || strings.Contains(value, "*") {
		return identity.Term{}, fmt.Errorf("%s would have to be %q, and a term asks for no star and nothing empty", fact, value)
	}
	return identity.Term{Name: fact, Pattern: value}, nil
}

// nameOfPath makes a resource's name of a path.
func nameOfPath(path string) string {
	var name []byte
	for _, c := range []byte(strings.ToLower(strings.Trim(path, "/"))) {
		switch {
		case c >= 'a' && c <= 'z' || c >= '0' && c <= '9':
			name = append(name, c)
		case len(name) > 0 && name[len(name)-1] != '-':
			name = append(name, '-')
		}
	}
	if len(name) > 48 {
		name = name[len(name)-48:]
	}
	if text := strings.Trim(string(name), "-"); text != "" {
		return text
	}
	return "root"
}

// merge adds an Identity, or its item to the one that gives the same; others of
// its name are told apart by a number.
func merge(all map[string]*identity.Identity, one identity.Identity) {
	name := one.Name
	for n := 2; ; n++ {
		old, ok := all[one.Name]
		if !ok {
			all[one.Name] = &one
			return
		}
		same := *old
		same.Match = one.Match
		if reflect.DeepEqual(same, one) {
			old.Match = append(old.Match, one.Match...)
			return
		}
		one.Name = fmt.Sprintf("%s-%d", name, n)
	}
}
