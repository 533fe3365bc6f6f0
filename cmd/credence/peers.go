package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/resource"
	"github.com/credence-id/credence/cmd/cli"
	"github.com/credence-id/credence/federation"
)

func (p *program) peerCommand() *cobra.Command {
	verbs := []*cobra.Command{p.peerAddCommand(), p.peerListCommand(), p.peerShowCommand(), p.peerRefreshCommand(), p.peerAcceptCommand(), p.peerRemoveCommand(), p.peerCheckCommand()}
	for _, c := range verbs[2:] {
		c.ValidArgsFunction = completeFirst(completeNamed("Peer"))
	}
	return cli.Group("peer", "Foreign trust domains, and their bundles", verbs...)
}

func (p *program) peerAddCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "add TRUST-DOMAIN URL", Short: "Trust another trust domain, by its bundle endpoint", Args: cobra.ExactArgs(2),
		Long: `Add has the broker hold a Peer, as apply would, and fetches its bundle at once.
An https_spiffe endpoint is known by its SPIFFE ID, and the first time by the
fingerprint of the peer's bundle, or by a bundle that you got from the peer; an
https_web endpoint by web PKI. Compare the fingerprint, or its words by phone,
with what the peer's "credence bundle show -o table" says.

Where the endpoint is not reached the Peer stands all the same and is polled:
credence peer check says why.`,
		Example: "  credence peer add third.example https://127.0.0.1:9/bundle --profile https_web --allow-private",
		RunE:    p.peerAdd,
	}
	cmd.Flags().String("profile", "https_spiffe", "https_spiffe or https_web")
	cmd.Flags().String("endpoint-id", "", "SPIFFE ID of the https_spiffe endpoint (default spiffe://TRUST-DOMAIN/credence/broker)")
	cmd.Flags().String("bundle", "", "a file with the peer's bundle: SPIFFE JSON or PEM")
	cmd.Flags().String("fingerprint", "", "of the peer's bundle: sha256: and hex")
	cmd.Flags().StringArray("accept", nil, "which of its identities our token endpoint takes as evidence: a path pattern such as '/billing/*'; may be repeated (default none)")
	cmd.Flags().Bool("allow-private", false, "the URL may lead to a loopback, link-local or private address")
	cmd.Flags().String("owner", "default", "whose resource it is")
	_ = cmd.RegisterFlagCompletionFunc("profile", cobra.FixedCompletions([]string{"https_spiffe", "https_web"}, cobra.ShellCompDirectiveNoFileComp))
	cli.CompleteFiles(cmd, "bundle", "json", "pem")
	return cli.AddOutput(addAdmin(cmd))
}

// peerOf makes the Peer of the flags. Nothing of it is guessed from the URL.
func peerOf(cmd *cobra.Command, name, url string) (*federation.Peer, error) {
	td, err := federation.ParseTrustDomain(name)
	if err != nil {
		return nil, err
	}
	peer := &federation.Peer{TrustDomain: td, URL: url}
	peer.AllowPrivate, _ = cmd.Flags().GetBool("allow-private")
	peer.Accept, _ = cmd.Flags().GetStringArray("accept")
	profile, _ := cmd.Flags().GetString("profile")
	id, _ := cmd.Flags().GetString("endpoint-id")
	file, _ := cmd.Flags().GetString("bundle")
	fingerprint, _ := cmd.Flags().GetString("fingerprint")
	switch profile {
	case "https_web":
		if id != "" || file != "" || fingerprint != "" {
			return nil, errors.New("--endpoint-id, --bundle and --fingerprint are of https_spiffe: an https_web endpoint is known by web PKI")
		}
		peer.HTTPSWeb = &federation.HTTPSWeb{}
		return peer, peer.Validate()
	case "https_spiffe":
	default:
		return nil, fmt.Errorf("--profile %s: https_spiffe or https_web is wanted", profile)
	}
	if id == "" {
		id = "spiffe://" + td.Name() + "/credence/broker"
	}
	peer.HTTPSSPIFFE = &federation.HTTPSSPIFFE{Fingerprint: fingerprint}
	if peer.HTTPSSPIFFE.EndpointID, err = federation.ParseID(id); err != nil {
		return nil, fmt.Errorf("--endpoint-id: %w", err)
	}
	if file != "" {
		if peer.HTTPSSPIFFE.Bundle, err = cli.ReadSmall(file); err != nil {
			return nil, err
		}
	} else if fingerprint == "" && peer.HTTPSSPIFFE.EndpointID.TrustDomain() == td {
		return nil, errors.New("--fingerprint or --bundle is wanted: the peer's credence bundle show has both")
	}
	return peer, peer.Validate()
}

