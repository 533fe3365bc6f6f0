package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/credence-id/credence/federation"
)

// A Document is what an https URL answered, as a stranger finds it.
type Document struct {
	Body        []byte // of a 200, whole
	ContentType string
	Date        time.Time  // the server's; zero: it does not say
	Redirect    string     // where it leads instead; then there is no Body
	Addr        netip.Addr // that was dialled
	Private     bool       // Addr is loopback, link-local or private: only who is near gets there
	Took        time.Duration
}

// A Reason is why there is no Document.
type Reason string

// The reasons.
const (
	Unresolved   Reason = "unresolved"    // the name leads nowhere
	Special      Reason = "special"       // it leads where nothing may be asked
	Refused      Reason = "refused"       // nothing listens
	Slow         Reason = "slow"          // no whole answer within Timeout
	NoTLS        Reason = "no_tls"        // it speaks no TLS, or an old one
	Untrusted    Reason = "untrusted"     // its certificate is of no CA that is trusted
	OtherName    Reason = "other_name"    // its certificate is of another name
	Expired      Reason = "expired"       // its certificate is not valid now
	ClientsOnly  Reason = "clients_only"  // it wants a client certificate
	Status       Reason = "status"        // it answers with another status than 200
	TooLarge     Reason = "too_large"     // it answers with more than MaxBody
	Encoding     Reason = "encoding"      // it answers in an encoding that was not asked for
	Disconnected Reason = "disconnected"  // it hangs up
	NoURL        Reason = "not_https_url" // nothing was asked
)

// A DocumentError says why there is no Document.
type DocumentError struct {
	Reason Reason
	Status int // of Status
	Err    error
}

// Error names the reason and the cause, without the URL.
func (e *DocumentError) Error() string {
	if e.Status != 0 {
		return fmt.Sprintf("it answers with status %d", e.Status)
	}
	return plain(e.Err)
}

// Unwrap returns the cause.
func (e *DocumentError) Unwrap() error { return e.Err }

// Document gets what a URL of our own shows to strangers, in the bounds of a
// Fetch, from wherever it leads: also from a private address, which it says. It
// follows no redirect. The error is a *DocumentError.
func (c *Client) Document(ctx context.Context, url string) (Document, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	began := c.now()
	d, err := c.document(ctx, url)
	if late := ctx.Err(); late != nil && err == nil {
		err = late
	}
	if err != nil {
		return Document{}, documentError(err)
	}
	d.Took = c.now().Sub(began)
	return d, nil
}

func (c *Client) document(ctx context.Context, url string) (d Document, err error) {
	var asked atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
		if at, err := netip.ParseAddrPort(i.Conn.RemoteAddr().String()); err == nil {
			d.Addr = at.Addr().Unmap()
		}
	}})
	get, err := newGet(ctx, federation.Request{URL: url})
	if err != nil {
		return d, &DocumentError{Reason: NoURL, Err: err}
	}
	transport := c.transport(&tls.Config{MinVersion: tls.VersionTLS12, Time: c.now, RootCAs: c.roots,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			asked.Store(true)
			return new(tls.Certificate), nil
		}}, true)
	defer transport.CloseIdleConnections()
	answer, err := transport.RoundTrip(get)
	if err != nil && asked.Load() {
		return d, &DocumentError{Reason: ClientsOnly, Err: err}
	}
	if err != nil {
		return d, err
	}
	defer answer.Body.Close()
	d.ContentType, d.Private = answer.Header.Get("Content-Type"), d.Addr.IsValid() && kindOf(d.Addr) == private
	if date, err := http.ParseTime(answer.Header.Get("Date")); err == nil {
		d.Date = date
	}
	if to, err := answer.Location(); err == nil && answer.StatusCode/100 == 3 {
		d.Redirect = to.String()
		return d, nil
	}
	if answer.StatusCode != http.StatusOK {
		return d, &DocumentError{Reason: Status, Status: answer.StatusCode}
	}
	if d.Body, err = readBody(answer); err == nil && len(d.Body) > MaxBody {
		err = errTooLarge
	}
	return d, err
}

func documentError(err error) *DocumentError {
	var known *DocumentError
	if errors.As(err, &known) {
		return known
	}
	return &DocumentError{Reason: reasonOf(err), Err: err}
}

func reasonOf(err error) Reason {
	var (
		dns      *net.DNSError
		special  *addressError
		header   tls.RecordHeaderError
		name     x509.HostnameError
		unknown  x509.UnknownAuthorityError
		invalid  x509.CertificateInvalidError
		unproven *tls.CertificateVerificationError
	)
	switch {
	case errors.As(err, &special):
		return Special
	case isTimeout(err):
		return Slow
	case errors.As(err, &dns):
		return Unresolved
	case errors.Is(err, syscall.ECONNREFUSED):
		return Refused
	case errors.As(err, &header), strings.Contains(err.Error(), "protocol version"):
		return NoTLS
	case errors.As(err, &name):
		return OtherName
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return Expired
	case errors.As(err, &unknown), errors.As(err, &unproven):
		return Untrusted
	case errors.Is(err, errTooLarge):
		return TooLarge
	case errors.Is(err, errEncoding):
		return Encoding
	}
	return Disconnected
}
