package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/resource"
	"github.com/credence-id/credence/cmd/cli"
)

func (p *program) testCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "test -f CASES", Short: "Decide policy cases offline, for CI", Args: cobra.NoArgs,
		Long: `Test reads resources and decides cases on them as the broker would, offline: for
each the facts of a node and a workload, and what is wanted, either SPIFFE IDs (or
their paths) or a refusal. It exits 1 where a case fails, and shows what came
instead and why.

A file of cases:

  resources: [policy/]            # files or directories, beside this file
  broker: broker.yaml             # optional: its trust domain, issuer, subjects, dns_suffixes
  cases:
  - name: the web server
    node: {node.name: n1}
    workload: {workload.unix.uid: 33, workload.docker.labels.tier: [web]}
    unknown: [workload.systemd]   # attestors that failed
    audiences: [orders]           # or target: gcp; else the X509-SVIDs
    want: [/web]
  - name: nobody else
    node: {node.name: n1}
    workload: {workload.unix.uid: 34}
    denied: no_identity           # a code as credence explain tells it; any: whichever
    because: workload.unix.uid    # optional: text of the explanation

Callers that are no workloads have user: or peer: in place of node: and workload:.`,
		Example: `  credence get identity -o yaml > policy.yaml
  echo 'resources: [policy.yaml]' > cases.yaml
  echo 'cases: [{name: nobody, node: {node.name: nowhere}, denied: any}]' >> cases.yaml
  credence test -f cases.yaml
  credence test -f cases.yaml -o json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			file, _ := cmd.Flags().GetString("file")
			if file == "" {
				return cli.BadInput(errors.New("-f CASES is wanted"))
			}
			f, set, err := p.readCases(file)
			if err != nil {
				return cli.BadInput(err)
			}
			return p.testCases(cmd, f, set)
		},
	}
	cmd.Flags().StringP("file", "f", "", "a YAML file of cases")
	cli.CompleteFiles(cmd, "file", "yaml", "yml")
	return cli.AddOutput(cmd)
}

// casesFile is what test reads.
type casesFile struct {
	Resources []string     `yaml:"resources"`
	Broker    string       `yaml:"broker"`
	Cases     []policyCase `yaml:"cases"`
}

// A policyCase is a request, and what is to come of it.
type policyCase struct {
	Name      string             `yaml:"name"`
	Node      map[string]literal `yaml:"node"`
	Workload  map[string]literal `yaml:"workload"`
	User      map[string]literal `yaml:"user"`
	Peer      map[string]literal `yaml:"peer"`
	Unknown   []string           `yaml:"unknown"`
	Audiences []string           `yaml:"audiences"`
	Target    string             `yaml:"target"`
	Want      []string           `yaml:"want"`
	Denied    string             `yaml:"denied"`
	Because   string             `yaml:"because"`
}

// literal is a fact's values, written as one or as a list.
type literal []string

// UnmarshalYAML takes what a term takes.
func (l *literal) UnmarshalYAML(node ast.Node) error {
	nodes := []ast.Node{node}
	if list, ok := node.(*ast.SequenceNode); ok {
		nodes = list.Values
	}
	for _, n := range nodes {
		text, err := resource.Text(n)
		if err != nil {
			return err
		}
		*l = append(*l, text)
	}
	return nil
}

func (p *program) readCases(file string) (f casesFile, set *identity.Set, err error) {
	text, err := cli.ReadSmall(file)
	if err != nil {
		return f, nil, err
	}
	if err := cli.ParseFile(file, text, &f); err != nil {
		return f, nil, err
	}
	beside := func(name string) string {
		if filepath.IsAbs(name) {
			return name
		}
		return filepath.Join(filepath.Dir(file), name)
	}
	var with validFile
	if f.Broker != "" {
		if with, err = p.validateOne(beside(f.Broker)); err != nil {
			return f, nil, err
		}
		if with.broker == nil {
			return f, nil, cli.InFile(file, fmt.Errorf("broker: %s is not a broker.yaml", f.Broker))
		}
	}
	if len(f.Resources) == 0 || slices.Contains(f.Resources, "-") {
		return f, nil, cli.InFile(file, errors.New("resources: files or directories are wanted"))
	}
	var names []string
	for _, name := range f.Resources {
		names = append(names, beside(name))
	}
	all, err := p.readResources(names)
	if err != nil {
		return f, nil, err
	}
	if set, err = compile(all, with); err != nil {
		return f, nil, resource.Locate(err, all)
	}
	return f, set, f.check(file, td(all, with))
}

func td(all []resource.Resource, with validFile) spiffeid.TrustDomain {
	if with.broker != nil {
		if td, err := identity.ParseTrustDomain(with.broker.TrustDomain); err == nil {
			return td
		}
	}
	td, _ := trustDomainOf(all) // it was compiled under it
	return td
}

// check refuses a case that could not fail, and makes IDs of paths.
func (f *casesFile) check(file string, td spiffeid.TrustDomain) error {
	if len(f.Cases) == 0 {
		return cli.InFile(file, errors.New("cases: none: nothing would be tested"))
	}
	seen := map[string]bool{}
	for n := range f.Cases {
		c := &f.Cases[n]
		bad := func(format string, args ...any) error {
			return cli.InFile(file, fmt.Errorf("cases[%d]: "+format, append([]any{n}, args...)...))
		}
		switch {
		case c.Name == "" || seen[c.Name]:
			return bad("name: each case has one of its own")
		case (len(c.Want) == 0) == (c.Denied == ""):
			return bad("%s: want: SPIFFE IDs, or denied: a code, is wanted", c.Name)
		case c.Because != "" && c.Denied == "":
			return bad("%s: because: it is for what is denied", c.Name)
		}
		seen[c.Name] = true
		if _, err := c.request(); err != nil {
			return bad("%s: %w", c.Name, err)
		}
		for i, id := range c.Want {
			if strings.HasPrefix(id, "/") {
				c.Want[i] = td.IDString() + id
			}
			if _, err := identity.ParseID(c.Want[i]); err != nil {
				return bad("%s: want: %w", c.Name, err)
			}
		}
		slices.Sort(c.Want)
	}
	return nil
}

func (c *policyCase) request() (r identity.Request, err error) {
	// Lives are not what is tested: any time will do.
	r = identity.Request{Unknown: c.Unknown, Audiences: c.Audiences, Target: c.Target, Time: time.Unix(1<<31, 0)}
	for root, from := range map[string]map[string]literal{"node": c.Node, "workload": c.Workload, "user": c.User, "peer": c.Peer} {
		if len(from) == 0 {
			continue
		}
		facts := make(map[string][]string, len(from))
		for name, values := range from {
			facts[name] = values
		}
		to := map[string]*identity.Facts{"node": &r.Node, "workload": &r.Workload, "user": &r.User, "peer": &r.Peer}[root]
		if *to, err = identity.NewFacts(root, facts); err != nil {
			return r, err
		}
	}
	return r, nil
}

// caseView is how a case ended.
type caseView struct {
	Name   string   `json:"name"`
	OK     bool     `json:"ok"`
	Want   []string `json:"want,omitempty"` // SPIFFE IDs
	Got    []string `json:"got,omitempty"`
	Denied string   `json:"denied,omitempty"` // the code that was wanted
	Code   string   `json:"code"`             // that came
	Why    string   `json:"why,omitempty"`    // of a case that failed
}

func (p *program) testCases(cmd *cobra.Command, f casesFile, set *identity.Set) error {
	views, failed := []caseView{}, 0
	for _, c := range f.Cases {
		v, err := c.try(set)
		if err != nil {
			return err
		}
		if views = append(views, v); !v.OK {
			failed++
		}
	}
	doc := map[string]any{"cases": views, "failed": failed}
	err := p.Show(cmd, doc, func() error {
		for _, v := range views {
			if !v.OK {
				fmt.Fprint(p.Out, v.diff())
			}
		}
		_, err := fmt.Fprintf(p.Out, "%d cases, %d failed\n", len(views), failed)
		return err
	})
	if err == nil && failed > 0 {
		return cli.Coded{Code: cli.ExitNo}
	}
	return err
}

// try decides as the broker does; what Explain says is only shown.
func (c *policyCase) try(set *identity.Set) (caseView, error) {
	r, err := c.request()
	if err != nil {
		return caseView{}, err
	}
	x := set.Explain(r)
	v := caseView{Name: c.Name, Want: c.Want, Denied: c.Denied, Code: x.Code}
	decisions, err := set.Decide(r)
	if err != nil && !errors.Is(err, identity.ErrDenied) {
		return v, err
	}
	for _, d := range decisions {
		v.Got = append(v.Got, d.ID.String())
	}
	slices.Sort(v.Got)
	if c.Denied == "" {
		v.OK = slices.Equal(v.Got, c.Want)
	} else {
		v.OK = len(v.Got) == 0 && (c.Denied == x.Code || c.Denied == "any") && strings.Contains(x.String(), c.Because)
	}
	if !v.OK {
		v.Why = strings.TrimRight(x.String(), "\n")
		if c.Because != "" && !strings.Contains(v.Why, c.Because) {
			v.Why = fmt.Sprintf("it was to say %q:\n%s", c.Because, v.Why)
		}
	}
	return v, nil
}

// diff shows what was wanted with -, and what came with +.
func (v caseView) diff() string {
	var b strings.Builder
	fmt.Fprintf(&b, "FAILED: %s\n", v.Name)
	want, got := v.Want, v.Got
	if v.Denied != "" {
		want = []string{"denied: " + v.Denied}
	}
	if len(got) == 0 {
		got = []string{"denied: " + v.Code}
	}
	for _, id := range want {
		if !slices.Contains(got, id) {
			fmt.Fprintf(&b, "  - %s\n", id)
		}
	}
	for _, id := range got {
		if !slices.Contains(want, id) {
			fmt.Fprintf(&b, "  + %s\n", id)
		}
	}
	for line := range strings.Lines(v.Why) {
		fmt.Fprintf(&b, "    %s\n", strings.TrimRight(line, "\n"))
	}
	return b.String()
}
