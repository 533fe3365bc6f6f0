package awsec2_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	evidence "github.com/credence-id/credence/agent/evidence/awsec2"
	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/awsec2"
)

const (
	domain   = "example.org"
	instance = "i-0abcdef0123456789"
)

var start = time.Date(2026, 12, 1, 10, 20, 30, 0, time.UTC)

// document is what AWS signs.
func document(changes map[string]any) string {
	all := map[string]any{
		"accountId": "123456789012", "architecture": "x86_64", "availabilityZone": "eu-west-1b", "billingProducts": nil, "imageId": "ami-0abcdef0123456789",
		"instanceId": instance, "instanceType": "t3.micro", "pendingTime": "2026-12-01T10:20:00Z", "privateIp": "10.0.0.7", "region": "eu-west-1", "version": "2017-09-30",
	}
	for name, value := range changes {
		if all[name] = value; value == "absent" {
			delete(all, name)
		}
	}
	text, err := json.Marshal(all)
	if err != nil {
		panic(err) // strings always encode
	}
	return string(text)
}

// A world is a broker's memory and clock, and the metadata of an instance.
type world struct {
	t        testing.TB
	now      time.Time
	aws      signer
	settings string
	held     map[string]string
	metadata *httptest.Server
	shown    string // what the metadata shows
	data     string // the instance's disk
	log      bytes.Buffer
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, now: start, aws: newSigner(t, 0x8001, ours(), start.AddDate(10, 0, 0)), held: map[string]string{}, data: t.TempDir()}
	w.settings = "{}"
	w.shown = signed(t, w.aws, document(nil)).text()
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /latest/api/token", func(out http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-aws-ec2-metadata-token-ttl-seconds") == "" {
			out.WriteHeader(http.StatusBadRequest)
		}
		_, _ = out.Write([]byte("session"))
	})
	mux.HandleFunc("GET /latest/dynamic/instance-identity/rsa2048", func(out http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-aws-ec2-metadata-token") != "session" {
			out.WriteHeader(http.StatusUnauthorized)
		}
		_, _ = out.Write([]byte(w.shown))
	})
	w.metadata = httptest.NewServer(mux)
	t.Cleanup(w.metadata.Close)
	return w
}

var errTaken = broker.ErrSpent

func (w *world) hold(_ context.Context, digest [32]byte, holder string, ends, now time.Time) error {
	if by, ok := w.held[string(digest[:])]; ok && by != holder {
		return errTaken
	}
	if ends.Before(now.AddDate(5, 0, 0)) {
		w.t.Errorf("held until %s only", ends)
	}
	w.held[string(digest[:])] = holder
	return nil
}

func (w *world) holds(_ context.Context, digest [32]byte, holder string, _ time.Time) (bool, error) {
	return w.held[string(digest[:])] == holder, nil
}

func (w *world) config() awsec2.Config {
	s := new(awsec2.Settings)
	if err := yaml.UnmarshalWithOptions([]byte(w.settings), s, yaml.Strict()); err != nil {
		w.t.Fatal(err)
	}
	if s.Certificates == nil {
		s.Certificates = map[string]string{"eu-west-1": w.aws.pem()}
	}
	return awsec2.Config{Settings: s, TrustDomain: domain, Hold: w.hold, Held: w.holds, Taken: func(err error) bool { return errors.Is(err, errTaken) },
		Now: func() time.Time { return w.now }, Log: slog.New(slog.NewTextHandler(&w.log, nil))}
}

