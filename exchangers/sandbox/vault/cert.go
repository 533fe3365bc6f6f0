package vault

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/credence-id/credence/exchangers/sandbox"
)

func (c *Cert) check() error {
	var names []string
	for _, r := range c.Roles {
		names = append(names, r.Name)
		if err := r.check(); err != nil {
			return fmt.Errorf("role %q: %w", r.Name, err)
		}
	}
	return unique(names)
}

func (r CertRole) check() error {
	if len(r.Certificates) == 0 || slices.ContainsFunc(r.Certificates, func(c *x509.Certificate) bool { return !c.IsCA }) {
		return errors.New("certificate: CAs are wanted, and nothing else")
	}
	if len(r.AllowedURISANs) == 0 || slices.Contains(r.AllowedURISANs, "") {
		return errors.New("allowed_uri_sans: a SPIFFE ID is wanted: else whoever has a certificate of the CA is let in")
	}
	return r.Token.check()
}

func (s *Server) certLogin(r *http.Request, e *sandbox.Entry, m Mount) (map[string]any, *refusal) {
	in, no := read(r, e, "name")
	if no != nil {
		return nil, no
	}
	if r.TLS == nil {
		return nil, bad("tls connection required", nil)
	}
	if len(r.TLS.PeerCertificates) == 0 {
		return nil, bad("client certificate must be supplied", nil)
	}
	leaf := r.TLS.PeerCertificates[0]
	e.Fields["certificate"] = leaf.SerialNumber.String()
	role, no := s.match(m.Cert, in["name"], r.TLS.PeerCertificates)
	if no != nil {
		return nil, no
	}
	name := leaf.Subject.CommonName
	if name == "" { // its entity would have none
		return nil, &refusal{http.StatusInternalServerError, "missing name in alias", nil}
	}
	meta := map[string]string{"cert_name": role.Name, "common_name": name, "serial_number": leaf.SerialNumber.String()}
	return s.opened(session{namespace: m.Namespace, path: "auth/" + m.Path + "/login", name: m.Path + "-" + name, meta: meta}, role.Token)
}

// match finds the role that lets a chain in: the one of that name, or where none
// is named the first.
func (s *Server) match(c *Cert, name string, chain []*x509.Certificate) (CertRole, *refusal) {
	known := false
	for _, role := range c.Roles {
		if name != "" && role.Name != name {
			continue
		}
		err := s.chains(role, chain)
		switch _, unknown := errors.AsType[x509.UnknownAuthorityError](err); {
		case unknown:
			continue
		case err != nil:
			return role, &refusal{http.StatusInternalServerError, "failed to verify client's certificate: " + err.Error(), nil}
		}
		known = true
		for _, uri := range chain[0].URIs {
			if slices.ContainsFunc(role.AllowedURISANs, func(p string) bool { return glob(p, uri.String()) }) {
				return role, nil
			}
		}
	}
	if !known {
		return CertRole{}, bad("invalid certificate or no client certificate supplied", errors.New("no role of that name has a CA of this certificate"))
	}
	return CertRole{}, bad("no chain matching all constraints could be found for this login certificate", fmt.Errorf("URIs %v", chain[0].URIs))
}

func (s *Server) chains(role CertRole, chain []*x509.Certificate) error {
	o := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: s.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, c := range role.Certificates {
		o.Roots.AddCert(c)
	}
	for _, c := range chain[1:] {
		o.Intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(o)
	return err
}
