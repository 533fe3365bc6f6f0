package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/resource"
	"github.com/credence-id/credence/cmd/cli"
	"github.com/credence-id/credence/exchangers"
)

// crlDir is where the commands for clouds expect what ca crl --out wrote.
const crlDir = "crl"

// outsideView is what others make of a revocation, as -o json has it.
type outsideView struct {
	X509   believedView `json:"x509"`
	JWT    believedView `json:"jwt"`
	Clouds []cloudView  `json:"clouds"`
}

// believedView says until when a revoked SVID is believed, and by whom.
type believedView struct {
	Outstanding int        `json:"outstanding"`
	Until       cli.Moment `json:"until"`
	Text        string     `json:"text"`
}

// cloudView is what one Target's provider can do.
type cloudView struct {
	Target        string       `json:"target"`
	Flow          string       `json:"flow"`
	SPIFFEIDs     []string     `json:"spiffe_ids"`
	Sessions      string       `json:"sessions"`
	SessionsUntil cli.Moment   `json:"sessions_until"`
	Remedies      []remedyView `json:"remedies"`
	Missing       []string     `json:"missing"`
}

type remedyView struct {
	Does     string          `json:"does"`
	Limits   []string        `json:"limits"`
	Command  []string        `json:"command"`
	Document json.RawMessage `json:"document"`
}

// outside gathers what is needed to say it.
type outside struct {
	now       time.Time
	issuer    string
	rows      []*api.Issued // what the cut-off is about, also what has ended: sessions outlive SVIDs
	targets   map[string]*exchangers.Target
	exchanged map[string][]string // an Identity's targets; none: it is gone
	lists     []crlView
}

// maxAsked is how many Identities are asked for one by one.
const maxAsked = 64

// askOutside asks the broker for what a cut-off was about.
func (p *program) askOutside(ctx context.Context, conn *grpc.ClientConn, r *api.RevokeRequest, before int64) (*outside, error) {
	o := &outside{now: p.Now(), targets: map[string]*exchangers.Target{}, exchanged: map[string][]string{}}
	authorities, admin := api.NewAuthoritiesClient(conn), api.NewAdminClient(conn)
	q := &api.ListIssuedRequest{Before: before + 1, Limit: broker.MaxIssued} // the cut-off is within that second
	switch r.GetKind() {
	case broker.CutID:
		q.SpiffeId = r.GetValue()
	case broker.CutIdentity:
		q.Identity = r.GetValue()
	case broker.CutNode:
		q.Node = r.GetValue()
	case broker.CutAuthority:
		q.Authority = r.GetValue()
	}
	issued, err := authorities.ListIssued(ctx, q)
	if err != nil {
		return nil, err
	}
	o.rows = issued.GetIssued()
	status, err := admin.Status(ctx, &api.StatusRequest{})
	if err != nil {
		return nil, err
	}
	o.issuer = status.GetIssuer()
	lists, err := authorities.ListCRLs(ctx, &api.ListCRLsRequest{})
	if err != nil {
		return nil, err
	}
	for _, l := range lists.GetLists() {
		v, err := viewCRL(l)
		if err != nil {
			return nil, err
		}
		o.lists = append(o.lists, v)
	}
	return o, o.askResources(ctx, admin)
}

func (o *outside) askResources(ctx context.Context, admin api.AdminClient) error {
	identities := map[string]bool{}
	for _, row := range o.rows {
		if row.GetIdentity() != "" {
			identities[row.GetIdentity()] = true
		}
	}
	requests := []*api.GetRequest{{Kind: "Target"}}
	if len(identities) > maxAsked {
		requests = append(requests, &api.GetRequest{Kind: "Identity"})
	} else {
		for _, name := range slices.Sorted(maps.Keys(identities)) {
			requests = append(requests, &api.GetRequest{Kind: "Identity", Name: name})
		}
	}
	for _, request := range requests {
		got, err := admin.Get(ctx, request)
		if err != nil {
			return err
		}
		for _, r := range got.GetResources() {
			if err := o.take(r); err != nil {
				return err
			}
		}
	}
	return nil
}

func (o *outside) take(r *api.Resource) error {
	parsed, err := registry().Parse(r.GetKind()+" "+r.GetName(), r.GetYaml())
	if err != nil {
		return err
	}
	for _, one := range parsed {
		o.takeOne(one)
	}
	return nil
}

func (o *outside) takeOne(r resource.Resource) {
	switch {
	case r.Target != nil:
		o.targets[r.Target.Name] = r.Target
	case r.Identity != nil:
		o.exchanged[r.Identity.Name] = append([]string{}, r.Identity.Targets...)
	}
}

// view says what it comes to.
func (o *outside) view() outsideView {
	v := outsideView{
		X509: o.believed(broker.KindX509, "X509-SVIDs", fmt.Sprintf("%d of them on the CRLs of their CAs (credence ca crl), which workloads find in the Workload API and others where crl_urls says; who reads none, as peers mostly do, believes them until they end", o.listed())),
		JWT:  o.believed(broker.KindJWT, "JWT-SVIDs", "they are on no list: by the cut-off our own agents' validators refuse them, and nobody else does; other verifiers, clouds too, take them until they end"),
	}
	v.Clouds = []cloudView{}
	for _, name := range slices.Sorted(maps.Keys(o.targets)) {
		if cut := o.cut(o.targets[name]); len(cut.IDs) > 0 {
			v.Clouds = append(v.Clouds, cloudOf(o.targets[name], cut))
		}
	}
	return v
}