func (w *world) method() join.Method {
	w.t.Helper()
	m, err := awsec2.New(w.config())
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

func (w *world) node() evidence.Config {
	return evidence.Config{TrustDomain: domain, KeyFile: filepath.Join(w.data, "key"), Metadata: w.metadata.URL}
}

// join is how the instance joins, by the agent's own code.
func (w *world) join() (join.Proof, error) {
	w.t.Helper()
	shown, err := w.node().Evidence(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return w.method().Join(w.t.Context(), shown, w.node().Answer)
}

func TestJoin(t *testing.T) {
	w := newWorld(t)
	proof, err := w.join()
	if err != nil {
		t.Fatal(err)
	}
	if proof.Name != instance || proof.Instance != "" || proof.DurableKey != `["123456789012","eu-west-1","`+instance+`"]` {
		t.Errorf("%+v", proof)
	}
	want := map[string][]string{}
	for name, value := range map[string]string{"account": "123456789012", "region": "eu-west-1", "instance_id": instance, "image_id": "ami-0abcdef0123456789",
		"instance_type": "t3.micro", "availability_zone": "eu-west-1b", "architecture": "x86_64", "private_ip": "10.0.0.7"} {
		want["node.aws_ec2."+name] = []string{value}
	}
	if d := cmp.Diff(want, proof.Facts.Map()); d != "" {
		t.Error(d)
	}
	w.now = start.AddDate(1, 0, 0) // its key brings it back at any age
	if again, err := w.join(); err != nil || again.DurableKey != proof.DurableKey {
		t.Errorf("a year later: %v, %v", again, err)
	}
}

// What another program signs is read, in each form that it has.
func TestMessagesOfOpenSSL(t *testing.T) {
	certificate, err := os.ReadFile("testdata/region.pem")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"stream", "der", "certificate", "noattr", "smime"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			text, err := os.ReadFile("testdata/" + name + ".p7")
			if err != nil {
				t.Fatal(err)
			}
			w.shown = string(text)
			cfg := w.config()
			cfg.Settings.Certificates = map[string]string{"eu-west-1": string(certificate)}
			m, err := awsec2.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			shown, err := w.node().Evidence(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if proof, err := m.Join(t.Context(), shown, w.node().Answer); err != nil || proof.Name != instance {
				t.Errorf("%v, %v", proof, err)
			}
		})
	}
}