func (p *program) peerAdd(cmd *cobra.Command, args []string) error {
	peer, err := peerOf(cmd, args[0], args[1])
	if err != nil {
		return cli.BadInput(err)
	}
	text, err := resource.Resource{Kind: "Peer", Name: peer.TrustDomain.Name(), Peer: peer}.YAML()
	if err != nil {
		return cli.BadInput(err)
	}
	owner, _ := cmd.Flags().GetString("owner")
	return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
		waiting := p.StartProgress("the broker fetches the bundle of " + peer.TrustDomain.Name())
		r, err := c.Apply(ctx, &api.ApplyRequest{Yaml: text, Owner: owner, File: "peer add"})
		waiting.Stop()
		if err != nil {
			return err
		}
		info, err := onePeer(ctx, c, peer.TrustDomain.Name())
		if err != nil {
			return err
		}
		if info.GetLastError() != "" {
			fmt.Fprintf(p.Err, "warning: %s; credence peer check %s says what to change\n", info.GetLastError(), info.GetTrustDomain())
		}
		return p.Show(cmd, viewPeer(info, p.Now()), func() error {
			for _, a := range r.GetApplied() {
				fmt.Fprintf(p.Out, "%s %s %s\n", a.GetKind(), a.GetName(), a.GetAction())
			}
			return p.Fields(viewPeer(info, p.Now()).fields())
		})
	})
}

// onePeer is how things stand with a peer.
func onePeer(ctx context.Context, c api.AdminClient, name string) (*api.PeerInfo, error) {
	r, err := c.ListPeers(ctx, &api.ListPeersRequest{TrustDomain: name})
	if err != nil {
		return nil, err
	}
	if len(r.GetPeers()) != 1 {
		return nil, fmt.Errorf("the broker answers with %d peers", len(r.GetPeers()))
	}
	return r.GetPeers()[0], nil
}

func (p *program) peerListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List the peers, and how fresh their bundles are", Args: cobra.NoArgs,
		Long: `List asks the broker for its peers. STATE is fresh; stale: not confirmed within
max_staleness; waiting: never fetched; held: every key changed, which peer accept
takes; closed: nothing of it is trusted. AGE is since its endpoint last gave the
bundle that is believed.`,
		Example: "  credence peer list\n  credence peer list -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
				r, err := c.ListPeers(ctx, &api.ListPeersRequest{})
				if err != nil {
					return err
				}
				views, rows := []peerView{}, [][]string{}
				for _, one := range r.GetPeers() {
					v := viewPeer(one, p.Now())
					views = append(views, v)
					rows = append(rows, []string{v.Name, v.Profile, v.State, v.age(), fmt.Sprint(v.Sequence), cli.When(int64(v.NextPoll)), v.LastError})
				}
				return p.Show(cmd, views, func() error { return p.Table("PEER|PROFILE|STATE|AGE|SEQUENCE|NEXT POLL|PROBLEM", rows) })
			})
		},
	}
	return cli.AddOutput(addAdmin(cmd))
}

func (p *program) peerShowCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "show TRUST-DOMAIN", Short: "Show one peer: fingerprint, age, what is wrong", Args: cobra.ExactArgs(1),
		Long: `Show asks the broker for one peer: where its bundle comes from, how old it is,
the fingerprint of the bundle that is believed, and of one that waits to be
accepted, each in hex and as words to compare by phone; and which of its
identities our token endpoint takes as evidence (accept of the Peer).`,
		Example: "  credence peer show partner.example\n  credence peer show partner.example -o yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
				info, err := onePeer(ctx, c, args[0])
				return p.writePeer(cmd, info, err)
			})
		},
	}
	return cli.AddOutput(addAdmin(cmd))
}