// listed is how many of the SVIDs that live are on a CRL.
func (o *outside) listed() (n int) {
	revoked := map[string]bool{}
	for _, l := range o.lists {
		for _, e := range l.Revoked {
			revoked[l.Issuer+" "+e.Serial] = true
		}
	}
	for _, row := range o.rows {
		if row.GetKind() == broker.KindX509 && row.GetExpiresAt() > o.now.Unix() && revoked[row.GetAuthority()+" "+row.GetSerial()] {
			n++
		}
	}
	return n
}

func (o *outside) believed(kind, name, text string) believedView {
	v := believedView{}
	for _, row := range o.rows {
		if row.GetKind() == kind && row.GetExpiresAt() > o.now.Unix() {
			v.Outstanding++
			v.Until = max(v.Until, cli.Moment(row.GetExpiresAt()))
		}
	}
	v.Text = fmt.Sprintf("%s: none is outstanding", name)
	if v.Outstanding > 0 {
		v.Text = fmt.Sprintf("%s: %d outstanding, the last until %s; %s", name, v.Outstanding, cli.When(int64(v.Until)), text)
	}
	return v
}

// cut is what of it may have been exchanged at a target. An X509-SVID goes to
// all targets of its Identity that take one; where that is gone, to any.
func (o *outside) cut(t *exchangers.Target) exchangers.Cut {
	cut := exchangers.Cut{Issuer: o.issuer, Now: o.now}
	ids, signers := map[string]bool{}, map[string]bool{}
	for _, row := range o.rows {
		switch {
		case row.GetKind() == broker.KindJWT && row.GetTarget() == t.Name:
		case row.GetKind() == broker.KindX509 && row.GetIdentity() != "" && t.Settings.Audience() == "" && o.exchanges(row.GetIdentity(), t.Name):
		default:
			continue
		}
		ids[row.GetSpiffeId()] = true
		if end := time.Unix(row.GetExpiresAt(), 0); end.After(cut.Until) {
			cut.Until = end
		}
		if row.GetExpiresAt() > o.now.Unix() {
			signers[row.GetAuthority()] = true
		}
	}
	for _, text := range slices.Sorted(maps.Keys(ids)) {
		if id, err := spiffeid.FromString(text); err == nil {
			cut.IDs = append(cut.IDs, id)
		}
	}
	for _, l := range o.lists {
		if signers[l.Issuer] {
			cut.CRLs = append(cut.CRLs, exchangers.CRLFile{Issuer: l.Issuer, File: crlDir + "/" + l.Issuer + ".pem", NextUpdate: time.Unix(int64(l.NextUpdate), 0)})
		}
	}
	return cut
}

func (o *outside) exchanges(identity, target string) bool {
	targets, known := o.exchanged[identity]
	return !known || slices.Contains(targets, target)
}

func cloudOf(t *exchangers.Target, cut exchangers.Cut) cloudView {
	v := cloudView{Target: t.Name, Flow: t.Flow, Remedies: []remedyView{}}
	for _, id := range cut.IDs {
		v.SPIFFEIDs = append(v.SPIFFEIDs, id.String())
	}
	revoker, ok := t.Settings.(exchangers.Revoker)
	if !ok {
		v.Sessions = "what the provider gave lives until it ends, and it is not known how to end it before"
		v.Missing = []string{"nothing is known of a way to revoke there: ask its operator"}
		return v
	}
	advice := revoker.Revoke(cut)
	v.Sessions, v.SessionsUntil, v.Missing = advice.Sessions, cli.Moment(advice.Until.Unix()), list(advice.Missing)
	for _, r := range advice.Remedies {
		document := r.Document
		if document == nil {
			document = json.RawMessage("null")
		}
		v.Remedies = append(v.Remedies, remedyView{r.Does, list(r.Limits), list(r.Command), document})
	}
	return v
}

// tellOutside writes it for people.
func (p *program) tellOutside(v outsideView) {
	fmt.Fprintf(p.Out, "\n%s\n%s\n", v.X509.Text, v.JWT.Text)
	for _, c := range v.Clouds {
		fmt.Fprintf(p.Out, "\ntarget %s (%s), of %s\n", c.Target, c.Flow, fewOf(c.SPIFFEIDs))
		fmt.Fprintf(p.Out, "  sessions: %s", c.Sessions)
		if c.SessionsUntil != 0 {
			fmt.Fprintf(p.Out, "; none lives after %s", cli.When(int64(c.SessionsUntil)))
		}
		fmt.Fprintln(p.Out)
		for _, text := range c.Missing {
			fmt.Fprintf(p.Out, "  not possible: %s\n", text)
		}
		for n, r := range c.Remedies {
			fmt.Fprintf(p.Out, "  %d. %s\n", n+1, r.Does)
			for _, text := range r.Limits {
				fmt.Fprintf(p.Out, "     - %s\n", text)
			}
			p.tellCommand(r)
		}
	}
}

func (p *program) tellCommand(r remedyView) {
	var words []string
	shown := string(r.Document) == "null"
	for _, w := range r.Command {
		words = append(words, cli.ShellWord(w))
		shown = shown || strings.Contains(w, string(r.Document))
		if strings.HasPrefix(w, "fileb://"+crlDir+"/") {
			fmt.Fprintf(p.Out, "     credence ca crl --out %s\n", crlDir)
		}
	}
	if !shown {
		fmt.Fprintf(p.Out, "     %s\n", r.Document)
	}
	if len(words) > 0 {
		fmt.Fprintf(p.Out, "     %s\n", strings.Join(words, " "))
	}
}

// fewOf is some names, and how many there are besides.
func fewOf(all []string) string {
	const few = 3
	if len(all) <= few {
		return strings.Join(all, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(all[:few], ", "), len(all)-few)
}
