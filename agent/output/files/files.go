// Package files delivers an output as files: leaf and chain, key, bundles, CRLs,
// tokens, and what programs make of these (PKCS #12, bundle maps), by default
// under spiffe-helper's names. All of them are replaced at once, see
// output.Set.
//
// It trusts what it is handed to be the output's. Whom the files belong to and
// where they stand is package output's to guard.
package files

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/output"
)

// Default names of files. The others are written only where they are named.
const (
	DefaultSVID   = "svid.pem"
	DefaultKey    = "svid_key.pem"
	DefaultBundle = "svid_bundle.pem"
	DefaultCRL    = "svid_crl.pem"
	DefaultJWT    = "jwt_svid.token"
	DefaultP12    = "svid.p12"

	// Left out as a name leaves that file out.
	None = "none"
)

// Config is the wiring of a Writer. Dir is required.
type Config struct {
	Dir   string // absolute; the agent makes it
	Owner output.Owner
	Mode  os.FileMode // of what is secret; 0 means 0600. The rest is 0644
	Hint  string      // of the identity to write; empty: the first

	SVID      string // leaf and chain, PEM; empty: DefaultSVID
	Key       string // PKCS #8, PEM; empty: DefaultKey
	Bundle    string // our own trust domain's roots, PEM; empty: DefaultBundle. Another's stand in TRUST-DOMAIN.NAME: they verify that domain's alone
	CRL       string // of our own CAs, PEM; empty: DefaultCRL. Without any there is no file
	Combined  string // key, leaf and chain in one, PEM; empty: none
	BundleMap string // all trust domains' bundles, JSON (gRFC A87); empty: none
	JWTBundle string // all trust domains' JWT keys, JSON as spiffe-helper writes it; empty: none

	PKCS12  *PKCS12
	JWTs    []JWT
	Targets []string // of each the token for its exchange, in TARGET.token

	Now func() time.Time // nil means time.Now
}

// PKCS12 is a key store as Java and .NET read it. PasswordFile is required: it
// is read at each write, without a newline at its end.
type PKCS12 struct {
	File         string // key, leaf and chain; empty: DefaultP12
	Trust        string // our own trust domain's roots; empty: none
	PasswordFile string
}

// A JWT is a JWT-SVID to keep fresh in a file. Audiences are required.
type JWT struct {
	Audiences []string
	File      string // empty: DefaultJWT
}

// Bounds of a configuration.
const (
	maxJWTs      = 64
	maxAudiences = 16
	maxTargets   = 64
	maxPassword  = 1024
)

// Complete fills defaults in, and refuses what could not be written. The error
// begins with the field's name.
func (c *Config) Complete() error {
	if err := output.CheckPath(c.Dir); err != nil {
		return fmt.Errorf("dir: %w", err)
	}
	if c.Mode == 0 {
		c.Mode = 0o600
	}
	if c.Mode&^0o660 != 0 || c.Mode&0o400 == 0 {
		return fmt.Errorf("mode: %04o: what is secret is for its owner and at most a group: 0400, 0440, 0600, 0640 or 0660", c.Mode)
	}
	for _, f := range []struct {
		name  *string
		value string
	}{{&c.SVID, DefaultSVID}, {&c.Key, DefaultKey}, {&c.Bundle, DefaultBundle}, {&c.CRL, DefaultCRL}} {
		if *f.name == "" {
			*f.name = f.value
		}
	}
	if p := c.PKCS12; p != nil {
		if p.File == "" {
			p.File = DefaultP12
		}
		if err := output.CheckPath(p.PasswordFile); err != nil {
			return fmt.Errorf("pkcs12.password_file: %w", err)
		}
	}
	for i := range c.JWTs {
		if c.JWTs[i].File == "" {
			c.JWTs[i].File = DefaultJWT
		}
	}
	return c.check()
}

func (c *Config) check() error {
	if len(c.JWTs) > maxJWTs || len(c.Targets) > maxTargets {
		return fmt.Errorf("jwts: %d, and %d targets: at most %d and %d are taken", len(c.JWTs), len(c.Targets), maxJWTs, maxTargets)
	}
	for _, j := range c.JWTs {
		if len(j.Audiences) == 0 || len(j.Audiences) > maxAudiences || slices.Contains(j.Audiences, "") {
			return fmt.Errorf("jwts: %s: 1 to %d audiences are wanted, none of them empty", j.File, maxAudiences)
		}
	}
	seen := make(map[string]string)
	for _, f := range c.names() {
		if f.name == "" || f.name == None {
			continue
		}
		if err := output.CheckName(f.name); err != nil {
			return fmt.Errorf("%s: %w", f.field, err)
		}
		if other, twice := seen[f.name]; twice {
			return fmt.Errorf("%s: the file %s is that of %s already", f.field, f.name, other)
		}
		seen[f.name] = f.field
	}
	return nil
}

