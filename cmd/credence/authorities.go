package main

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/cmd/cli"
)

func (p *program) authorityCommand() *cobra.Command {
	cmd := cli.Group("authority", "Signing authorities",
		p.showAuthorities(), p.rotateCommand(), p.replaceCommand(), p.rollbackCommand(), p.csrCommand(), p.installCommand(), p.exportCommand(),
		p.revokeCommand(), p.crlCommand())
	cmd.Aliases = []string{"ca"}
	return cmd
}

func (p *program) showAuthorities() *cobra.Command {
	cmd := &cobra.Command{
		Use: "show", Short: "List the keys that sign, and what becomes of them", Args: cobra.NoArgs,
		Long: `Show asks the broker for its authorities: the root, the CAs between it and the
SVIDs, and the JWT keys, each with its state, how many SVIDs that it signed have
not ended, what happens to it next and when, and what that depends on; of an
issuing CA, whose it is where brokers share a database. Below stands what hinders
it, and who else can speak for us.

Issuing CAs and JWT keys replace themselves in time; a root is replaced by
credence ca rotate root.`,
		Example: "  credence authority show\n  credence ca show -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
				r, err := c.ListAuthorities(ctx, &api.ListAuthoritiesRequest{})
				if err != nil {
					return err
				}
				all := r.GetAuthorities()
				if whole, _ := cmd.Flags().GetBool("all"); !whole {
					all = slices.DeleteFunc(all, func(a *api.AuthorityInfo) bool { return a.GetState() == "revoked" && a.GetOutstanding() == 0 })
				}
				return p.authorities(cmd, all, func(views []authorityView) any { return views })
			})
		},
	}
	cmd.Flags().Bool("all", false, "those too that have ended and of which no SVID lives")
	return cli.AddOutput(addAdmin(cmd))
}

const authoritiesHead = "KIND|ALG|STATE|KEY|BROKER|ENDS|SVIDS|NEXT|AT|DEPENDS ON"

// withoutBrokers is a table of authorities without the brokers' column.
func withoutBrokers(rows [][]string) (head string, without [][]string) {
	for _, row := range rows {
		without = append(without, slices.Delete(slices.Clone(row), 4, 5))
	}
	return strings.Replace(authoritiesHead, "|BROKER", "", 1), without
}

// authorities shows some, with what hinders them below the table.
func (p *program) authorities(cmd *cobra.Command, all []*api.AuthorityInfo, whole func([]authorityView) any) error {
	views, rows, notes := []authorityView{}, [][]string{}, []string{}
	for _, a := range all {
		v := viewAuthority(a)
		views = append(views, v)
		rows = append(rows, []string{
			v.Use, v.Alg, v.State, v.ID, v.Broker, cli.When(a.GetNotAfter()), fmt.Sprint(v.Outstanding), v.Next, cli.When(a.GetNextAt()), strings.Join(v.DependsOn, "; "),
		})
		if v.Problem != "" {
			notes = append(notes, fmt.Sprintf("problem: %s %s: %s", v.Use, v.ID, v.Problem))
		}
		for _, b := range v.Notes {
			notes = append(notes, fmt.Sprintf("note: %s %s: %s", v.Use, v.ID, b))
		}
	}
	head := authoritiesHead
	if !slices.ContainsFunc(views, func(v authorityView) bool { return v.Broker != "" && v.Broker != audit.DefaultOrigin }) {
		head, rows = withoutBrokers(rows) // there is one
	}
	return p.Show(cmd, whole(views), func() error {
		if err := p.Table(head, rows); err != nil {
			return err
		}
		return p.lines(notes)
	})
}

func (p *program) lines(all []string) error {
	for _, line := range all {
		if _, err := fmt.Fprintln(p.Out, line); err != nil {
			return err
		}
	}
	return nil
}

// authoritiesClient connects to the broker's admin socket and calls do.
func authoritiesClient(cmd *cobra.Command, do func(context.Context, api.AuthoritiesClient) error) error {
	return adminConn(cmd, func(ctx context.Context, conn *grpc.ClientConn) error { return do(ctx, api.NewAuthoritiesClient(conn)) })
}

