package clouds

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
	"github.com/credence-id/credence/exchangers/sandbox/aws"
	"github.com/credence-id/credence/exchangers/sandbox/azure"
	"github.com/credence-id/credence/exchangers/sandbox/gcp"
	"github.com/credence-id/credence/exchangers/sandbox/oauth"
	"github.com/credence-id/credence/exchangers/sandbox/vault"
)

// maxFile bounds each file that the configuration names.
const maxFile = 1 << 20

// A Clouds is the clouds of one Config. Serve it, then Close it.
type Clouds struct {
	AWS   *aws.Cloud // nil: none
	GCP   *gcp.Cloud
	Azure *azure.Cloud
	OAuth *oauth.Server
	Vault *vault.Server
	// Targets are those that must say what a cloud chose for a plan of setup, by
	// name, as credence apply takes them.
	Targets map[string]map[string]any

	listen   Listen
	record   *sandbox.Recorder
	services []*service
	servers  []*http.Server
	running  sync.WaitGroup
}

// A service is one endpoint, and what of it can be made to fail.
type service struct {
	name    string
	handler http.Handler
	asks    bool // for a client certificate
	url     string
	faults  *sandbox.Faults
	clock   *sandbox.Faults // the one that has its cloud's clock
	issuers *sandbox.Issuers
}

// New makes the clouds of a configuration that Check has let pass, and reads the
// files that it names. A nil now is time.Now. An error begins with the path of
// its field.
func New(cfg Config, now func() time.Time) (*Clouds, error) {
	if now == nil {
		now = time.Now
	}
	c := &Clouds{listen: cfg.Listen, record: sandbox.NewRecorder(cfg.Record)}
	made, err := cfg.build(builder{read: readFile, now: now, log: c.record.Record})
	if err != nil {
		return nil, err
	}
	c.AWS, c.GCP, c.Azure, c.OAuth, c.Vault = made.aws, made.gcp, made.azure, made.oauth, made.vault
	c.Targets = made.targets
	c.list()
	for _, s := range c.services {
		s.faults.Service, s.faults.Log = s.name, c.record.Record
	}
	return c, nil
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s: more than %d bytes", name, maxFile)
	}
	return b, err
}

func (c *Clouds) list() {
	if a := c.AWS; a != nil {
		c.services = append(c.services,
			&service{name: "rolesanywhere", handler: a.RolesAnywhere(), faults: &a.AnywhereFaults, clock: &a.STSFaults, issuers: a.Issuers()},
			&service{name: "sts", handler: a.STS(), faults: &a.STSFaults, clock: &a.STSFaults, issuers: a.Issuers()})
	}
	if g := c.GCP; g != nil {
		whoami := http.NewServeMux()
		whoami.Handle("/", g.Whoami())
		whoami.Handle("/oauth2/v3/certs", g.Certs())
		c.services = append(c.services,
			&service{name: "gcp_sts", handler: g.STS(), faults: &g.STSFaults, clock: &g.STSFaults, issuers: g.Issuers()},
			&service{name: "gcp_sts_mtls", handler: g.MTLS(), asks: true, faults: &g.MTLSFaults, clock: &g.STSFaults, issuers: g.Issuers()},
			&service{name: "gcp_iamcredentials", handler: g.IAMCredentials(), faults: &g.IAMFaults, clock: &g.STSFaults, issuers: g.Issuers()},
			&service{name: "gcp_whoami", handler: whoami, faults: &g.WhoamiFaults, clock: &g.STSFaults, issuers: g.Issuers()})
	}
	if a := c.Azure; a != nil {
		c.services = append(c.services,
			&service{name: "entra", handler: a.Login(), faults: &a.LoginFaults, clock: &a.LoginFaults, issuers: a.Issuers()},
			&service{name: "azure_arm", handler: a.ARM(), faults: &a.ARMFaults, clock: &a.LoginFaults, issuers: a.Issuers()})
	}
	if o := c.OAuth; o != nil {
		c.services = append(c.services,
			&service{name: "oauth_token", handler: o.Token(), faults: &o.TokenFaults, clock: &o.TokenFaults, issuers: o.Issuers()},
			&service{name: "oauth_whoami", handler: o.Whoami(), faults: &o.WhoamiFaults, clock: &o.TokenFaults, issuers: o.Issuers()})
	}
	if v := c.Vault; v != nil {
		c.services = append(c.services, &service{name: "vault", handler: v.Handler(), asks: true, faults: &v.Faults, clock: &v.Faults, issuers: v.Issuers()})
	}
}

// Serve opens a listener for each service, by listen or, if that is nil, where
// the configuration says, and serves it with that certificate until Close.
func (c *Clouds) Serve(certificate tls.Certificate, listen func(service string) (net.Listener, error)) error {
	if listen == nil {
		listen = c.open
	}
	for _, s := range c.services {
		l, err := listen(s.name)
		if err != nil {
			c.Close()
			return fmt.Errorf("listen.%s: %w", s.name, err)
		}
		s.url = "https://" + l.Addr().String()
		config := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{certificate}, NextProtos: []string{"h2", "http/1.1"}}
		if s.asks {
			config.ClientAuth = tls.RequestClientCert // judged by the cloud: its refusal is no TLS alert
		}
		server := &http.Server{
			Handler: s.handler, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second, WriteTimeout: 30 * time.Second,
			MaxHeaderBytes: 64 << 10, ErrorLog: log.New(io.Discard, "", 0),
		}
		c.servers = append(c.servers, server)
		c.running.Go(func() { _ = server.Serve(tls.NewListener(l, config)) }) // it ends by Close
	}
	return nil
}

func (c *Clouds) open(service string) (net.Listener, error) {
	for _, f := range c.listen.fields() {
		if f.service == service {
			return net.Listen("tcp", *f.address)
		}
	}
	return nil, errors.New("there is no such service")
}

// Names are those of the services, in order.
func (c *Clouds) Names() []string {
	var all []string
	for _, s := range c.services {
		all = append(all, s.name)
	}
	return all
}

// URLs are where the services are served, by name.
func (c *Clouds) URLs() map[string]string {
	all := map[string]string{}
	for _, s := range c.services {
		all[s.name] = s.url
	}
	return all
}

// Close stops all services and waits for them.
func (c *Clouds) Close() {
	for _, s := range c.servers {
		_ = s.Close()
	}
	c.running.Wait()
}
