package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/federation"
)

// clockSkew is how far two clocks may differ.
const clockSkew = time.Minute

// Check implements federation.Checker, under the same rules as Fetch. Each step
// needs those before it: it ends with the first that fails, or with the last.
func (c *Client) Check(ctx context.Context, req federation.CheckRequest) []federation.Finding {
	k := &check{c: c, req: req}
	u, err := url.Parse(req.URL)
	if err == nil {
		err = federation.CheckURL(u)
	}
	if err != nil {
		k.fail(federation.StepDNS, "the url is none of a bundle endpoint", "give https://HOST[:PORT]/PATH without a user name")
		return k.findings
	}
	k.host, k.port = u.Hostname(), u.Port()
	if k.port == "" {
		k.port = "443"
	}
	for _, step := range []func(context.Context) bool{
		k.resolve, k.connect, k.profile, k.dates, k.identify, k.chain, k.fetch, k.bundle, k.sequence, k.clock,
	} {
		if !step(ctx) {
			break
		}
	}
	return k.findings
}

// A check is one look at an endpoint.
type check struct {
	c        *Client
	req      federation.CheckRequest
	host     string
	port     string
	shown    []*x509.Certificate
	asked    bool        // for a client certificate
	id       spiffeid.ID // in the shown certificate
	server   seen
	response federation.Response
	found    *federation.Bundle
	findings []federation.Finding
}

func (k *check) ok(step, format string, args ...any) bool {
	k.findings = append(k.findings, federation.Finding{Step: step, Found: fmt.Sprintf(format, args...)})
	return true
}

func (k *check) fail(step, problem, change string) bool {
	k.findings = append(k.findings, federation.Finding{Step: step, Problem: problem, Change: change})
	return false
}

// other is fail for an endpoint of the other profile.
func (k *check) other(problem, change string) bool {
	k.fail(federation.StepProfile, problem, change)
	k.findings[len(k.findings)-1].Other = true
	return false
}

// step bounds one step as a fetch is bounded.
func (k *check) step(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, k.c.timeout)
}

func (k *check) resolve(ctx context.Context) bool {
	ctx, cancel := k.step(ctx)
	defer cancel()
	addrs := []netip.Addr{}
	if addr, err := netip.ParseAddr(k.host); err == nil {
		addrs = append(addrs, addr)
	} else {
		resolver := k.c.resolver
		if resolver == nil {
			resolver = net.DefaultResolver
		}
		if addrs, err = resolver.LookupNetIP(ctx, "ip", k.host); err != nil {
			return k.unresolved(err)
		}
	}
	return k.judge(addrs)
}

func (k *check) unresolved(err error) bool {
	if missing := new(net.DNSError); errors.As(err, &missing) && missing.IsNotFound {
		return k.fail(federation.StepDNS, "the name "+k.host+" does not resolve",
			"publish an A or AAAA record for "+k.host+", or correct the name in url")
	}
	return k.fail(federation.StepDNS, "looking up "+k.host+": "+plain(err), "mend the resolver of this machine: it does not answer")
}

// judge says of addresses whether any may be dialled, as the dialer will.
func (k *check) judge(addrs []netip.Addr) bool {
	var refused error
	var names []string
	for _, addr := range addrs {
		addr = addr.Unmap() // a resolver gives IPv4 so
		names = append(names, addr.String())
		if err := k.c.checkAddr(addr, k.req.AllowPrivate); err != nil {
			refused = err
			continue
		}
		return k.ok(federation.StepDNS, "%s is at %s", k.host, addr)
	}
	at := k.host + " is at " + strings.Join(names, ", ")
	if bad := new(addressError); errors.As(refused, &bad) && bad.private {
		return k.fail(federation.StepDNS, at+", which is loopback, link-local or private",
			"say allow_private: true in the Peer if it is meant to be there, else have the name lead to a public address")
	}
	return k.fail(federation.StepDNS, at+", which no bundle endpoint has: metadata, multicast, reserved or translated",
		"have the name lead to a public address, or name the network in allow_networks of broker.yaml")
}