// acted shows what an act changed, and what it means.
func (p *program) acted(cmd *cobra.Command, r *api.ActResponse, err error) error {
	if err != nil {
		return err
	}
	lines := append([]string{}, r.GetLines()...)
	err = p.authorities(cmd, r.GetAuthorities(), func(views []authorityView) any {
		return map[string]any{"authorities": views, "lines": lines}
	})
	if err != nil || cli.OutputOf(cmd) != "table" {
		return err
	}
	return p.lines(lines)
}

// kinds of authorities that can be rotated and replaced.
var authorityKinds = []string{"issuing", "jwt", "root"}

// kindArg reads "issuing", "jwt" or "root", and the flags that fit it.
func kindArg(cmd *cobra.Command, what string) error {
	if !slices.Contains(authorityKinds, what) {
		return cli.BadInput(fmt.Errorf("%q: issuing, jwt or root is wanted", what))
	}
	of := map[string]string{"alg": "jwt", "of": "issuing", "wait": "root", "now": "root", "force": "root", "confirm": "root"}
	for flag, kind := range of {
		if cmd.Flags().Changed(flag) && kind != what {
			return cli.BadInput(fmt.Errorf("--%s is for %s, not for %s", flag, kind, what))
		}
	}
	return nil
}

func (p *program) rotateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "rotate issuing|jwt|root", Short: "Put a new key in an old one's place, at leisure", Args: cobra.ExactArgs(1),
		Long: `Rotate replaces a key that nobody else has: everything it signed stays good.

issuing  a new issuing CA signs from now on. It is in no bundle, so nobody needs
         to learn it.
jwt      the standby key takes over as soon as it has been published for its
         lead; the key before stays published until its last token has ended.
root     in steps: a new root joins the bundle, agents, peers and clouds learn
         it, it signs, SVIDs under the old one are renewed in their time, the old
         one leaves the bundle. Type it again, or give --wait, to go on; credence
         ca rollback undoes it until the old root has left.

A key that somebody else may have is replaced by credence ca replace.`,
		Example:           "  credence ca rotate issuing\n  credence ca rotate jwt --alg RS256\n  credence ca rotate root",
		ValidArgsFunction: cobra.FixedCompletions(authorityKinds, cobra.ShellCompDirectiveNoFileComp),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := kindArg(cmd, args[0]); err != nil {
				return err
			}
			if args[0] == "root" {
				return p.advanceRoot(cmd, &api.AdvanceRootRequest{})
			}
			alg, _ := cmd.Flags().GetString("alg")
			return authoritiesClient(cmd, func(ctx context.Context, c api.AuthoritiesClient) error {
				r, err := c.Rotate(ctx, &api.RotateRequest{What: args[0], Alg: alg})
				return p.acted(cmd, r, err)
			})
		},
	}
	return addRootFlags(cli.AddOutput(addAdmin(cmd)))
}

func addRootFlags(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().String("alg", "", "jwt: RS256 or ES256; default both")
	cmd.Flags().StringSlice("confirm", nil, "root: this Target's cloud has the new root as its trust anchor")
	cmd.Flags().Bool("wait", false, "root: go on until the old root has left the bundle")
	cmd.Flags().Bool("now", false, "root: activate the new one once connected agents hold it, whatever peers and clouds have")
	cmd.Flags().Bool("force", false, "root: wait for nothing; the output says what breaks")
	completeFlag(cmd, "confirm", completeNamed("Target"))
	return cmd
}