// Only the true signer counts: one that is the rule's, and the only one. What the
// message carries besides decides nothing.
//
// Regression: SPIRE 1.14.6 aws_iid
// Regression: SPIRE azure_imds
func TestSignatures(t *testing.T) {
	w := newWorld(t)
	aws, rogue := w.aws, newSigner(t, 0x8002, theirs(), start.AddDate(10, 0, 0))
	twin := newSigner(t, 0x8001, theirs(), start.AddDate(10, 0, 0)) // by name and number AWS'
	text := document(nil)
	other := document(map[string]any{"instanceId": "i-0fffffff123456789"})
	content := []byte(text)
	good := info{by: aws, attributes: attributesOf(content)}
	with := func(change func(*message)) message {
		m := signed(t, aws, text)
		change(&m)
		return m
	}
	by := func(change func(*info)) message {
		i := good
		change(&i)
		return message{content: content, signers: [][]byte{i.der(t, content)}}
	}
	rogueInfo := info{by: rogue, attributes: attributesOf(content)}.der(t, content)
	rows := map[string]message{
		"another signer":                        signed(t, rogue, text),
		"another signer of the same name":       signed(t, twin, text),
		"another signer who says he's AWS":      by(func(i *info) { i.by, i.named = rogue, aws.cert }),
		"another signer, AWS' certificate":      with(func(m *message) { m.signers, m.bag = [][]byte{rogueInfo}, aws.cert.Raw }),
		"another signer, AWS' first in the bag": with(func(m *message) { m.signers, m.bag = [][]byte{rogueInfo}, slices.Concat(aws.cert.Raw, rogue.cert.Raw) }),
		"another signer, AWS' last in the bag":  with(func(m *message) { m.signers, m.bag = [][]byte{rogueInfo}, slices.Concat(rogue.cert.Raw, aws.cert.Raw) }),
		"another's certificate":                 with(func(m *message) { m.bag = rogue.cert.Raw }),
		"another's beside it":                   with(func(m *message) { m.bag = slices.Concat(aws.cert.Raw, rogue.cert.Raw) }),
		"an empty bag":                          with(func(m *message) { m.bag = []byte{} }),
		"two signers":                           with(func(m *message) { m.signers = append(m.signers, rogueInfo) }),
		"two signers, AWS last":                 with(func(m *message) { m.signers = append([][]byte{rogueInfo}, m.signers...) }),
		"AWS twice":                             with(func(m *message) { m.signers = append(m.signers, m.signers[0]) }),
		"no signer":                             with(func(m *message) { m.signers = nil }),
		"another content":                       with(func(m *message) { m.content = []byte(other) }),
		"no content":                            with(func(m *message) { m.content = nil }),
		"content of another type":               with(func(m *message) { m.contentOID = oid(7, 2) }),
		"a revocation list":                     with(func(m *message) { m.lists = tlv(0x30) }),
		"something after the signers":           with(func(m *message) { m.after = noParams }),
		"another version":                       with(func(m *message) { m.version = 3 }),
		"another digest named first":            with(func(m *message) { m.digests = [][]byte{tlv(0x30, sha1OID, noParams)} }),
		"two digests named": with(func(m *message) {
			m.digests = append(m.digests, tlv(0x30, sha256OID, noParams), tlv(0x30, sha1OID, noParams))
		}),
		"another digest":                   by(func(i *info) { i.digest = sha1OID }),
		"another algorithm":                by(func(i *info) { i.algorithm = oid(1, 5) }),
		"PSS":                              by(func(i *info) { i.algorithm = oid(1, 10) }),
		"unsigned attributes":              by(func(i *info) { i.unsigned = attribute(oid(9, 5), noParams) }),
		"attributes of another content":    by(func(i *info) { i.attributes = attributesOf([]byte(other)) }),
		"attributes that aren't signed":    by(func(i *info) { i.signs = content }),
		"no digest among the attributes":   by(func(i *info) { i.attributes = i.attributes[:1] }),
		"no type among the attributes":     by(func(i *info) { i.attributes = i.attributes[1:] }),
		"two digests among the attributes": by(func(i *info) { i.attributes = append(slices.Clone(i.attributes), i.attributes[1]) }),
		"two digests in an attribute": by(func(i *info) {
			sum, again := sha256.Sum256([]byte(other)), sha256.Sum256(content)
			i.attributes = [][]byte{i.attributes[0], attribute(oid(9, 4), tlv(4, sum[:]), tlv(4, again[:]))}
		}),
		"another type among the attributes": by(func(i *info) { i.attributes = [][]byte{attribute(oid(9, 3), oid(7, 2)), i.attributes[1]} }),
		"empty attributes":                  by(func(i *info) { i.attributes = [][]byte{} }),
		// The signature over a message's attributes, shown as that over a content.
		"attributes as the content": {content: tlv(0x31, good.attributes...), signers: [][]byte{info{by: aws, signs: tlv(0x31, good.attributes...)}.der(t, nil)}},
	}
	for name, m := range rows {
		t.Run(name, func(t *testing.T) {
			w.shown = m.text()
			if proof, err := w.join(); !errors.Is(err, join.ErrEvidence) || proof.DurableKey != "" {
				t.Errorf("%v, %v", proof, err)
			}
		})
	}
	for name, m := range map[string]message{
		"as it should be": with(func(*message) {}),
		"its certificate": with(func(m *message) { m.bag = aws.cert.Raw }),
		"sha256WithRSA":   by(func(i *info) { i.algorithm = oid(1, 11) }),
		"without":         by(func(i *info) { i.attributes = nil }),
		"another attribute": by(func(i *info) {
			i.attributes = append(slices.Clone(i.attributes), attribute(oid(9, 5), tlv(0x17, []byte("261201102000Z"))))
		}),
	} {
		w.shown = m.text()
		if _, err := w.join(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDocuments(t *testing.T) {
	w := newWorld(t)
	for name, changes := range map[string]map[string]any{
		"of another region":       {"region": "eu-west-2", "availabilityZone": "eu-west-2a"},
		"of another zone":         {"availabilityZone": "us-east-1a"},
		"of no account":           {"accountId": "absent"},
		"of a short account":      {"accountId": "1234"},
		"of an account's number":  {"accountId": 123456789012},
		"of no instance":          {"instanceId": ""},
		"of an instance's path":   {"instanceId": instance + "/../x"},
		"of an instance's line":   {"instanceId": instance + "\n"},
		"of capitals":             {"instanceId": strings.ToUpper(instance)},
		"of another version":      {"version": "2010-08-31"},
		"of no version":           {"version": nil},
		"of no time":              {"pendingTime": "yesterday"},
		"of the future":           {"pendingTime": "2026-12-01T10:21:31Z"},
		"of before max_age":       {"pendingTime": "2026-12-01T10:15:29Z"},
		"of a strange address":    {"privateIp": "010.0.0.7"},
		"of a strange type":       {"instanceType": "t3.micro/*"},
		"of a strange image":      {"imageId": "ami-*"},
		"of an architecture list": {"architecture": []string{"x86_64"}},
		"too long":                {"kernelId": strings.Repeat("x", 8<<10)},
	} {
		t.Run(name, func(t *testing.T) {
			w.shown = signed(t, w.aws, document(changes)).text()
			if _, err := w.join(); !errors.Is(err, join.ErrEvidence) {
				t.Errorf("%v", err)
			}
		})
	}
	for name, text := range map[string]string{
		"a member twice":  strings.Replace(document(nil), `"instanceId"`, `"instanceId":"i-0fffffff123456789","instanceId"`, 1),
		"a document more": document(nil) + document(nil),
		"a list":          "[" + document(nil) + "]",
		"no document":     " ",
	} {
		t.Run(name, func(t *testing.T) {
			w.shown = signed(t, w.aws, text).text()
			if _, err := w.join(); !errors.Is(err, join.ErrEvidence) {
				t.Errorf("%v", err)
			}
		})
	}
	w.shown = signed(t, w.aws, document(map[string]any{"pendingTime": "2026-12-01T10:15:30Z"})).text()
	if _, err := w.join(); err != nil {
		t.Errorf("as old as may be: %v", err)
	}
}

// A region's certificate vouches for that region, while it is good.
func TestCertificates(t *testing.T) {
	w := newWorld(t)
	cfg := w.config()
	other := newSigner(t, 0x8001, theirs(), start.AddDate(1, 0, 0)) // one name and number for two regions
	ending := newSigner(t, 0x8003, theirs(), start.AddDate(0, 0, 89))
	cfg.Settings.Certificates = map[string]string{"eu-west-1": w.aws.pem() + ending.pem(), "eu-west-2": other.pem()}
	m, err := awsec2.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	try := func(by signer) error {
		t.Helper()
		w.shown = signed(t, by, document(nil)).text()
		shown, err := w.node().Evidence(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, err = m.Join(t.Context(), shown, w.node().Answer)
		return err
	}
	if err := errors.Join(try(w.aws), try(ending)); err != nil {
		t.Errorf("the region's: %v", err)
	}
	if err := try(other); !errors.Is(err, join.ErrEvidence) {
		t.Errorf("another region's: %v", err)
	}
	if n := strings.Count(w.log.String(), "a certificate by which EC2 instances join ends"); n != 1 || !strings.Contains(w.log.String(), "region=eu-west-1") {
		t.Errorf("%d warnings: %s", n, &w.log)
	}
	w.now = start.AddDate(0, 0, 90)
	if err := try(ending); !errors.Is(err, join.ErrEvidence) || try(w.aws) != nil {
		t.Errorf("one that ended: %v", err)
	}
	w.now = start.AddDate(-2, 0, 0)
	if err := try(w.aws); !errors.Is(err, join.ErrEvidence) {
		t.Errorf("one of the future: %v", err)
	}
}

// The first key holds the instance: a copy of its document is nothing.
func TestFirstUse(t *testing.T) {
	w := newWorld(t)
	own, copied := w.data, t.TempDir()
	join1 := func(data string) error {
		w.data = data
		_, err := w.join()
		return err
	}
	if err := join1(own); err != nil {
		t.Fatal(err)
	}
	if err := join1(copied); !errors.Is(err, join.ErrEvidence) {
		t.Errorf("a copy at once: %v", err)
	}
	w.now = start.Add(time.Hour)
	if err := join1(copied); !errors.Is(err, join.ErrEvidence) {
		t.Errorf("a copy later: %v", err)
	}
	w.shown = signed(t, w.aws, document(map[string]any{"pendingTime": "2026-12-01T11:20:00Z"})).text()
	if err := join1(copied); !errors.Is(err, join.ErrEvidence) {
		t.Errorf("another key after a start: %v", err)
	}
	if err := join1(own); err != nil {
		t.Errorf("its own after a start: %v", err)
	}
	w.settings = "{rejoin: true}"
	if err := join1(copied); err != nil {
		t.Errorf("another key after a start, where that is asked for: %v", err)
	}
	if err := join1(t.TempDir()); !errors.Is(err, join.ErrEvidence) {
		t.Errorf("a third of one start: %v", err)
	}
	w.now = start.Add(48 * time.Hour)
	if err := join1(t.TempDir()); !errors.Is(err, join.ErrEvidence) {
		t.Errorf("a fourth long after: %v", err)
	}
	w.settings = "{}"
	if err := errors.Join(join1(copied), join1(own)); err != nil {
		t.Errorf("those that hold it: %v", err)
	}
}

// Whatever the store can't tell is no refusal, and no yes.
func TestStoreIsAway(t *testing.T) {
	w := newWorld(t)
	away := errors.New("the store is away")
	for name, change := range map[string]func(*awsec2.Config){
		"hold": func(c *awsec2.Config) {
			c.Hold = func(context.Context, [32]byte, string, time.Time, time.Time) error { return away }
		},
		"held": func(c *awsec2.Config) {
			c.Held = func(context.Context, [32]byte, string, time.Time) (bool, error) { return true, away }
		},
	} {
		cfg := w.config()
		change(&cfg)
		m, err := awsec2.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		shown, err := w.node().Evidence(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if proof, err := m.Join(t.Context(), shown, w.node().Answer); !errors.Is(err, away) || errors.Is(err, join.ErrEvidence) || proof.DurableKey != "" {
			t.Errorf("%s: %v, %v", name, proof, err)
		}
	}
}

// The key that is shown signs the challenge, for us.
func TestKeyIsPossessed(t *testing.T) {
	w := newWorld(t)
	shown, err := w.node().Evidence(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	thief := w.node()
	thief.KeyFile = filepath.Join(t.TempDir(), "key")
	elsewhere := w.node()
	elsewhere.TrustDomain = "evil.example"
	var seen []byte
	for name, answer := range map[string]join.Challenge{
		"another key":          thief.Answer,
		"another trust domain": elsewhere.Answer,
		"nothing":              func(context.Context, []byte) ([]byte, error) { return []byte{0}, nil },
		"another challenge": func(ctx context.Context, c []byte) ([]byte, error) {
			return w.node().Answer(ctx, append([]byte{c[0] ^ 1}, c[1:]...))
		},
		"a replay": func(ctx context.Context, c []byte) (_ []byte, err error) {
			if seen == nil {
				_, _ = w.method().Join(ctx, shown, func(ctx context.Context, c []byte) ([]byte, error) {
					seen, err = w.node().Answer(ctx, c)
					return nil, errors.New("kept")
				})
			}
			return seen, err
		},
	} {
		if proof, err := w.method().Join(t.Context(), shown, answer); !errors.Is(err, join.ErrEvidence) || proof.DurableKey != "" {
			t.Errorf("%s: %v, %v", name, proof, err)
		}
	}
	if len(w.held) != 0 {
		t.Error("somebody holds the instance")
	}
}

// Bad evidence is refused before a challenge is put.
func TestEvidence(t *testing.T) {
	w := newWorld(t)
	key := func(curve elliptic.Curve) string {
		k, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKIXPublicKey(k.Public())
		if err != nil {
			t.Fatal(err)
		}
		return base64.StdEncoding.EncodeToString(der)
	}
	rsaKey, err := x509.MarshalPKIXPublicKey(ours().Public())
	if err != nil {
		t.Fatal(err)
	}
	good, der := key(elliptic.P256()), signed(t, w.aws, document(nil)).der()
	evidence := func(document, key string) string { return `{"document":"` + document + `","key":"` + key + `"}` }
	b64 := base64.StdEncoding.EncodeToString
	rows := map[string]string{
		"nothing": "", "null": "null", "a list": "[]", "no key": `{"document":"` + w.shown + `"}`, "no document": `{"key":"` + good + `"}`,
		"a copy of the document beside it": `{"document":"` + w.shown + `","key":"` + good + `","json":"{}"}`,
		"a document twice":                 `{"document":"","document":"` + w.shown + `","key":"` + good + `"}`,
		"a key of another curve":           evidence(w.shown, key(elliptic.P384())),
		"a key of RSA":                     evidence(w.shown, b64(rsaKey)),
		"no key at all":                    evidence(w.shown, "AAAA"),
		"no base64":                        evidence("{}", good),
		"a byte after it":                  evidence(b64(append(slices.Clone(der), 0)), good),
		"text for a document":              evidence(b64([]byte(document(nil))), good),
		"deep":                             evidence(b64(bytes.Repeat([]byte{0x30, 0x80}, 4000)), good),
		"deep with lengths":                evidence(b64(nested(4000)), good),
		"a long length":                    evidence(b64([]byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff}), good),
		"a length in many bytes":           evidence(b64(slices.Concat([]byte{0x30, 0x83, 0}, der[2:])), good),
		"a bag of a hundred":               evidence(message{content: []byte(document(nil)), bag: bytes.Repeat(tlv(0x30, make([]byte, 64)), 100)}.text(), good),
	}
	for n := range len(der) {
		if n%37 == 0 {
			rows["truncated at "+string(rune('0'+n/100))+" hundred and "+time.Duration(n).String()] = evidence(b64(der[:n]), good)
		}
	}
	m := w.method()
	for name, text := range rows {
		_, err := m.Join(t.Context(), []byte(text), func(context.Context, []byte) ([]byte, error) {
			t.Errorf("%s: a challenge is put", name)
			return nil, errors.New("no")
		})
		if !errors.Is(err, join.ErrEvidence) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func nested(n int) (b []byte) {
	for len(b) < n {
		b = tlv(0x30, b)
	}
	return b
}

func TestSettings(t *testing.T) {
	w := newWorld(t)
	small, err := rsa1024(t)
	if err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		settings awsec2.Settings
		field    string
	}{
		"one":                {awsec2.Settings{Certificates: map[string]string{"eu-west-1": w.aws.pem()}}, ""},
		"a region afar":      {awsec2.Settings{Certificates: map[string]string{"us-gov-west-1": "\n" + w.aws.pem() + "\n"}}, ""},
		"none":               {awsec2.Settings{}, "certificates"},
		"no region":          {awsec2.Settings{Certificates: map[string]string{"*": w.aws.pem()}}, "certificates"},
		"no certificate":     {awsec2.Settings{Certificates: map[string]string{"eu-west-1": "x"}}, "certificates"},
		"something after it": {awsec2.Settings{Certificates: map[string]string{"eu-west-1": w.aws.pem() + "x"}}, "certificates"},
		"a short key":        {awsec2.Settings{Certificates: map[string]string{"eu-west-1": small}}, "certificates"},
		"too many":           {awsec2.Settings{Certificates: map[string]string{"eu-west-1": strings.Repeat(w.aws.pem(), 65)}}, "certificates"},
		"too old":            {awsec2.Settings{Certificates: map[string]string{"eu-west-1": w.aws.pem()}, MaxAge: 1 << 62}, "max_age"},
	} {
		err := row.settings.Validate()
		if (err == nil) != (row.field == "") || err != nil && !strings.HasPrefix(err.Error(), row.field+":") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What nobody signed is nobody's document.
func FuzzMessage(f *testing.F) {
	w := newWorld(f)
	public, err := w.node().Evidence(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	var shown map[string]string
	if err := json.Unmarshal(public, &shown); err != nil {
		f.Fatal(err)
	}
	rogue := newSigner(f, 0x8001, theirs(), start.AddDate(10, 0, 0))
	f.Add(signed(f, rogue, document(nil)).der())
	for _, name := range []string{"stream", "noattr", "smime"} {
		text, err := os.ReadFile("testdata/" + name + ".p7")
		if err != nil {
			f.Fatal(err)
		}
		der, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(string(text), "\n", ""))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
	}
	m := w.method()
	f.Fuzz(func(t *testing.T, der []byte) {
		text, err := json.Marshal(map[string]string{"document": base64.StdEncoding.EncodeToString(der), "key": shown["key"]})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Join(t.Context(), text, w.node().Answer); !errors.Is(err, join.ErrEvidence) {
			t.Errorf("%v", err)
		}
	})
}