func (k *check) connect(ctx context.Context) bool {
	ctx, cancel := k.step(ctx)
	defer cancel()
	conn, err := k.c.dialer(k.req.AllowPrivate).DialContext(ctx, "tcp", net.JoinHostPort(k.host, k.port))
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return k.fail(federation.StepTCP, "nothing listens on port "+k.port+" of "+k.host,
			"start the endpoint there, or correct the port in url")
	case isTimeout(err):
		return k.fail(federation.StepTCP, "port "+k.port+" of "+k.host+" does not answer",
			"let packets through to port "+k.port+": a firewall swallows them")
	case err != nil:
		return k.fail(federation.StepTCP, "connecting: "+plain(err), "make a way from this machine to "+k.host)
	}
	defer conn.Close()
	k.ok(federation.StepTCP, "%s answers", conn.RemoteAddr())
	return k.handshake(ctx, conn)
}

// handshake looks at what the server shows. It believes none of it, and sends
// nothing.
func (k *check) handshake(ctx context.Context, conn net.Conn) bool {
	client := tls.Client(conn, &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: k.host, Time: k.c.now, InsecureSkipVerify: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			k.asked = true
			return new(tls.Certificate), nil
		},
	})
	err := client.HandshakeContext(ctx)
	if err == nil {
		k.shown = client.ConnectionState().PeerCertificates
		return true
	}
	return k.unshaken(err)
}

func (k *check) unshaken(err error) bool {
	header := tls.RecordHeaderError{}
	switch {
	case k.asked:
		return k.wantsClients()
	case errors.As(err, &header):
		return k.fail(federation.StepProfile, "port "+k.port+" speaks no TLS", "serve https on that port, or correct the port in url")
	case strings.Contains(err.Error(), "protocol version"):
		return k.fail(federation.StepProfile, "the endpoint has neither TLS 1.2 nor 1.3", "have the endpoint take TLS 1.2 and 1.3")
	case isTimeout(err):
		return k.fail(federation.StepProfile, "the endpoint takes the connection and says nothing",
			"restart the endpoint, or what stands before it: it hangs in the TLS handshake")
	}
	return k.fail(federation.StepProfile, "TLS handshake: "+plain(err),
		"look into the endpoint's log: it ends the TLS handshake")
}

func (k *check) wantsClients() bool {
	return k.fail(federation.StepProfile, "the endpoint wants a client certificate",
		"have the endpoint ask for no client certificate: a bundle endpoint answers everybody")
}

// profile compares what is shown with what the Peer says.
func (k *check) profile(context.Context) bool {
	leaf := k.shown[0]
	id, noID := federation.LeafID(leaf)
	switch {
	case k.req.HTTPSWeb != nil && noID == nil && len(leaf.DNSNames)+len(leaf.IPAddresses) == 0:
		return k.other("the Peer says https_web, and the endpoint shows the X509-SVID of "+id.String(),
			"set https_spiffe with endpoint_id: "+id.String()+" and the peer's fingerprint in the Peer")
	case k.req.HTTPSWeb != nil:
		return k.ok(federation.StepProfile, "https_web")
	case len(leaf.URIs) == 0:
		return k.other("the Peer says https_spiffe, and the endpoint shows a web certificate of "+names(leaf),
			"set https_web: {} in the Peer, or the url of the peer's https_spiffe endpoint")
	}
	return k.ok(federation.StepProfile, "https_spiffe")
}

func names(leaf *x509.Certificate) string {
	all := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		all = append(all, ip.String())
	}
	if len(all) == 0 {
		return "no name"
	}
	return strings.Join(all[:min(len(all), 4)], ", ")
}

func (k *check) dates(context.Context) bool {
	now := k.c.now()
	for _, cert := range k.shown {
		switch {
		case now.Before(cert.NotBefore):
			return k.fail(federation.StepCertificate, fmt.Sprintf("a certificate is valid from %s, and the clock here says %s", moment(cert.NotBefore), moment(now)),
				"set the clock of this machine by NTP, or the peer's: one is wrong")
		case now.After(cert.NotAfter):
			return k.fail(federation.StepCertificate, fmt.Sprintf("a certificate ended at %s, and the clock here says %s", moment(cert.NotAfter), moment(now)),
				"have the peer renew the endpoint's certificate")
		}
	}
	return true
}