func (p *program) replaceCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "replace issuing|jwt|root", Short: "Take a key out of use that somebody else may have", Args: cobra.ExactArgs(1),
		Long: `Replace is for a key that is, or may be, in other hands. Agents ask at once for
all that it signed to be signed anew; the output says until when a stolen copy
is believed, and by whom.

issuing  a new issuing CA signs at once; the old one is on its signer's CRL. With
         --of b2 the CAs of broker b2 end, at whichever is asked: of one that was
         stolen (keep it from the database first), or is gone for good and left
         revocations that only it could put on a CRL.
jwt      the standby key signs at once; the bad key leaves the bundle and the
         OIDC keys at once.
root     the steps of credence ca rotate root, but SVIDs under the old root are
         signed anew as soon as the new one signs. It refuses to drop the old
         one while somebody would be left without: --force says what breaks.`,
		Example: `  credence ca replace issuing --reason 'a copy of the disk is missing'
  credence ca replace jwt --alg ES256 --reason 'a drill'
  credence ca replace root`,
		ValidArgsFunction: cobra.FixedCompletions(authorityKinds, cobra.ShellCompDirectiveNoFileComp),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := kindArg(cmd, args[0]); err != nil {
				return err
			}
			if args[0] == "root" {
				return p.advanceRoot(cmd, &api.AdvanceRootRequest{Resign: true})
			}
			alg, _ := cmd.Flags().GetString("alg")
			name, _ := cmd.Flags().GetString("of")
			reason, _ := cmd.Flags().GetString("reason")
			if cmd.Flags().Changed("of") && name == "" {
				return cli.BadInput(errors.New("--of: a broker's name is wanted: without the flag it is the CA of the broker that is asked"))
			}
			return adminConn(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				if name != "" {
					if err := knowsBrokers(ctx, conn); err != nil {
						return err
					}
				}
				r, err := api.NewAuthoritiesClient(conn).Replace(ctx, &api.ReplaceRequest{What: args[0], Alg: alg, Reason: reason, Broker: name})
				return p.acted(cmd, r, err)
			})
		},
	}
	cmd.Flags().String("reason", "", "for the record")
	cmd.Flags().String("of", "", "issuing: another broker's, by its name")
	return addRootFlags(cli.AddOutput(addAdmin(cmd)))
}

// knowsBrokers refuses a broker of an older release: it does not read --of, and
// would replace its own CA.
func knowsBrokers(ctx context.Context, conn *grpc.ClientConn) error {
	r, err := api.NewAdminClient(conn).ListAuthorities(ctx, &api.ListAuthoritiesRequest{})
	if err == nil && !slices.ContainsFunc(r.GetAuthorities(), func(a *api.AuthorityInfo) bool { return a.GetBroker() != "" }) {
		err = cli.BadInput(errors.New("the broker does not say whose issuing CAs there are, as one of this release does: ask one that is upgraded"))
	}
	return err
}

// rootPause is how long advanceRoot waits before it looks again.
const rootPause = time.Second

// advanceRoot takes the replacement of the root on, and shows where it stands.
func (p *program) advanceRoot(cmd *cobra.Command, r *api.AdvanceRootRequest) error {
	r.Reason, _ = cmd.Flags().GetString("reason")
	r.Confirm, _ = cmd.Flags().GetStringSlice("confirm")
	r.Now, _ = cmd.Flags().GetBool("now")
	r.Force, _ = cmd.Flags().GetBool("force")
	wait, _ := cmd.Flags().GetBool("wait")
	return authoritiesClient(cmd, func(ctx context.Context, c api.AuthoritiesClient) error {
		plan, err := c.AdvanceRoot(ctx, r)
		if err != nil {
			return err
		}
		if wait {
			if plan, err = p.awaitRoot(ctx, c, r, plan); err != nil {
				return err
			}
		}
		return p.showPlan(cmd, plan)
	})
}

