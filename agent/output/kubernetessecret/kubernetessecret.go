// Package kubernetessecret delivers an output as a Secret of Kubernetes: key,
// leaf and chain, and the roots, replaced all at once.
//
// It writes into Secrets that it made itself or that are labelled as ours
// (app.kubernetes.io/managed-by: credence), never into another's. It trusts the
// API server, which is asked over TLS, with what the Secret holds: whoever may
// read Secrets of the namespace, or the cluster's store, has the key. A node that
// can do with files does better with them.
package kubernetessecret

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/output"
)

// Types of Secrets.
const (
	TypeTLS    = "kubernetes.io/tls" // tls.crt, tls.key, ca.crt
	TypeOpaque = "Opaque"            // the names that files have
)

// What marks a Secret as ours.
const (
	managedLabel = "app.kubernetes.io/managed-by"
	managedBy    = "credence"
	outputNote   = "credence-output"     // annotations: which output wrote it,
	countNote    = "credence-generation" // and how often it was written
)

// Config is the wiring of a Writer. Fields are required unless noted.
type Config struct {
	Namespace string
	Name      string
	Type      string // empty: TypeTLS
	Hint      string // of the identity to write; empty: the first
	Output    string // its name, for the annotation

	Server                                      // zero fields: as a pod's containers are told
	Getenv func(string) string                  // where those are told; nil: nowhere
	Now    func() time.Time                     // nil means time.Now
	Wait   func(time.Duration) <-chan time.Time // nil means time.After
}

var (
	label     = `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`
	namespace = regexp.MustCompile(`^` + label + `$`)
	subdomain = regexp.MustCompile(`^` + label + `(\.` + label + `)*$`)
)

// Complete fills defaults in, and refuses what could not be written. The error
// begins with the field's name.
func (c *Config) Complete() error {
	if c.Type == "" {
		c.Type = TypeTLS
	}
	switch {
	case !namespace.MatchString(c.Namespace):
		return fmt.Errorf("namespace: %q: a namespace's name is wanted", c.Namespace)
	case !subdomain.MatchString(c.Name) || len(c.Name) > 253:
		return fmt.Errorf("name: %q: a Secret's name is wanted", c.Name)
	case c.Type != TypeTLS && c.Type != TypeOpaque:
		return fmt.Errorf("type: %q: %s or %s is wanted", c.Type, TypeTLS, TypeOpaque)
	}
	return c.Server.complete()
}

// A Writer keeps one Secret. It is for one goroutine.
type Writer struct {
	cfg    Config
	client *client
}

