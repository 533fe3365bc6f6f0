package files

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	pkcs12 "software.sslmate.com/src/go-pkcs12"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/output"
)

const publicMode = 0o644

func encode(kind string, all ...[]byte) []byte {
	var text bytes.Buffer
	for _, der := range all {
		_ = pem.Encode(&text, &pem.Block{Type: kind, Bytes: der}) // a Buffer takes everything
	}
	return text.Bytes()
}

func raw(certs []*x509.Certificate) (all [][]byte) {
	for _, c := range certs {
		all = append(all, c.Raw)
	}
	return all
}

// certificates are all files but tokens and key stores, in an order that stays.
func (w *Writer) certificates(u agent.Update, v *agent.SVID) []output.File {
	chain, key := encode("CERTIFICATE", raw(v.Certificates)...), encode("PRIVATE KEY", v.KeyDER)
	var all []output.File
	put := func(name string, data []byte, secret bool) {
		mode := w.cfg.Mode
		if !secret {
			mode = publicMode
		}
		if name != "" && name != None && len(data) > 0 {
			all = append(all, output.File{Name: name, Data: data, Mode: mode})
		}
	}
	put(w.cfg.SVID, chain, false)
	put(w.cfg.Key, key, true)
	put(w.cfg.Combined, slices.Concat(key, chain), true)
	for _, td := range domains(u) {
		name := w.cfg.Bundle
		if td != v.ID.TrustDomain() && name != None {
			// Never in one file: who trusts it for one domain would take the
			// other's word for it (SPIFFE Trust Domain and Bundle §5.2).
			name = td.Name() + "." + name
			if w.taken(name) {
				continue
			}
		}
		put(name, encode("CERTIFICATE", raw(u.Bundles[td].X509Authorities)...), false)
	}
	var lists [][]byte
	for _, l := range u.CRLs {
		lists = append(lists, l.DER)
	}
	put(w.cfg.CRL, encode("X509 CRL", lists...), false)
	put(w.cfg.BundleMap, bundleMap(u), false)
	put(w.cfg.JWTBundle, jwtBundle(u), false)
	return all
}

// taken says whether a configured file has a name that a trust domain's could
// have, or it is none.
func (w *Writer) taken(name string) bool {
	return output.CheckName(name) != nil || slices.ContainsFunc(w.cfg.names(), func(n named) bool { return n.name == name })
}

func domains(u agent.Update) []spiffeid.TrustDomain {
	return slices.SortedFunc(maps.Keys(u.Bundles), func(a, b spiffeid.TrustDomain) int { return cmp.Compare(a.Name(), b.Name()) })
}

// bundleMap is each trust domain's SPIFFE bundle under its name, as gRPC reads
// them (gRFC A87).
func bundleMap(u agent.Update) []byte {
	all := make(map[string]json.RawMessage)
	for _, td := range domains(u) {
		b := spiffebundle.New(td)
		b.SetX509Authorities(u.Bundles[td].X509Authorities)
		b.SetJWTAuthorities(u.Bundles[td].JWTAuthorities)
		text, err := b.Marshal()
		if err != nil {
			continue // a key that cannot be written verifies nothing
		}
		all[td.Name()] = text
	}
	return writeJSON(map[string]any{"trust_domains": all})
}

// jwtBundle is each trust domain's JWKS in base64 under its name, as
// spiffe-helper writes them.
func jwtBundle(u agent.Update) []byte {
	all := make(map[string]string)
	for _, td := range domains(u) {
		if text, err := jwtbundle.FromJWTAuthorities(td, u.Bundles[td].JWTAuthorities).Marshal(); err == nil {
			all[td.Name()] = base64.StdEncoding.EncodeToString(text)
		}
	}
	return writeJSON(all)
}

func writeJSON(v any) []byte {
	text, err := json.Marshal(v)
	if err != nil { // maps of strings and of JSON
		panic(err)
	}
	return text
}

// password is of the key stores; empty: there are none.
func (w *Writer) password() (string, error) {
	if w.cfg.PKCS12 == nil {
		return "", nil
	}
	text, err := readPassword(w.cfg.PKCS12.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("the password of the key store: %w", err)
	}
	password := strings.TrimRight(string(text), "\r\n")
	if password == "" {
		return "", fmt.Errorf("the password of the key store: %s is empty", w.cfg.PKCS12.PasswordFile)
	}
	return password, nil
}

// pkcs12 are the key stores, with AES-256 and PBKDF2 (RFC 7292, RFC 9579):
// Java 8u301, .NET 5, OpenSSL 1.1 and what is newer read them.
func (w *Writer) pkcs12(u agent.Update, v *agent.SVID, password string) ([]output.File, error) {
	store, err := pkcs12.Modern.Encode(v.Key, v.Certificates[0], v.Certificates[1:], password)
	if err != nil {
		return nil, fmt.Errorf("making the key store: %w", err)
	}
	all := []output.File{{Name: w.cfg.PKCS12.File, Data: store, Mode: w.cfg.Mode}}
	if w.cfg.PKCS12.Trust == "" {
		return all, nil
	}
	trust, err := pkcs12.Modern.EncodeTrustStore(u.Bundles[v.ID.TrustDomain()].X509Authorities, password)
	if err != nil {
		return nil, fmt.Errorf("making the trust store: %w", err)
	}
	return append(all, output.File{Name: w.cfg.PKCS12.Trust, Data: trust, Mode: publicMode}), nil
}
