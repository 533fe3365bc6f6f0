// Package logincmd is a person's verb, login, and what it leaves: an X509-SVID
// that the person has because their OpenID provider knows them, in a file of
// theirs, and the way to the broker that gave it.
//
// It trusts the broker, which it knows by its trust domain's bundle or a pin, to
// say which provider to ask; the provider, over TLS; and the person's own
// machine. Nothing that comes back through the browser is believed but the answer
// to the question that was asked: state, PKCE and the nonce, which is the digest
// of the person's key, hold each part of it together. What the person may have is
// left to the broker.
package logincmd

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"net"

	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/cmd/cli"
	"github.com/credence-id/credence/federation"
)

const callTime = 15 * time.Second

// Command makes login.
func Command(p *cli.Program) *cobra.Command {
	cmd := &cobra.Command{
		Use: "login", Short: "Sign in with your OpenID provider, for an SVID of your own", Args: cobra.NoArgs,
		Long: `Login has you sign in, in your browser, with the OpenID provider that broker.yaml
names (login), and keeps the X509-SVIDs that Identities with user.* terms give
you: "credence svid x509" shows and writes them where there is no agent, and
--broker of the operator's verbs uses the one that has a role. The URL to open
is printed; its answer comes back to this machine.

The first time say which broker: its agents' address, its trust domain, and by
what it is known, its pin (credence token create prints it) or bundle. That is
kept, in ~/.local/state/credence/login.json (XDG_STATE_HOME; ` + FileVariable + `), which
you alone may read. Your provider's ID token is good for one SVID: for the next
one sign in again. Where there is no identity for you it exits 4, with the number
of the record that tells the operator why.`,
		Example: `  credence login --broker id.example.org:8443 --trust-domain example.org --ca-pin sha256:...
  credence login                     # the next time
  credence login --no-browser --ttl 15m`,
		RunE: func(cmd *cobra.Command, _ []string) error { return login(cmd, p) },
	}
	cmd.Flags().String("broker", "", "HOST:PORT of the broker's agents' listener (default: as the last time)")
	cmd.Flags().String("trust-domain", "", "the broker's")
	cmd.Flags().StringArray("ca-pin", nil, "the key of a CA of the broker's: sha256:...; may be repeated")
	cmd.Flags().String("bundle", "", "or a file with the trust domain's bundle")
	cmd.Flags().Duration("ttl", 0, "the life to ask for, such as 15m (default: the identity's)")
	cmd.Flags().Bool("no-browser", false, "open none: print the URL alone")
	cli.CompleteFiles(cmd, "bundle", "json", "pem")
	return cli.AddOutput(cmd)
}

func login(cmd *cobra.Command, p *cli.Program) error {
	ttl, _ := cmd.Flags().GetDuration("ttl")
	quiet, _ := cmd.Flags().GetBool("no-browser")
	if cmd.Flags().Changed("ttl") && (ttl <= 0 || ttl%time.Second != 0) {
		return cli.BadInput(fmt.Errorf("--ttl %s: whole seconds are wanted, such as 15m", ttl))
	}
	address, trust, err := whichBroker(cmd)
	if err != nil {
		return err
	}
	l, err := ask(cmd.Context(), p, address, trust, ttl, !quiet)
	if err != nil {
		return err
	}
	path, err := l.keep()
	if err != nil {
		return err
	}
	return tell(cmd, p, l, path)
}

// whichBroker is the broker to ask: that of the flags, or the one that was asked
// the last time.
func whichBroker(cmd *cobra.Command) (address string, trust Trust, err error) {
	address, _ = cmd.Flags().GetString("broker")
	domain, _ := cmd.Flags().GetString("trust-domain")
	trust.Pins, _ = cmd.Flags().GetStringArray("ca-pin")
	file, _ := cmd.Flags().GetString("bundle")
	bad := func(format string, args ...any) (string, Trust, error) {
		return "", Trust{}, cli.BadInput(fmt.Errorf(format, args...))
	}
	if domain == "" && len(trust.Pins) == 0 && file == "" {
		known, err := Load()
		if errors.Is(err, errNone) {
			return bad("which broker? the first time say --broker HOST:PORT --trust-domain NAME, and --ca-pin or --bundle")
		}
		if err != nil {
			return "", Trust{}, err
		}
		if address == "" {
			address = known.Broker
		}
		return address, Trust{Domain: known.Domain, Bundle: known.Bundle}, nil
	}
	if address == "" || domain == "" || (len(trust.Pins) == 0) == (file == "") {
		return bad("--broker, --trust-domain and one of --ca-pin and --bundle are wanted together: without them any server could pose as the broker")
	}
	if _, _, err := net.SplitHostPort(address); err != nil {
		return bad("--broker %.200q: HOST:PORT is wanted", address)
	}
	if trust.Domain, err = spiffeid.TrustDomainFromString(domain); err != nil {
		return bad("--trust-domain: %w", err)
	}
	for _, pin := range trust.Pins {
		if err := agent.CheckPin(pin); err != nil {
			return bad("--ca-pin: %w", err)
		}
	}
	if file == "" {
		return address, trust, nil
	}
	text, err := cli.ReadSmall(file)
	if err != nil {
		return "", Trust{}, cli.BadInput(err)
	}
	b, err := federation.ParseAny(trust.Domain, text)
	if err != nil {
		return bad("--bundle %s: %w", file, err)
	}
	trust.Bundle = b.X509Bundle()
	return address, trust, nil
}

