package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/cmd/cli"
	"github.com/credence-id/credence/federation"
	"github.com/credence-id/credence/federation/fetch"
)

func (p *program) peerCheckCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "check TRUST-DOMAIN | --as-peer URL", Short: "Say what keeps a peer from being reached, or us by peers", Args: cobra.MaximumNArgs(1),
		Long: `Check has the broker look at a peer's endpoint, step by step: DNS, TCP, profile,
certificate, SPIFFE ID, bundle, sequence, clock. Where one fails it says the one
thing to change (1). It changes nothing.

With --as-peer this program looks at our own endpoint at URL as a peer would who
knows our bundle and SPIFFE ID; run it where peers are. --allow-private is for
peers who say allow_private: true.`,
		Example: "  credence peer check partner.example\n  credence peer check partner.example -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			url, _ := cmd.Flags().GetString("as-peer")
			if (len(args) == 1) == (url != "") {
				return cli.BadInput(errors.New("a peer's TRUST-DOMAIN or --as-peer URL is wanted"))
			}
			return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
				if url != "" {
					return p.checkAsPeer(cmd, ctx, c, url)
				}
				r, err := c.CheckPeer(ctx, &api.CheckPeerRequest{TrustDomain: args[0]})
				if err != nil {
					return err
				}
				var findings []federation.Finding
				for _, f := range r.GetFindings() {
					findings = append(findings, federation.Finding{Step: f.GetStep(), Found: f.GetFound(), Problem: f.GetProblem(), Change: f.GetChange()})
				}
				return p.writeFindings(cmd, args[0], findings)
			})
		},
	}
	cmd.Flags().String("as-peer", "", "our bundle endpoint, as peers have it")
	cmd.Flags().String("profile", "", "with --as-peer: https_spiffe or https_web (default: whichever the endpoint is for)")
	cmd.Flags().Bool("allow-private", false, "with --as-peer: as a peer who says allow_private: true")
	return cli.AddOutput(addAdmin(cmd))
}

// checkAsPeer looks at our own endpoint from where this program runs. What it
// ought to find is what the broker says over its admin socket.
func (p *program) checkAsPeer(cmd *cobra.Command, ctx context.Context, c api.AdminClient, url string) error {
	profile, _ := cmd.Flags().GetString("profile")
	private, _ := cmd.Flags().GetBool("allow-private")
	if profile != "" && profile != "https_spiffe" && profile != "https_web" {
		return cli.BadInput(fmt.Errorf("--profile %s: https_spiffe or https_web is wanted", profile))
	}
	shown, err := c.ShowBundle(ctx, &api.ShowBundleRequest{})
	if err != nil {
		return err
	}
	td, err := federation.ParseTrustDomain(shown.GetTrustDomain())
	if err != nil {
		return err
	}
	own, err := federation.ParseBundle(td, shown.GetDocument())
	if err != nil {
		return err
	}
	id, err := spiffeid.FromPath(td, "/credence/broker")
	if err != nil {
		return err
	}
	web := federation.CheckRequest{TrustDomain: td, Last: own, Request: federation.Request{URL: url, AllowPrivate: private, HTTPSWeb: &federation.HTTPSWeb{}}}
	spiffe := federation.CheckRequest{TrustDomain: td, Last: own, Request: federation.Request{URL: url, AllowPrivate: private,
		HTTPSSPIFFE: &federation.Authentication{EndpointID: id, Bundle: own.X509Bundle()}}}
	client := fetch.New(fetch.Config{Now: p.Now})
	if profile == "https_web" {
		return p.writeFindings(cmd, td.Name(), client.Check(ctx, web))
	}
	findings := client.Check(ctx, spiffe)
	if last := findings[len(findings)-1]; profile == "" && last.Other {
		findings = client.Check(ctx, web)
	}
	return p.writeFindings(cmd, td.Name(), findings)
}

type peerCheckView struct {
	Name     string            `json:"name"`
	OK       bool              `json:"ok"`
	Change   string            `json:"change"` // the one thing
	Findings []peerFindingView `json:"findings"`
}

type peerFindingView struct {
	Step    string `json:"step"`
	OK      bool   `json:"ok"`
	Found   string `json:"found"`
	Problem string `json:"problem"`
}

func (p *program) writeFindings(cmd *cobra.Command, name string, findings []federation.Finding) error {
	v, rows := peerCheckView{Name: name, OK: true, Findings: []peerFindingView{}}, [][]string{}
	for _, f := range findings {
		ok, state, text := f.Problem == "", "ok", f.Found
		if !ok {
			v.OK, v.Change, state, text = false, f.Change, "no", f.Problem
		}
		v.Findings = append(v.Findings, peerFindingView{f.Step, ok, f.Found, f.Problem})
		rows = append(rows, []string{state, f.Step, text})
	}
	err := p.Show(cmd, v, func() error {
		if err := p.Table("OK|CHECK|FOUND", rows); err != nil || v.OK {
			return err
		}
		_, err := fmt.Fprintln(p.Out, "change:", v.Change)
		return err
	})
	if err == nil && !v.OK {
		err = cli.Coded{Code: cli.ExitNo}
	}
	return err
}