func (p *program) writePeer(cmd *cobra.Command, info *api.PeerInfo, err error) error {
	if err != nil {
		return err
	}
	v := viewPeer(info, p.Now())
	return p.Show(cmd, v, func() error { return p.Fields(v.fields()) })
}

func (p *program) peerRefreshCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "refresh TRUST-DOMAIN", Short: "Fetch a peer's bundle now", Args: cobra.ExactArgs(1),
		Long: `Refresh has the broker ask a peer's endpoint now, and shows how things stand
then. It exits 1 where the fetch failed: what is believed stays.`,
		Example: "  credence peer refresh partner.example",
		RunE: func(cmd *cobra.Command, args []string) error {
			return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
				r, err := c.RefreshPeer(ctx, &api.RefreshPeerRequest{TrustDomain: args[0]})
				if err := p.writePeer(cmd, r.GetPeer(), err); err != nil {
					return err
				}
				if r.GetPeer().GetLastError() != "" {
					return cli.Coded{Code: cli.ExitNo}
				}
				return nil
			})
		},
	}
	return cli.AddOutput(addAdmin(cmd))
}

func (p *program) peerAcceptCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "accept TRUST-DOMAIN", Short: "Believe a bundle whose every key changed", Args: cobra.ExactArgs(1),
		Long: `Accept has the broker believe a bundle that it holds back, because its https_web
endpoint changed every key: the peer did so, or somebody who took over its name.
Compare the fingerprint that peer show has, or its words, with the peer first;
--fingerprint accepts that and no other.`,
		Example: "  credence peer accept partner.example || echo 'nothing is held'",
		RunE: func(cmd *cobra.Command, args []string) error {
			fingerprint, _ := cmd.Flags().GetString("fingerprint")
			return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
				r, err := c.AcceptPeer(ctx, &api.AcceptPeerRequest{TrustDomain: args[0], Fingerprint: fingerprint})
				return p.writePeer(cmd, r.GetPeer(), err)
			})
		},
	}
	cmd.Flags().String("fingerprint", "", "what was compared with the peer (default: whatever is held)")
	return cli.AddOutput(addAdmin(cmd))
}

func (p *program) peerRemoveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "remove TRUST-DOMAIN", Short: "Trust a trust domain no more", Args: cobra.ExactArgs(1),
		Long: `Remove has the broker drop a Peer and its bundle, and tells all agents at once:
nothing of that trust domain is trusted any more. A peer that Identities name in
federates_with is not removed (2).`,
		Example: `  credence peer add fourth.example https://127.0.0.1:9/bundle --profile https_web --allow-private
  credence peer remove fourth.example`,
		RunE: func(cmd *cobra.Command, args []string) error {
			owner, _ := cmd.Flags().GetString("owner")
			return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
				r, err := c.Delete(ctx, &api.DeleteRequest{Kind: "Peer", Name: args[0], Owner: owner})
				if err != nil {
					return err
				}
				v := map[string]any{"kind": "Peer", "name": args[0], "revision": r.GetRevision()}
				return p.Say(cmd, v, fmt.Sprintf("Peer %s removed: nothing of it is trusted any more", args[0]))
			})
		},
	}
	cmd.Flags().String("owner", "default", "whose resource it is")
	return cli.AddOutput(addAdmin(cmd))
}

