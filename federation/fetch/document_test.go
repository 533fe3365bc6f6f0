package fetch_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/federation/fetch"
)

// Each way in which a document is not had has its name, and a redirect is told
// and not followed.
func TestDocument(t *testing.T) {
	dated := func(from, to time.Duration) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(from), time.Now().Add(to)
			c.DNSNames, c.IPAddresses, c.URIs = nil, []net.IP{net.IPv4(127, 0, 0, 1)}, nil
		}
	}
	for _, tt := range []struct {
		name  string
		fault func(*field)
		want  fetch.Reason // empty: it is had
	}{
		{"it is had", func(*field) {}, ""},
		{"no such name", func(f *field) { f.config.Resolver, f.url = nameServer(f.t), "https://nowhere.example:$PORT" }, fetch.Unresolved},
		{"at instance metadata", func(f *field) {
			f.config.Resolver, f.url = nameServer(f.t, "169.254.169.254"), "https://meta.example:$PORT"
		}, fetch.Special},
		{"nothing listens", func(f *field) { f.url = "https://127.0.0.1:1" }, fetch.Refused},
		{"by http", func(f *field) { f.url = "http://127.0.0.1:$PORT" }, fetch.NoURL},
		{"no URL", func(f *field) { f.url = "https://%" }, fetch.NoURL},
		{"no TLS", func(f *field) {
			f.url = bare(f.t, func(c net.Conn) { io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n") })
		}, fetch.NoTLS},
		{"old TLS", func(f *field) { f.tls.MinVersion, f.tls.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }, fetch.NoTLS},
		{"nobody's CA", func(f *field) { f.config.Roots = newCA(f.t).Pool() }, fetch.Untrusted},
		{"another name", func(f *field) { f.cert = f.root.Web(f.t, "partner.example") }, fetch.OtherName},
		{"it ended", func(f *field) { f.cert = f.root.Issue(f.t, dated(-2*time.Hour, -time.Hour)) }, fetch.Expired},
		{"client certificates, TLS 1.2", func(f *field) { f.tls.ClientAuth, f.tls.MaxVersion = tls.RequireAnyClientCert, tls.VersionTLS12 }, fetch.ClientsOnly},
		{"client certificates, TLS 1.3", func(f *field) { f.tls.ClientAuth = tls.RequireAnyClientCert }, fetch.ClientsOnly},
		{"client certificates if one has any", func(f *field) { f.tls.ClientAuth = tls.RequestClientCert }, ""},
		{"404", func(f *field) { f.status(404) }, fetch.Status},
		{"204", func(f *field) { f.status(204) }, fetch.Status},
		{"304", func(f *field) { f.status(304) }, fetch.Status},
		{"too large", func(f *field) { f.text = strings.Repeat(" ", fetch.MaxBody+1) }, fetch.TooLarge},
		{"as large as may be", func(f *field) { f.text = strings.Repeat(" ", fetch.MaxBody) }, ""},
		{"another encoding", func(f *field) { f.handler = encoded("br", []byte(f.text)) }, fetch.Encoding},
		{"it hangs up", func(f *field) { f.url = bare(f.t, func(c net.Conn) { c.Close() }) }, fetch.Disconnected},
		{"it breaks off", func(f *field) {
			f.handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Length", "1000")
				io.WriteString(w, "{")
			})
		}, fetch.Disconnected},
		{"it is slow", func(f *field) {
			f.timeout = 200 * time.Millisecond
			f.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				http.NewResponseController(w).Flush()
				<-r.Context().Done()
			})
		}, fetch.Slow},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newField(t)
			f.web()
			tt.fault(f)
			d, err := f.document()
			var why *fetch.DocumentError
			switch {
			case tt.want == "" && (err != nil || string(d.Body) != f.text || !d.Private || !d.Addr.IsLoopback() || d.Date.IsZero()):
				t.Errorf("%+v, %v", d, err)
			case tt.want != "" && (!errors.As(err, &why) || why.Reason != tt.want || d.Body != nil):
				t.Errorf("%v, want %s", err, tt.want)
			case tt.want != "" && strings.Contains(err.Error(), "https://127"):
				t.Errorf("the URL is told: %v", err)
			}
		})
	}
}

func TestDocumentFollowsNothing(t *testing.T) {
	f := newField(t)
	f.web()
	asked := 0
	f.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		http.Redirect(w, r, "/elsewhere", http.StatusFound)
	})
	d, err := f.document()
	if err != nil || d.Body != nil || !strings.HasSuffix(d.Redirect, "/elsewhere") || !strings.HasPrefix(d.Redirect, "https://127.0.0.1:") || asked != 1 {
		t.Errorf("%+v, %v, asked %d times", d, err, asked)
	}
}

func (f *field) document() (fetch.Document, error) {
	c := f.serve()
	return c.Document(f.t.Context(), f.req.URL)
}
