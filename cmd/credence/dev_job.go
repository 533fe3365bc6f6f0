package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/cmd/cli"
	"github.com/credence-id/credence/exchangers"
)

// mainJob is what dev shows: identity, exchange, protected calls, a peer. A
// step that fails stands in the report with its error; the others go on.
func (d *dev) mainJob(ctx context.Context) *devReport {
	r := &devReport{TrustDomain: devDomain, started: d.p.started}
	r.Workload.JWT.Aud = []string{}
	source, err := x509Source(ctx, d.own.socket("workload"))
	if err == nil {
		defer source.Close()
		r.Timing.FirstSVID = time.Since(d.p.started).Milliseconds()
		err = d.identity(ctx, r, source)
	}
	if err != nil {
		fmt.Fprintln(d.p.Err, "credence: the demo workload got no SVID:", cli.ExplainStatus(err))
	}
	var jobs sync.WaitGroup
	jobs.Go(func() { d.meetPeer(ctx, r, source) })
	r.Targets = make([]devTarget, len(targetNames))
	for i, name := range targetNames {
		jobs.Go(func() { r.Targets[i] = d.exchange(ctx, name) })
	}
	jobs.Wait()
	r.Timing.Total = time.Since(d.p.started).Milliseconds()
	d.say("%s", r.verdict())
	return r
}

// x509Source is a source of the X509-SVIDs at a socket. By itself one waits,
// when denied, for the policy to change; here that ends it.
func x509Source(ctx context.Context, socket string) (*workloadapi.X509Source, error) {
	at := workloadapi.WithAddr("unix://" + socket)
	if _, err := workloadapi.FetchX509Context(ctx, at); status.Code(err) == codes.PermissionDenied {
		return nil, err
	}
	return workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(at))
}

// identity fills in who the demo workload is, from what it got.
func (d *dev) identity(ctx context.Context, r *devReport, source *workloadapi.X509Source) error {
	svid, err := source.GetX509SVID()
	if err != nil {
		return err
	}
	leaf := svid.Certificates[0]
	r.Workload.SPIFFEID = svid.ID.String()
	r.Workload.X509 = devX509{
		Serial: cli.SerialText(leaf), NotAfter: leaf.NotAfter.UTC().Format(time.RFC3339),
		ChainLength: len(svid.Certificates), KeyType: keyType(leaf),
	}
	d.say("the demo workload is %s: X509-SVID until %s", svid.ID, leaf.NotAfter.UTC().Format(time.RFC3339))
	client, err := workloadapi.New(ctx, workloadapi.WithAddr("unix://"+d.own.socket("workload")))
	if err != nil {
		return err
	}
	defer client.Close()
	token, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "demo"})
	if err != nil {
		return fmt.Errorf("the demo workload got no JWT-SVID: %w", err)
	}
	r.Workload.JWT = devJWT{Alg: algOf(token.Marshal()), Aud: token.Audience, Exp: token.Expiry.Unix()}
	d.say("and a JWT-SVID (%s) for audience %q until %s", r.Workload.JWT.Alg, "demo", token.Expiry.UTC().Format(time.RFC3339))
	return nil
}

func keyType(c *x509.Certificate) string {
	switch k := c.PublicKey.(type) {
	case *ecdsa.PublicKey:
		return "EC " + k.Curve.Params().Name
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", k.N.BitLen())
	}
	return c.PublicKeyAlgorithm.String()
}

func algOf(token string) string {
	raw, err := base64.RawURLEncoding.DecodeString(strings.SplitN(token, ".", 2)[0])
	var header struct {
		Alg string `json:"alg"`
	}
	if err != nil || json.Unmarshal(raw, &header) != nil {
		return ""
	}
	return header.Alg
}

// exchange trades the demo workload's SVID at a target, and makes the
// protected call with what it gave.
func (d *dev) exchange(ctx context.Context, name string) devTarget {
	t := devTarget{Name: name, Provider: providerOf(name)}
	self, err := caller.Open(os.Getpid())
	if err != nil {
		t.Error = err.Error()
		return t
	}
	defer self.Close()
	credential, err := d.own.agent.Agent.Credential(ctx, self, name)
	if err == nil {
		t.Expires = credential.Expires.UTC().Format(time.RFC3339)
		t.Whoami, err = d.cloud.whoami(ctx, name, credential, d.web.roots)
	}
	if err != nil {
		t.Error = err.Error()
		d.say("%s: refused: %v", name, err)
		return t
	}
	t.OK = t.Whoami != ""
	d.say("%s: a credential until %s; the cloud says we are %s", name, t.Expires, t.Whoami)
	return t
}

func providerOf(target string) string {
	provider, _, _ := strings.Cut(target, "-")
	return provider
}