// awaitRoot takes the replacement on until the old root has left, telling on
// the way which step waits for what.
func (p *program) awaitRoot(ctx context.Context, c api.AuthoritiesClient, r *api.AdvanceRootRequest, plan *api.RootPlan) (*api.RootPlan, error) {
	progress := p.StartProgress("replacing the root")
	defer progress.Stop()
	said, lines := map[string]bool{}, plan.GetLines()
	r.Confirm, r.Force = nil, false // once is enough
	for !plan.GetDone() {
		for _, s := range plan.GetSteps() {
			if key := s.GetName() + s.GetState(); !said[key] && (s.GetState() == "done" || s.GetState() == "waits") {
				said[key] = true
				progress.Print(func() { fmt.Fprintf(p.Err, "%-8s %-5s %s\n", s.GetName(), s.GetState(), s.GetDetail()) })
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(rootPause):
		}
		var err error
		plan, err = c.AdvanceRoot(ctx, r)
		switch {
		case ctx.Err() != nil:
			return nil, errors.New("stopped while it waited: nothing is lost, the same command goes on")
		case err != nil:
			return nil, err
		}
		lines = append(lines, plan.GetLines()...)
	}
	plan.Lines = lines
	return plan, nil
}

func (p *program) showPlan(cmd *cobra.Command, plan *api.RootPlan) error {
	type stepView struct {
		Step   string `json:"step"`
		State  string `json:"state"`
		Detail string `json:"detail"`
	}
	views, rows := []stepView{}, [][]string{}
	waits := false
	for _, s := range plan.GetSteps() {
		views = append(views, stepView{s.GetName(), s.GetState(), s.GetDetail()})
		rows = append(rows, []string{s.GetName(), s.GetState(), s.GetDetail()})
		waits = waits || s.GetState() == "waits"
	}
	lines := append([]string{}, plan.GetLines()...)
	return p.Show(cmd, map[string]any{"done": plan.GetDone(), "steps": views, "lines": lines}, func() error {
		if len(rows) > 0 {
			if err := p.Table("STEP|STATE|DETAIL", rows); err != nil {
				return err
			}
		}
		if waits {
			lines = append(lines, "it goes on by the same command, or with --wait; credence ca rollback undoes it")
		}
		return p.lines(lines)
	})
}

func (p *program) rollbackCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "rollback", Short: "Undo the replacement of the root, until the old one has left", Args: cobra.NoArgs,
		Long: `Rollback undoes what credence ca rotate root, ca replace root or ca install
began. A root that is only published leaves the bundle; where the new root signs
already, the old one does again, what was signed meanwhile is signed anew, and
the new root leaves the bundle once the last of it has ended. There is no way
back once the old root has left the bundle.`,
		Example: "  credence ca rotate root\n  credence ca rollback --reason 'the clouds are not ready'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			reason, _ := cmd.Flags().GetString("reason")
			return authoritiesClient(cmd, func(ctx context.Context, c api.AuthoritiesClient) error {
				r, err := c.RollbackRoot(ctx, &api.RollbackRootRequest{Reason: reason})
				return p.acted(cmd, r, err)
			})
		},
	}
	cmd.Flags().String("reason", "", "for the record")
	return cli.AddOutput(addAdmin(cmd))
}

func (p *program) csrCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "csr", Short: "Ask a corporate PKI to certify a CA of ours", Args: cobra.NoArgs,
		Long: `Csr prints a request (PKCS#10, PEM) to certify a trust-domain CA of ours: CA:TRUE
with path length 1, keyCertSign and cRLSign, the trust domain's SPIFFE ID as URI
SAN. Its key is made once, in the source that broker.yaml names for the root's;
until a certificate for it is installed every call prints a request for the same
key, unless --again, which gives the old one up.

Have the PKI team sign it as it is, and install what they return, with all that
is above it up to the root: credence ca install. Path length 0 works too: then
that certificate signs SVIDs itself, and each rotation needs the PKI team.`,
		Example: "  credence ca csr --out ca.csr\n  credence ca csr --again",
		RunE: func(cmd *cobra.Command, _ []string) error {
			out, _ := cmd.Flags().GetString("out")
			again, _ := cmd.Flags().GetBool("again")
			return authoritiesClient(cmd, func(ctx context.Context, c api.AuthoritiesClient) error {
				r, err := c.MakeCSR(ctx, &api.MakeCSRRequest{Again: again})
				if err != nil {
					return err
				}
				text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: r.GetCsr()})
				if out == "" {
					_, err = p.Out.Write(text)
					return err
				}
				if err := os.WriteFile(out, text, 0o644); err != nil {
					return cli.BadInput(err)
				}
				fmt.Fprintf(p.Out, "%s asks to certify key %s\n", out, r.GetKeyId())
				return nil
			})
		},
	}
	cmd.Flags().String("out", "", "write it to this file")
	cmd.Flags().Bool("again", false, "with a new key; the one before is given up")
	return addAdmin(cmd)
}