type peerView struct {
	Name            string     `json:"name"` // its trust domain
	URL             string     `json:"url"`
	Profile         string     `json:"profile"`
	EndpointID      string     `json:"endpoint_id"`
	State           string     `json:"state"` // waiting, fresh, stale, held, closed
	Age             *int64     `json:"age"`   // seconds since it was confirmed; null: never
	Sequence        uint64     `json:"sequence"`
	FetchedAt       cli.Moment `json:"fetched_at"`
	ConfirmedAt     cli.Moment `json:"confirmed_at"`
	TriedAt         cli.Moment `json:"tried_at"`
	NextPoll        cli.Moment `json:"next_poll"`
	LastError       string     `json:"last_error"`
	MaxStaleness    int64      `json:"max_staleness"` // seconds
	Accept          []string   `json:"accept"`        // which of its identities may be evidence at the token endpoint
	Fingerprint     string     `json:"fingerprint"`
	Words           []string   `json:"words"`
	X509Keys        uint32     `json:"x509_keys"`
	JWTKeys         uint32     `json:"jwt_keys"`
	HeldFingerprint string     `json:"held_fingerprint"`
	HeldWords       []string   `json:"held_words"`
	HeldAt          cli.Moment `json:"held_at"`
	ClosesAt        cli.Moment `json:"closes_at"`
	Ignored         []string   `json:"ignored"`
}

func viewPeer(i *api.PeerInfo, now time.Time) peerView {
	v := peerView{
		Name: i.GetTrustDomain(), URL: i.GetUrl(), Profile: i.GetProfile(), EndpointID: i.GetEndpointId(), State: i.GetState(), Sequence: i.GetSequence(),
		FetchedAt: cli.Moment(i.GetFetchedAt()), ConfirmedAt: cli.Moment(i.GetConfirmedAt()), TriedAt: cli.Moment(i.GetTriedAt()), NextPoll: cli.Moment(i.GetNextPoll()),
		LastError: i.GetLastError(), MaxStaleness: i.GetMaxStaleness(), Accept: list(i.GetAccept()), Fingerprint: i.GetFingerprint(), Words: list(federation.FingerprintWords(i.GetFingerprint())),
		X509Keys: i.GetX509Keys(), JWTKeys: i.GetJwtKeys(), HeldFingerprint: i.GetHeldFingerprint(), HeldWords: list(federation.FingerprintWords(i.GetHeldFingerprint())),
		HeldAt: cli.Moment(i.GetHeldAt()), ClosesAt: cli.Moment(i.GetClosesAt()), Ignored: list(i.GetIgnored()),
	}
	if i.GetConfirmedAt() != 0 {
		age := max(now.Unix()-i.GetConfirmedAt(), 0)
		v.Age = &age
	}
	return v
}

func (v peerView) age() string {
	if v.Age == nil {
		return "-"
	}
	return (time.Duration(*v.Age) * time.Second).String()
}

func (v peerView) fields() [][2]string {
	rows := [][2]string{{"peer", v.Name}, {"state", v.State}, {"url", v.URL}, {"profile", v.Profile}}
	if v.EndpointID != "" {
		rows = append(rows, [2]string{"endpoint", v.EndpointID})
	}
	if v.Fingerprint != "" {
		rows = append(rows, [2]string{"fingerprint", v.Fingerprint}, [2]string{"words", strings.Join(v.Words, " ")})
	}
	if v.Age != nil {
		rows = append(rows, [2]string{"keys", fmt.Sprintf("%d X.509, %d JWT", v.X509Keys, v.JWTKeys)}, [2]string{"sequence", fmt.Sprint(v.Sequence)},
			[2]string{"age", v.age()}, [2]string{"fetched", cli.When(int64(v.FetchedAt))})
	}
	if v.HeldAt != 0 {
		rows = append(rows, [2]string{"held", v.HeldFingerprint}, [2]string{"held words", strings.Join(v.HeldWords, " ")},
			[2]string{"held since", cli.When(int64(v.HeldAt))}, [2]string{"closes", cli.When(int64(v.ClosesAt))})
	}
	if len(v.Accept) > 0 {
		rows = append(rows, [2]string{"accepts", strings.Join(v.Accept, " ")})
	}
	rows = append(rows, [2]string{"next poll", cli.When(int64(v.NextPoll))})
	for _, reason := range v.Ignored {
		rows = append(rows, [2]string{"ignored", reason})
	}
	if v.LastError != "" {
		rows = append(rows, [2]string{"problem", v.LastError})
	}
	return rows
}
