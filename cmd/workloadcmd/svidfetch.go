package workloadcmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	agentapi "github.com/credence-id/credence/agent/api"
	"github.com/credence-id/credence/cmd/cli"
)

// askTime is how long one call may take.
const askTime = 15 * time.Second

// workloadAPI calls do with a client of the Workload API.
func (a *asked) workloadAPI(ctx context.Context, do func(*workloadapi.Client) error) error {
	if err := a.there(); err != nil {
		return err
	}
	client, err := workloadapi.New(ctx, workloadapi.WithAddr("unix://"+a.socket))
	if err != nil {
		return cli.BadInput(err)
	}
	defer client.Close()
	return do(client)
}

// ownService calls do with a client of our agent's SVIDs.
func (a *asked) ownService(do func(agentapi.SVIDsClient) error) error {
	if err := a.there(); err != nil {
		return err
	}
	conn, err := cli.DialSocket(a.socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	return do(agentapi.NewSVIDsClient(Conn(conn)))
}

func (a *asked) there() error {
	if _, err := os.Stat(a.socket); errors.Is(err, fs.ErrNotExist) {
		return cli.WithCode(cli.ExitUnreachable, fmt.Errorf("no Workload API at %s: is the agent running?", a.socket))
	} else if err != nil {
		return cli.BadInput(err)
	}
	return nil
}

// x509Kind is svid x509.
type x509Kind struct{}

func (x509Kind) fetch(ctx context.Context, a *asked) (fetched, error) {
	if a.person {
		got, err := a.verbs.person(ctx, a.ttl)
		if err != nil {
			return nil, err
		}
		return x509Fetched{got}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	var got *workloadapi.X509Context
	ask := func() error {
		return a.workloadAPI(ctx, func(c *workloadapi.Client) (err error) {
			got, err = c.FetchX509Context(ctx)
			return err
		})
	}
	if a.ttl > 0 {
		ask = func() error {
			return a.ownService(func(c agentapi.SVIDsClient) error {
				m, err := c.X509(ctx, &agentapi.SVIDsX509Request{Ttl: int64(a.ttl / time.Second)})
				if err == nil {
					got, err = x509Context(m)
				}
				return err
			})
		}
	}
	if err := ask(); err != nil {
		return nil, err
	}
	return x509Fetched{got}, nil
}

// x509Context reads our agent's answer as one of the Workload API.
func x509Context(m *agentapi.SVIDsX509Response) (*workloadapi.X509Context, error) {
	x := &workloadapi.X509Context{Bundles: x509bundle.NewSet()}
	for _, v := range m.GetSvids() {
		svid, err := x509svid.ParseRaw(v.GetChain(), v.GetKey())
		if err != nil {
			return nil, err
		}
		svid.Hint = v.GetHint()
		x.SVIDs = append(x.SVIDs, svid)
	}
	for id, der := range m.GetBundles() {
		td, err := spiffeid.TrustDomainFromString(id)
		if err != nil {
			return nil, err
		}
		b, err := x509bundle.ParseRaw(td, der)
		if err != nil {
			return nil, err
		}
		x.Bundles.Add(b)
	}
	if len(x.SVIDs) == 0 {
		return nil, errors.New("the agent answered with no SVID")
	}
	return x, nil
}

type x509Fetched struct{ *workloadapi.X509Context }

type x509View struct {
	SPIFFEID string     `json:"spiffe_id"`
	Hint     string     `json:"hint"`
	Serial   string     `json:"serial"`
	NotAfter cli.Moment `json:"not_after"`
}

func (x x509Fetched) print(p *verbs, cmd *cobra.Command) error {
	all, rows := []x509View{}, [][]string{}
	for _, s := range x.SVIDs {
		leaf := s.Certificates[0]
		r := x509View{s.ID.String(), s.Hint, cli.SerialText(leaf), cli.Moment(leaf.NotAfter.Unix())}
		all = append(all, r)
		rows = append(rows, []string{r.SPIFFEID, r.Hint, r.Serial, cli.When(int64(r.NotAfter))})
	}
	return p.Show(cmd, all, func() error { return p.Table("SPIFFE ID|HINT|SERIAL|ENDS", rows) })
}

func (x x509Fetched) files() ([]svidFile, error) {
	svid := x.DefaultSVID()
	bundle, err := x.Bundles.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
	if err != nil {
		return nil, err
	}
	chain, key, err := svid.Marshal()
	if err != nil {
		return nil, err
	}
	roots, err := bundle.Marshal()
	if err != nil {
		return nil, err
	}
	return []svidFile{{"svid_key.pem", key, 0o600}, {"svid.pem", chain, 0o644}, {"svid_bundle.pem", roots, 0o644}}, nil
}

func (x x509Fetched) about() svidAbout {
	svid := x.DefaultSVID()
	return svidAbout{svid.ID.String(), svid.Certificates[0].NotAfter}
}

// jwtKind is svid jwt.
type jwtKind struct{ audiences []string }

func (j jwtKind) fetch(ctx context.Context, a *asked) (fetched, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	var got jwtFetched
	ask := func() error {
		return a.workloadAPI(ctx, func(c *workloadapi.Client) error {
			svids, err := c.FetchJWTSVIDs(ctx, jwtsvid.Params{Audience: j.audiences[0], ExtraAudiences: j.audiences[1:]})
			for _, s := range svids {
				got = append(got, jwtView{s.ID.String(), s.Hint, s.Audience, cli.Moment(s.Expiry.Unix()), s.Marshal()})
			}
			return err
		})
	}
	if a.ttl > 0 {
		ask = func() error {
			return a.ownService(func(c agentapi.SVIDsClient) error {
				m, err := c.JWT(ctx, &agentapi.SVIDsJWTRequest{Ttl: int64(a.ttl / time.Second), Audiences: j.audiences})
				for _, s := range m.GetSvids() {
					got = append(got, jwtView{s.GetSpiffeId(), s.GetHint(), j.audiences, cli.Moment(s.GetExpires()), s.GetToken()})
				}
				return err
			})
		}
	}
	if err := ask(); err != nil {
		return nil, err
	}
	if len(got) == 0 {
		return nil, errors.New("the agent answered with no SVID")
	}
	return got, nil
}

type jwtFetched []jwtView

type jwtView struct {
	SPIFFEID string     `json:"spiffe_id"`
	Hint     string     `json:"hint"`
	Audience []string   `json:"audience"`
	Expires  cli.Moment `json:"expires"`
	Token    string     `json:"token"`
}

func (j jwtFetched) print(p *verbs, cmd *cobra.Command) error {
	if cli.OutputOf(cmd) == "token" {
		_, err := fmt.Fprintln(p.Out, j[0].Token)
		return err
	}
	rows := [][]string{}
	for _, s := range j {
		rows = append(rows, []string{s.SPIFFEID, s.Hint, strings.Join(s.Audience, ","), cli.When(int64(s.Expires))})
	}
	return p.Show(cmd, []jwtView(j), func() error { return p.Table("SPIFFE ID|HINT|AUDIENCE|ENDS", rows) })
}

func (j jwtFetched) files() ([]svidFile, error) {
	return []svidFile{{"jwt_svid.token", []byte(j[0].Token), 0o600}}, nil
}

func (j jwtFetched) about() svidAbout {
	return svidAbout{j[0].SPIFFEID, time.Unix(int64(j[0].Expires), 0)}
}