func (p *program) installCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "install CHAIN.pem", Short: "Take up the CA certificate that a corporate PKI made", Args: cobra.ExactArgs(1),
		Long: `Install takes what the PKI team made of credence ca csr: our certificate first,
then what signed it, up to and with the root, as PEM. Everything is checked
before anything is kept, a test SVID signed and verified as Go, OpenSSL and a
Roles Anywhere trust anchor do; a refusal names the certificate, the field, and
what it should be.

Whoever can sign under the anchor in our bundle can speak for us. So say what
else that root signs: --root-is-dedicated (nothing), or --accept-shared-root (it
signs others too, and every CA under it is believed as we are; credence ca show
says so ever after). With anchor: ours in broker.yaml the bundle holds our own
CA instead of the root.

In a trust domain that has no root yet it is in use at once. In a running one
its root joins the bundle, and goes the way of credence ca replace root; --now
switches as soon as the connected agents hold it.`,
		Example: "  credence ca install chain.pem --root-is-dedicated || echo 'the reason names the field'",
		RunE:    p.install,
	}
	cmd.Flags().Bool("root-is-dedicated", false, "that root signs nothing but this trust domain's CAs")
	cmd.Flags().Bool("accept-shared-root", false, "that root signs others too, and each of them can speak for us")
	cmd.Flags().Bool("now", false, "switch as soon as connected agents hold it, whatever peers and clouds have")
	cmd.MarkFlagsMutuallyExclusive("root-is-dedicated", "accept-shared-root")
	return cli.AddOutput(addAdmin(cmd))
}

func (p *program) install(cmd *cobra.Command, args []string) error {
	text, err := cli.ReadSmall(args[0])
	if err != nil {
		return cli.BadInput(err)
	}
	r := &api.InstallRequest{Chain: text}
	if yes, _ := cmd.Flags().GetBool("root-is-dedicated"); yes {
		r.SharedRoot = "dedicated"
	}
	if yes, _ := cmd.Flags().GetBool("accept-shared-root"); yes {
		r.SharedRoot = "shared"
	}
	return authoritiesClient(cmd, func(ctx context.Context, c api.AuthoritiesClient) error {
		done, err := c.Install(ctx, r)
		if err != nil {
			return err
		}
		lines := append([]string{}, done.GetLines()...)
		changed := []*api.AuthorityInfo{done.GetAnchor(), done.GetCa()}
		if done.GetAnchor().GetId() == done.GetCa().GetId() {
			changed = changed[:1]
		}
		now, _ := cmd.Flags().GetBool("now")
		switch {
		case done.GetCa().GetState() == "active":
			lines = append(lines, "it is in use")
		case now:
			plan, err := c.AdvanceRoot(ctx, &api.AdvanceRootRequest{Now: true, Resign: true})
			if err != nil {
				return err
			}
			if plan, err = p.awaitActive(ctx, c, plan); err != nil {
				return err
			}
			lines = append(lines, plan.GetLines()...)
			lines = append(lines, "it is in use; credence ca replace root takes the old root out of the bundle")
		default:
			lines = append(lines, "it is in the bundle; credence ca replace root takes it into use")
		}
		return p.acted(cmd, &api.ActResponse{Authorities: changed, Lines: lines}, nil)
	})
}

// awaitActive waits until the new root signs.
func (p *program) awaitActive(ctx context.Context, c api.AuthoritiesClient, plan *api.RootPlan) (*api.RootPlan, error) {
	progress := p.StartProgress("waiting for agents to hold the new root")
	defer progress.Stop()
	active := func(s *api.RootPlan_Step) bool { return s.GetName() == "activate" && s.GetState() == "done" }
	for !plan.GetDone() && !slices.ContainsFunc(plan.GetSteps(), active) {
		select {
		case <-ctx.Done():
			return nil, errors.New("stopped while agents learn the new root: credence ca replace root goes on")
		case <-time.After(rootPause):
		}
		var err error
		if plan, err = c.AdvanceRoot(ctx, &api.AdvanceRootRequest{Now: true, Resign: true}); err != nil {
			return nil, err
		}
	}
	return plan, nil
}
