package logincmd

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/cmd/cli"
	"github.com/credence-id/credence/federation"
)

// FileVariable names the file that keeps a login, elsewhere than usual.
const FileVariable = "CREDENCE_LOGIN"

// A Login is what a broker gave a person, and how to find that broker again.
type Login struct {
	Broker string
	Domain spiffeid.TrustDomain
	Bundle *x509bundle.Bundle
	SVIDs  []SVID // none: only the broker is known

	document []byte // of the bundle
}

// An SVID is one of a person's, and the role that broker.yaml gives it.
type SVID struct {
	*x509svid.SVID
	Role string
}

// file is how a Login is kept: one file, replaced whole, that the person alone
// may read.
type file struct {
	Broker      string          `json:"broker"`
	TrustDomain string          `json:"trust_domain"`
	Bundle      json.RawMessage `json:"bundle"`
	Key         []byte          `json:"key,omitempty"` // PKCS #8, DER
	SVIDs       []fileSVID      `json:"svids,omitempty"`
}

type fileSVID struct {
	Hint  string   `json:"hint,omitempty"`
	Role  string   `json:"role,omitempty"`
	Chain [][]byte `json:"chain"` // DER, leaf first
}

// Path is where a login is kept: in the person's directory for what programs keep
// (XDG Base Directory Specification), unless the variable says otherwise.
func Path() (string, error) {
	if path := os.Getenv(FileVariable); path != "" {
		return filepath.Abs(path)
	}
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) { // others are to be ignored
		return filepath.Join(dir, "credence", "login.json"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", cli.BadInput(fmt.Errorf("where to keep a login: %w; or set %s", err, FileVariable))
	}
	return filepath.Join(home, ".local", "state", "credence", "login.json"), nil
}

// errNone says that nobody has logged in here.
var errNone = errors.New("nobody has logged in here")

// Load reads the login that is kept. It refuses one that others than the person
// may read.
func Load() (*Login, error) {
	path, err := Path()
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNone
	}
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 || !info.Mode().IsRegular() {
		return nil, cli.BadInput(fmt.Errorf("%s: others than you may read it, or write it: its key is no secret any more; remove it, and log in again", path))
	}
	text, err := cli.ReadSmall(path)
	if err != nil {
		return nil, err
	}
	l, err := parse(text)
	if err != nil {
		return nil, cli.BadInput(fmt.Errorf("%s: %w; remove it, and log in again", path, err))
	}
	return l, nil
}

func parse(text []byte) (*Login, error) {
	var f file
	if err := json.Unmarshal(text, &f); err != nil {
		return nil, err
	}
	td, err := spiffeid.TrustDomainFromString(f.TrustDomain)
	if err != nil {
		return nil, err
	}
	l := &Login{Broker: f.Broker, Domain: td}
	if err := l.trust(f.Bundle); err != nil {
		return nil, err
	}
	if len(f.SVIDs) == 0 {
		return l, nil
	}
	key, err := x509.ParsePKCS8PrivateKey(f.Key)
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a key of type %T", key)
	}
	for _, one := range f.SVIDs {
		svid, err := newSVID(l, signer, &api.PersonSVID{Hint: one.Hint, Role: one.Role, Chain: one.Chain})
		if err != nil {
			return nil, err
		}
		l.SVIDs = append(l.SVIDs, svid)
	}
	return l, nil
}

// trust takes the bundle of the login's trust domain.
func (l *Login) trust(document []byte) error {
	b, err := federation.ParseBundle(l.Domain, document)
	if err != nil {
		return fmt.Errorf("the trust bundle: %w", err)
	}
	if len(b.X509Authorities()) == 0 {
		return errors.New("the trust bundle holds no CA certificate")
	}
	l.Bundle, l.document = b.X509Bundle(), b.Document()
	return nil
}

// newSVID holds what was given against the key and the trust domain.
func newSVID(l *Login, key crypto.Signer, m *api.PersonSVID) (SVID, error) {
	if len(m.GetChain()) == 0 || len(m.GetChain()) > 4 {
		return SVID{}, fmt.Errorf("a chain of %d certificates", len(m.GetChain()))
	}
	svid := &x509svid.SVID{PrivateKey: key, Hint: m.GetHint()}
	for _, der := range m.GetChain() {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return SVID{}, err
		}
		svid.Certificates = append(svid.Certificates, c)
	}
	leaf := svid.Certificates[0]
	id, err := federation.CheckForm(leaf)
	if err != nil {
		return SVID{}, err
	}
	mine, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !mine.Equal(leaf.PublicKey) || id.TrustDomain() != l.Domain {
		return SVID{}, fmt.Errorf("the SVID of %s is not for this key, or not of %s", id, l.Domain)
	}
	svid.ID = id
	return SVID{svid, m.GetRole()}, nil
}

// keep replaces what is kept.
func (l *Login) keep() (string, error) {
	path, err := Path()
	if err != nil {
		return "", err
	}
	f := file{Broker: l.Broker, TrustDomain: l.Domain.Name(), Bundle: l.document}
	for _, svid := range l.SVIDs {
		if f.Key, err = x509.MarshalPKCS8PrivateKey(svid.PrivateKey); err != nil {
			return "", err
		}
		one := fileSVID{Hint: svid.Hint, Role: svid.Role}
		for _, c := range svid.Certificates {
			one.Chain = append(one.Chain, c.Raw)
		}
		f.SVIDs = append(f.SVIDs, one)
	}
	text, err := json.Marshal(f)
	if err != nil {
		return "", err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("keeping the login: %w", err)
	}
	if err := renameio.WriteFile(path, text, 0o600, renameio.WithTempDir(dir), renameio.WithStaticPermissions(0o600)); err != nil {
		return "", fmt.Errorf("keeping the login: %w", err)
	}
	return path, nil
}

// Certificate is what the person shows in TLS: the SVID that has a role, the
// highest, or else the first. Nil: what there was has ended.
func (l *Login) Certificate(now time.Time) *tls.Certificate {
	var best *SVID
	for i := range l.SVIDs {
		s := &l.SVIDs[i]
		if now.Before(s.Certificates[0].NotAfter) && (best == nil || rank(s.Role) > rank(best.Role)) {
			best = s
		}
	}
	if best == nil {
		return nil
	}
	return certificate(best.SVID)
}

func rank(role string) int { return slices.Index([]string{"auditor", "operator", "admin"}, role) }

// context is the login in the Workload API's words: what has not ended.
func (l *Login) context(now time.Time) (*workloadapi.X509Context, error) {
	x := &workloadapi.X509Context{Bundles: x509bundle.NewSet(l.Bundle)}
	for _, s := range l.SVIDs {
		if now.Before(s.Certificates[0].NotAfter) {
			x.SVIDs = append(x.SVIDs, s.SVID)
		}
	}
	if len(x.SVIDs) == 0 {
		return nil, cli.WithCode(cli.ExitDenied, errors.New("your login has ended: run credence login"))
	}
	return x, nil
}