// ask signs in and asks the broker for SVIDs for a key that is made for it.
func ask(ctx context.Context, p *cli.Program, address string, trust Trust, ttl time.Duration, browser bool) (*Login, error) {
	conn, err := Dial(address, trust, nil, p.Now)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	client := api.NewExchangeClient(conn)
	info, err := loginInfo(ctx, client)
	if err != nil {
		return nil, cli.Reached("broker", address, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	token, err := signIn(ctx, info, api.LoginNonce(trust.Domain.Name(), spki), func(url string) { show(p, url, browser) })
	if err != nil {
		return nil, cli.WithCode(cli.ExitDenied, err)
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	answer, err := client.Login(ctx, &api.LoginRequest{IdToken: token, PublicKey: spki, Ttl: int64(ttl / time.Second)})
	if err != nil {
		return nil, cli.Reached("broker", address, err)
	}
	return newLogin(address, trust.Domain, key, answer)
}

func loginInfo(ctx context.Context, client api.ExchangeClient) (*api.LoginInfoResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	return client.LoginInfo(ctx, &api.LoginInfoRequest{})
}

// newLogin holds what the broker gave against what was asked for.
func newLogin(address string, td spiffeid.TrustDomain, key crypto.Signer, m *api.LoginResponse) (*Login, error) {
	l := &Login{Broker: address, Domain: td}
	if err := l.trust(m.GetBundle()); err != nil {
		return nil, fmt.Errorf("the broker's answer: %w", err)
	}
	if len(m.GetSvids()) == 0 {
		return nil, errors.New("the broker answered with no SVID")
	}
	for _, one := range m.GetSvids() {
		svid, err := newSVID(l, key, one)
		if err != nil {
			return nil, fmt.Errorf("the broker's answer: %w", err)
		}
		l.SVIDs = append(l.SVIDs, svid)
	}
	return l, nil
}

type view struct {
	SPIFFEID string     `json:"spiffe_id"`
	Role     string     `json:"role"`
	Serial   string     `json:"serial"`
	NotAfter cli.Moment `json:"not_after"`
}

func tell(cmd *cobra.Command, p *cli.Program, l *Login, path string) error {
	views, rows := []view{}, [][]string{}
	for _, s := range l.SVIDs {
		leaf := s.Certificates[0]
		v := view{s.ID.String(), s.Role, cli.SerialText(leaf), cli.Moment(leaf.NotAfter.Unix())}
		views = append(views, v)
		rows = append(rows, []string{v.SPIFFEID, v.Role, v.Serial, cli.When(int64(v.NotAfter))})
	}
	return p.Show(cmd, map[string]any{"broker": l.Broker, "trust_domain": l.Domain.Name(), "file": path, "svids": views}, func() error {
		return p.Table("SPIFFE ID|ROLE|SERIAL|ENDS", rows)
	})
}

// SVIDs are what a person has without an agent: what login kept or, with a life,
// new ones for this call, for which they sign in anew.
func SVIDs(ctx context.Context, p *cli.Program, ttl time.Duration) (*workloadapi.X509Context, error) {
	l, err := Load()
	if errors.Is(err, errNone) {
		return nil, cli.BadInput(fmt.Errorf("whose SVIDs? set %s to unix:///path of the agent's socket, or give --socket; a person runs credence login first", cli.WorkloadVariable))
	}
	if err != nil {
		return nil, err
	}
	if ttl > 0 {
		if l, err = ask(ctx, p, l.Broker, Trust{Domain: l.Domain, Bundle: l.Bundle}, ttl, true); err != nil {
			return nil, err
		}
	}
	return l.context(p.Now())
}