// New returns a Writer. It refuses what Config.Complete refuses.
func New(cfg Config) (*Writer, error) {
	if err := cfg.Complete(); err != nil {
		return nil, err
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Wait == nil {
		cfg.Wait = time.After
	}
	return &Writer{cfg: cfg, client: &client{server: cfg.Server, getenv: cfg.Getenv, now: cfg.Now, wait: cfg.Wait}}, nil
}

const (
	tries     = 5               // of one write that others' come between
	lookAgain = 5 * time.Minute // whether the Secret is as it was written
)

// Check says whether the Secret could be looked at, and is none of another's.
func (w *Writer) Check() error {
	ctx, cancel := context.WithTimeout(context.Background(), askTime)
	defer cancel()
	_, err := w.read(ctx)
	return err
}

// Write makes the Secret hold the output's state, where it doesn't.
func (w *Writer) Write(ctx context.Context, _ output.Source, u agent.Update) (output.Written, error) {
	written := output.Written{Again: w.cfg.Now().Add(lookAgain + rand.N(lookAgain/10))}
	v, err := w.pick(u)
	if err != nil {
		// Another identity's key must not stand there for this one.
		return output.Written{}, errors.Join(err, w.Erase(ctx))
	}
	written.Generation, written.Changed, err = w.put(ctx, w.content(u, v), true)
	return written, err
}

// pick is the identity to write.
func (w *Writer) pick(u agent.Update) (*agent.SVID, error) {
	for _, v := range u.SVIDs {
		if w.cfg.Hint == "" || v.Hint == w.cfg.Hint {
			return v, nil
		}
	}
	return nil, fmt.Errorf("no identity of the output has the hint %q", w.cfg.Hint)
}

// Erase empties the Secret, if there is one of ours. What its type demands stays
// as empty text.
func (w *Writer) Erase(ctx context.Context) error {
	empty := map[string][]byte{}
	if w.cfg.Type == TypeTLS {
		empty["tls.crt"], empty["tls.key"] = []byte{}, []byte{}
	}
	_, _, err := w.put(ctx, empty, false)
	if errors.Is(err, errForeign) {
		return nil // nothing of ours is there
	}
	return err
}

// content is what the Secret is to hold.
func (w *Writer) content(u agent.Update, v *agent.SVID) map[string][]byte {
	chain, key, roots := new(bytes.Buffer), new(bytes.Buffer), func(td spiffeid.TrustDomain) []byte {
		text := new(bytes.Buffer)
		for _, c := range u.Bundles[td].X509Authorities {
			encode(text, "CERTIFICATE", c.Raw)
		}
		return text.Bytes()
	}
	for _, c := range v.Certificates {
		encode(chain, "CERTIFICATE", c.Raw)
	}
	encode(key, "PRIVATE KEY", v.KeyDER)
	own := v.ID.TrustDomain()
	if w.cfg.Type == TypeTLS {
		return map[string][]byte{"tls.crt": chain.Bytes(), "tls.key": key.Bytes(), "ca.crt": roots(own)}
	}
	all := map[string][]byte{"svid.pem": chain.Bytes(), "svid_key.pem": key.Bytes(), "svid_bundle.pem": roots(own)}
	for td := range u.Bundles {
		if td != own { // never in one with ours (SPIFFE Trust Domain and Bundle §5.2)
			all[td.Name()+".svid_bundle.pem"] = roots(td)
		}
	}
	lists := new(bytes.Buffer)
	for _, l := range u.CRLs {
		encode(lists, "X509 CRL", l.DER)
	}
	if lists.Len() > 0 {
		all["svid_crl.pem"] = lists.Bytes()
	}
	return all
}

func encode(to *bytes.Buffer, kind string, der []byte) {
	_ = pem.Encode(to, &pem.Block{Type: kind, Bytes: der}) // a Buffer takes everything
}

// A secret is what of a Secret concerns us.
type secret struct {
	APIVersion string             `json:"apiVersion,omitempty"`
	Kind       string             `json:"kind,omitempty"`
	Metadata   metadata           `json:"metadata"`
	Type       string             `json:"type,omitempty"`
	Immutable  bool               `json:"immutable,omitempty"`
	Data       map[string]*string `json:"data"` // base64; null in a patch takes one out
}

type metadata struct {
	Name            string            `json:"name,omitempty"`
	Namespace       string            `json:"namespace,omitempty"`
	ResourceVersion string            `json:"resourceVersion,omitempty"`
	Labels          map[string]string `json:"labels,omitempty"`
	Annotations     map[string]string `json:"annotations,omitempty"`
}

var errForeign = errors.New("it is not ours: delete it or name another, or label it " + managedLabel + "=" + managedBy)

// read is the Secret as it stands; nil: there is none. It refuses another's.
func (w *Writer) read(ctx context.Context) (*secret, error) {
	s := &secret{}
	switch err := w.client.do(ctx, "GET", w.path(true), "", nil, s); {
	case isStatus(err, 404):
		return nil, nil
	case err != nil:
		return nil, w.fail("reading", err)
	}
	switch {
	case s.Metadata.Labels[managedLabel] != managedBy:
		return nil, w.fail("writing", errForeign)
	case s.Type != w.cfg.Type:
		return nil, w.fail("writing", fmt.Errorf("its type is %q, which cannot be changed to %s: delete it", bounded(s.Type), w.cfg.Type))
	case s.Immutable:
		return nil, w.fail("writing", errors.New("it is immutable: delete it"))
	}
	return s, nil
}

// put makes the Secret hold this, beginning again where somebody else wrote
// meanwhile.
func (w *Writer) put(ctx context.Context, data map[string][]byte, create bool) (generation uint64, changed bool, err error) {
	for range tries {
		generation, changed, err = w.once(ctx, data, create)
		if !isStatus(err, 409) {
			break
		}
	}
	return generation, changed, err
}

func (w *Writer) once(ctx context.Context, data map[string][]byte, create bool) (uint64, bool, error) {
	was, err := w.read(ctx)
	if err != nil || was == nil && !create {
		return 0, false, err
	}
	if was == nil {
		next := &secret{
			APIVersion: "v1", Kind: "Secret", Type: w.cfg.Type, Data: encoded(data),
			Metadata: metadata{Name: w.cfg.Name, Namespace: w.cfg.Namespace, Labels: map[string]string{managedLabel: managedBy}, Annotations: w.notes(1)},
		}
		if err := w.client.do(ctx, "POST", w.path(false), "application/json", next, nil); err != nil {
			return 0, false, w.fail("making", err)
		}
		return 1, true, nil
	}
	count, _ := strconv.ParseUint(was.Metadata.Annotations[countNote], 10, 63) // 0: we count anew
	next := encoded(data)
	if was.Metadata.Annotations[outputNote] == w.cfg.Output && count > 0 && maps.EqualFunc(was.Data, next, func(a, b *string) bool { return a != nil && *a == *b }) {
		return count, false, nil
	}
	for name := range was.Data {
		if next[name] == nil {
			next[name] = nil
		}
	}
	// With the version that was read: if it is another by now, it is read again.
	patch := &secret{Metadata: metadata{ResourceVersion: was.Metadata.ResourceVersion, Annotations: w.notes(count + 1)}, Data: next}
	if was.Metadata.ResourceVersion == "" {
		return 0, false, w.fail("writing", errors.New("the API server says no resourceVersion"))
	}
	if err := w.client.do(ctx, "PATCH", w.path(true), "application/merge-patch+json", patch, nil); err != nil {
		return 0, false, w.fail("writing", err)
	}
	return count + 1, true, nil
}

func (w *Writer) notes(count uint64) map[string]string {
	return map[string]string{outputNote: w.cfg.Output, countNote: strconv.FormatUint(count, 10)}
}

func encoded(data map[string][]byte) map[string]*string {
	all := make(map[string]*string, len(data))
	for name, text := range data {
		s := base64.StdEncoding.EncodeToString(text)
		all[name] = &s
	}
	return all
}

// path is the Secret's, or that of all of its namespace.
func (w *Writer) path(one bool) string {
	p := "/api/v1/namespaces/" + w.cfg.Namespace + "/secrets"
	if one {
		p += "/" + w.cfg.Name
	}
	return p
}

func (w *Writer) fail(act string, err error) error {
	return fmt.Errorf("%s Secret %s/%s: %w", act, w.cfg.Namespace, w.cfg.Name, err)
}

// bounded is a foreign word that may be told.
func bounded(s string) string {
	s = strings.Map(func(r rune) rune {
		if r > ' ' && r <= '~' {
			return r
		}
		return '?'
	}, s)
	return s[:min(len(s), 64)]
}