type named struct{ field, name string }

// names are all files by the field that names them, but for other trust
// domains' bundles.
func (c *Config) names() []named {
	all := []named{
		{"svid", c.SVID}, {"key", c.Key}, {"bundle", c.Bundle}, {"crl", c.CRL}, {"combined", c.Combined},
		{"bundle_map", c.BundleMap}, {"jwt_bundle", c.JWTBundle},
	}
	if c.PKCS12 != nil {
		all = append(all, named{"pkcs12.file", c.PKCS12.File}, named{"pkcs12.trust", c.PKCS12.Trust})
	}
	for _, j := range c.JWTs {
		all = append(all, named{"jwts", j.File})
	}
	for _, t := range c.Targets {
		all = append(all, named{"targets", t + tokenSuffix})
	}
	return all
}

const tokenSuffix = ".token"

// A Writer keeps one directory. It is for one goroutine.
type Writer struct {
	cfg    Config
	set    *output.Set
	sum    [sha256.Size]byte // of what was written last
	stands bool              // it was written in this run, and not erased
	tokens map[string]token  // by file
	may    string            // what tokens were granted on
}

// token is what stands in a file, or will.
type token struct {
	text  string
	again time.Time // when to get the next
	ends  time.Time
}

// New returns a Writer. It refuses what Config.Complete refuses.
func New(cfg Config) (*Writer, error) {
	if err := cfg.Complete(); err != nil {
		return nil, err
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	set, err := output.NewSet(cfg.Dir, cfg.Owner)
	if err != nil {
		return nil, err
	}
	return &Writer{cfg: cfg, set: set, tokens: make(map[string]token)}, nil
}

// Check says whether the directory is one that can be written to.
func (w *Writer) Check() error { return w.set.Check() }

// Write replaces the directory's files where anything changed. What could not
// be got (a token that is refused, say) is left out, and the error says so; a
// token that is still valid stays while the broker is away.
func (w *Writer) Write(ctx context.Context, from output.Source, u agent.Update) (output.Written, error) {
	v, err := w.pick(u)
	if err != nil {
		// Another identity's key must not stand there for this one.
		return output.Written{}, errors.Join(err, w.Erase(ctx))
	}
	w.recheck(v)
	again, refused := w.refresh(ctx, from, v)
	if err := ctx.Err(); err != nil {
		return output.Written{}, err
	}
	password, err := w.password()
	if err != nil {
		return output.Written{Again: again}, err
	}
	content := append(w.certificates(u, v), w.tokenFiles()...)
	sum := digest(content, password)
	if w.stands && sum == w.sum {
		return output.Written{Again: again}, refused
	}
	if w.cfg.PKCS12 != nil {
		stores, err := w.pkcs12(u, v, password)
		if err != nil {
			return output.Written{Again: again}, err
		}
		content = append(content, stores...)
	}
	generation, err := w.set.Replace(content)
	if generation == 0 {
		return output.Written{Again: again}, err
	}
	w.sum, w.stands = sum, true
	return output.Written{Changed: true, Generation: generation, Again: again}, errors.Join(err, refused)
}

// pick is the identity to write.
func (w *Writer) pick(u agent.Update) (*agent.SVID, error) {
	var hints []string
	for _, v := range u.SVIDs {
		if w.cfg.Hint == "" || v.Hint == w.cfg.Hint {
			return v, nil
		}
		hints = append(hints, fmt.Sprintf("%q", v.Hint))
	}
	return nil, fmt.Errorf("no identity of the output has the hint %q (theirs are: %s)", w.cfg.Hint, strings.Join(hints, ", "))
}

// Erase leaves no file but the generation, which goes on counting.
func (w *Writer) Erase(context.Context) error {
	clear(w.tokens)
	w.stands = false
	if _, err := os.Lstat(w.cfg.Dir); errors.Is(err, fs.ErrNotExist) {
		return nil // nothing was ever written
	}
	_, err := w.set.Replace(nil)
	return err
}

// digest is of all that readers would see, whatever is random about its form.
func digest(all []output.File, password string) (sum [sha256.Size]byte) {
	h := sha256.New()
	for _, f := range all {
		fmt.Fprintf(h, "%q %d %d\x00%s", f.Name, f.Mode, len(f.Data), f.Data)
	}
	fmt.Fprintf(h, "%q", password)
	return [sha256.Size]byte(h.Sum(nil))
}

// readPassword reads a small file.
func readPassword(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxPassword+1))
	if err == nil && len(text) > maxPassword {
		err = fmt.Errorf("%s has more than %d bytes", path, maxPassword)
	}
	return text, err
}
