package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/credence-id/credence/cmd/cli"
	"github.com/credence-id/credence/federation/endpoint"
)

// webTLS is web_tls of broker.yaml: whose certificate the web listener shows.
// One of three is wanted.
type webTLS struct {
	Cert  string    `yaml:"cert"` // PEM files, read again when they change
	Key   string    `yaml:"key"`
	ACME  *acmeFile `yaml:"acme"`  // a CA's, by TLS-ALPN-01
	Proxy bool      `yaml:"proxy"` // none: plain HTTP, on loopback alone, to a proxy that has the certificate
}

// acmeFile says which CA certifies which hosts.
type acmeFile struct {
	Hosts     []string `yaml:"hosts"`     // DNS names; the CA must reach listen.web at their port 443; default: the issuer's
	Email     string   `yaml:"email"`     // whom the CA writes to
	Directory string   `yaml:"directory"` // of the CA; default Let's Encrypt
	CAFile    string   `yaml:"ca_file"`   // PEM; verifies the directory; default: the system's roots
	Cache     string   `yaml:"cache"`     // keeps account, keys and certificates; default DATA/acme
}

// complete fills defaults in for f, in which w stands.
func (w *webTLS) complete(f *brokerFile) error {
	if w == nil {
		return nil
	}
	files := w.Cert != "" || w.Key != ""
	switch {
	case files && (w.Cert == "" || w.Key == ""):
		return errors.New("web_tls: cert and key are both wanted")
	case files && w.ACME == nil && !w.Proxy:
		return nil
	case w.ACME != nil && !files && !w.Proxy:
		return w.ACME.complete(f)
	case w.Proxy && !files && w.ACME == nil:
		return checkProxied(f.Listen.Web)
	}
	return errors.New("web_tls: one of cert and key, acme, and proxy: true is wanted")
}

// checkProxied holds plain HTTP to this machine.
func checkProxied(listen string) error {
	if listen == "none" {
		return nil
	}
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return fmt.Errorf("listen.web: %q: host:port is wanted", listen)
	}
	if ip, err := netip.ParseAddr(host); err != nil || !ip.IsLoopback() {
		return fmt.Errorf("web_tls.proxy: listen.web is %s: plain HTTP is for a proxy on this machine; listen on 127.0.0.1 or [::1]", listen)
	}
	return nil
}

func (a *acmeFile) complete(f *brokerFile) error {
	cli.SetDefault(&a.Cache, filepath.Join(f.Data, "acme"))
	if issuer, err := url.Parse(f.Issuer); len(a.Hosts) == 0 && err == nil && issuer.Host != "" {
		a.Hosts = []string{issuer.Hostname()}
	}
	if len(a.Hosts) == 0 {
		return errors.New("web_tls.acme.hosts: the names to certify are wanted, where no issuer has one")
	}
	for _, host := range a.Hosts {
		if err := endpoint.CheckHost(host); err != nil {
			return fmt.Errorf("web_tls.acme.hosts: %w", err)
		}
	}
	if a.Directory != "" && !strings.HasPrefix(a.Directory, "https://") {
		return fmt.Errorf("web_tls.acme.directory: %q: an https URL is wanted", a.Directory)
	}
	if a.Email != "" && !strings.Contains(a.Email, "@") {
		return fmt.Errorf("web_tls.acme.email: %q: an address is wanted", a.Email)
	}
	return nil
}

// webServing is how the web listener serves; one of three.
type webServing struct {
	cert    func() (*tls.Certificate, error)
	tls     *tls.Config
	proxied bool
	keep    func(context.Context) error // runs beside the listener; nil: nothing to do
}

// openWeb opens what f says of web_tls. It asks nobody.
func openWeb(f brokerFile, log *slog.Logger) (webServing, error) {
	w := f.WebTLS
	switch {
	case w.Proxy:
		return webServing{proxied: true}, nil
	case w.ACME != nil:
		acme, err := w.ACME.open(log)
		if err != nil {
			return webServing{}, err
		}
		return webServing{tls: acme.TLS(), keep: acme.Run}, nil
	}
	host := ""
	if issuer, err := url.Parse(f.Issuer); err == nil {
		host = issuer.Hostname()
	}
	files, err := endpoint.OpenFiles(endpoint.FilesConfig{Cert: w.Cert, Key: w.Key, Host: host, Log: log})
	if err != nil {
		return webServing{}, err
	}
	return webServing{cert: files.Certificate}, nil
}

func (a *acmeFile) open(log *slog.Logger) (*endpoint.ACME, error) {
	var roots *x509.CertPool
	if a.CAFile != "" {
		text, err := os.ReadFile(a.CAFile)
		if err != nil {
			return nil, err
		}
		if roots = x509.NewCertPool(); !roots.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s: no certificate in PEM", a.CAFile)
		}
	}
	return endpoint.NewACME(endpoint.ACMEConfig{Hosts: a.Hosts, Dir: a.Cache, Email: a.Email, Directory: a.Directory, Roots: roots, Log: log})
}