// whoami makes a cloud's protected call with a credential.
func (c *devCloud) whoami(ctx context.Context, target string, credential exchangers.Credential, roots *x509.CertPool) (string, error) {
	switch {
	case credential.AWS != nil:
		return c.awsWhoami(ctx, credential.AWS, roots)
	case credential.Bearer != nil && target == "gcp":
		return bearerWhoami(ctx, c.GCPWhoami, credential.Bearer.Token, roots, "principal")
	case credential.Bearer != nil:
		return bearerWhoami(ctx, c.AzureWhoami, credential.Bearer.Token, roots, "appid")
	}
	return "", errors.New("the exchange gave nothing")
}

func (c *devCloud) awsWhoami(ctx context.Context, credential *exchangers.AWS, roots *x509.CertPool) (string, error) {
	client := sts.New(sts.Options{
		Region: awsRegion, BaseEndpoint: aws.String(c.STS),
		HTTPClient: awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
			t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
		}),
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{
				AccessKeyID: credential.AccessKeyID, SecretAccessKey: credential.SecretAccessKey.Reveal(), SessionToken: credential.SessionToken.Reveal(),
			}, nil
		}),
	})
	out, err := client.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	if err != nil {
		return "", err
	}
	return aws.ToString(out.Arn), nil
}

func bearerWhoami(ctx context.Context, url string, token exchangers.Secret, roots *x509.CertPool, member string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/whoami", nil)
	if err != nil {
		return "", err
	}
	request.Header.Set("Authorization", "Bearer "+token.Reveal())
	transport := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}, DisableKeepAlives: true}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 64<<10))
	if err != nil {
		return "", err
	}
	var answer map[string]any
	if response.StatusCode != http.StatusOK || json.Unmarshal(body, &answer) != nil {
		return "", fmt.Errorf("the protected call answers %s: %.200s", response.Status, body)
	}
	who, _ := answer[member].(string)
	return who, nil
}

// meetPeer completes mTLS both ways with a workload of the peer, each side
// with the bundles from its own Workload API.
func (d *dev) meetPeer(ctx context.Context, r *devReport, own *workloadapi.X509Source) {
	result := devPeerReport{TrustDomain: devPeer}
	err := func() error {
		if own == nil {
			return errors.New("the demo workload has no X509-SVID to show")
		}
		partner, err := x509Source(ctx, d.peer.socket("workload"))
		if err != nil {
			return fmt.Errorf("the peer's workload got no X509-SVID: %w", err)
		}
		defer partner.Close()
		us, them := "spiffe://"+devDomain+devWorkload, "spiffe://"+devPeer+devPartner
		if err := handshake(ctx, own, them, partner, us); err != nil {
			return fmt.Errorf("the peer calls us: %w", err)
		}
		if err := handshake(ctx, partner, us, own, them); err != nil {
			return fmt.Errorf("we call the peer: %w", err)
		}
		return nil
	}()
	result.Verified = err == nil
	if err != nil {
		result.Error = err.Error()
		d.say("%s: not verified: %v", devPeer, err)
	} else {
		d.say("mTLS both ways with %s of the peer: each verified the other with the bundle from its own Workload API", "spiffe://"+devPeer+devPartner)
	}
	r.Peers = []devPeerReport{result}
}

// handshake has client call server over mTLS, each demanding the other's exact
// SPIFFE ID, and a message pass each way.
func handshake(ctx context.Context, server *workloadapi.X509Source, clientID string, client *workloadapi.X509Source, serverID string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		served <- serveOnce(ctx, l, tlsconfig.MTLSServerConfig(server, server, tlsconfig.AuthorizeID(spiffeid.RequireFromString(clientID))))
	}()
	config := tlsconfig.MTLSClientConfig(client, client, tlsconfig.AuthorizeID(spiffeid.RequireFromString(serverID)))
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", l.Addr().String())
	if err != nil {
		return errors.Join(err, l.Close(), <-served)
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	if _, err := io.WriteString(conn, "hello\n"); err != nil {
		return errors.Join(err, <-served)
	}
	answer, err := io.ReadAll(io.LimitReader(conn, 64))
	if err == nil && string(answer) != "hello\n" {
		err = fmt.Errorf("the answer is %q", answer)
	}
	return errors.Join(err, <-served)
}

func serveOnce(ctx context.Context, l net.Listener, config *tls.Config) error {
	raw, err := l.Accept()
	if err != nil {
		return err
	}
	conn := tls.Server(raw, config)
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	buf := make([]byte, len("hello\n"))
	if _, err := io.ReadFull(conn, buf); err != nil {
		return err
	}
	_, err = conn.Write(buf)
	return err
}