func moment(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// identify compares the ID that is shown with the Peer's, before it is proven:
// an endpoint of somebody else never is.
func (k *check) identify(context.Context) bool {
	if k.req.HTTPSWeb != nil {
		return true
	}
	id, err := federation.LeafID(k.shown[0])
	if err != nil {
		return k.fail(federation.StepID, "the certificate has no SPIFFE ID: "+plain(err),
			"have the endpoint show an X509-SVID: one URI SAN, a SPIFFE ID with a path")
	}
	want := k.req.HTTPSSPIFFE.EndpointID
	switch k.id = id; {
	case id == want:
		return true
	case id.TrustDomain() != want.TrustDomain():
		return k.fail(federation.StepID, fmt.Sprintf("the endpoint is %s, of another trust domain than %s", id, want),
			"correct url: it leads to an endpoint of "+id.TrustDomain().Name())
	}
	return k.fail(federation.StepID, fmt.Sprintf("the endpoint is %s, and the Peer says %s", id, want),
		"set endpoint_id: "+id.String()+" in the Peer, if the peer confirms it")
}

func (k *check) chain(context.Context) bool {
	if k.req.HTTPSWeb != nil {
		return k.webChain()
	}
	auth := *k.req.HTTPSSPIFFE
	if k.req.Unproven != nil {
		problem, change, _ := strings.Cut(k.req.Unproven.Error(), ": ")
		return k.fail(federation.StepCertificate, problem, change)
	}
	bundle := auth.Bundle
	if bundle == nil {
		pinned, err := federation.PinnedBundle(auth.EndpointID.TrustDomain(), k.shown, auth.Fingerprint)
		if err != nil { // then its bundle may prove it
			return true
		}
		bundle = pinned
	}
	return k.prove(bundle, "the endpoint's certificate leads to no key that we have of "+auth.EndpointID.TrustDomain().Name(),
		"compare the fingerprint with the peer's credence bundle show, and apply the Peer with the new one")
}

// prove verifies what is shown and says so.
func (k *check) prove(bundle *x509bundle.Bundle, problem, change string) bool {
	_, err := k.c.verifyEndpoint(k.shown, k.req.HTTPSSPIFFE.EndpointID, bundle)
	switch unknown := new(x509.UnknownAuthorityError); {
	case errors.As(err, unknown):
		return k.fail(federation.StepCertificate, problem, change)
	case err != nil:
		return k.fail(federation.StepCertificate, "the endpoint's certificate is no X509-SVID to believe: "+plain(err),
			"have the peer renew the endpoint's certificate")
	}
	k.ok(federation.StepCertificate, "an X509-SVID until %s", moment(k.shown[0].NotAfter))
	return k.ok(federation.StepID, "%s", k.id)
}

func (k *check) webChain() bool {
	pool := x509.NewCertPool()
	for _, cert := range k.shown[1:] {
		pool.AddCert(cert)
	}
	_, err := k.shown[0].Verify(x509.VerifyOptions{Roots: k.c.roots, Intermediates: pool, DNSName: k.host, CurrentTime: k.c.now()})
	hostname, unknown := new(x509.HostnameError), new(x509.UnknownAuthorityError)
	switch {
	case errors.As(err, hostname):
		return k.fail(federation.StepCertificate, "the certificate is of "+names(k.shown[0])+", not of "+k.host,
			"use a name of the certificate in url, or have the peer get one for "+k.host)
	case errors.As(err, unknown):
		return k.fail(federation.StepCertificate, "the certificate is of no CA that this machine trusts",
			"have the peer get a certificate of a public CA, with its intermediates, or use https_spiffe")
	case err != nil:
		return k.fail(federation.StepCertificate, "the certificate does not verify: "+plain(err), "have the peer renew the endpoint's certificate")
	}
	return k.ok(federation.StepCertificate, "of %s until %s", names(k.shown[0]), moment(k.shown[0].NotAfter))
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
}

// plain is an error's text, bounded, without the URL that net/http adds.
func plain(err error) string {
	const most = 300
	text := withoutURL(err).Error()
	if len(text) > most {
		text = text[:most] + "..."
	}
	return text
}

// clock compares ours with the endpoint's, on which the life of all SVIDs
// depends.
func (k *check) clock(context.Context) bool {
	theirs, err := http.ParseTime(k.server.date)
	if err != nil {
		return k.ok(federation.StepClock, "the endpoint does not say its time")
	}
	off := theirs.Sub(k.c.now()).Round(time.Second)
	if off.Abs() > clockSkew {
		return k.fail(federation.StepClock, fmt.Sprintf("the endpoint's clock says %s, %s off ours", moment(theirs), off),
			"set the clock of this machine by NTP, or the peer's: one is wrong")
	}
	return k.ok(federation.StepClock, "within %s of ours", clockSkew)
}
