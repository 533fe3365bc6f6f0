package authority_test

import (
	"bufio"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/keys/disk"
	"github.com/credence-id/credence/broker/store"
	"github.com/credence-id/credence/federation"
)

// A child is this test binary run again: it acts on the authority in a
// directory until it is killed.
const (
	childDir   = "AUTHORITY_TEST_DIR"
	childClock = "AUTHORITY_TEST_CLOCK"
	childSeed  = "AUTHORITY_TEST_SEED"
)

// kills is how often a child is killed, at as many moments.
const kills = 50

// killedLives let every act be possible soon on a clock of half hours, and no
// RSA key grow old.
var killedLives = authority.Lives{Issuing: 12 * hour, JWTKey: 365 * day, Lead: hour, Keep: hour}

// house is an authority over files.
type house struct {
	*env
	store *store.Store
}

// newHouse opens the store and keys in dir. say is told of each write, before
// and after.
func newHouse(t *testing.T, dir string, now time.Time, say func(string)) *house {
	t.Helper()
	e := newEnv(t)
	e.clock.set(now)
	e.lives = killedLives
	s, err := store.Open(t.Context(), store.Config{Dir: filepath.Join(dir, "store"), Now: e.clock.now})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := disk.New(disk.Config{Dir: filepath.Join(dir, "keys")})
	if err != nil {
		t.Fatal(err)
	}
	e.change = func(c *authority.Config) {
		c.SharedRoot = "dedicated"
		c.Records, c.Keys = spoken{s, say}, spokenKeys{keys, say}
	}
	return &house{e, s}
}

// spoken says when it writes, and refuses what may never be durable.
type spoken struct {
	*store.Store
	say func(string)
}

func (s spoken) SaveAuthorities(ctx context.Context, change authority.Change) (authority.Saved, error) {
	before := rowsOf(ctx, s.Store)
	after := rowsOf(ctx, s.Store)
	for _, c := range change.Records {
		after[c.ID] = c
	}
	if err := checkStep(before, after); err != nil {
		return authority.Saved{}, fmt.Errorf("%w: %w", errUnsound, err)
	}
	s.say("saving")
	defer s.say("saved")
	return s.Store.SaveAuthorities(ctx, change)
}

func (s spoken) SaveRevocations(ctx context.Context, added []authority.Revocation, lists []authority.CRL) error {
	s.say("saving lists")
	defer s.say("saved lists")
	return s.Store.SaveRevocations(ctx, added, lists)
}

var errUnsound = errors.New("unsound")

func rowsOf(ctx context.Context, s *store.Store) map[string]authority.Record {
	all, _, err := s.Authorities(ctx)
	if err != nil {
		return nil
	}
	rows := make(map[string]authority.Record, len(all))
	for _, r := range all {
		rows[r.ID] = r
	}
	return rows
}

type spokenKeys struct {
	authority.Keys
	say func(string)
}

func (k spokenKeys) Create(ctx context.Context, alg string) (string, crypto.Signer, error) {
	k.say("making a key")
	defer k.say("made a key")
	return k.Keys.Create(ctx, alg)
}

// TestChild is no test by itself.
func TestChild(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		return
	}
	at, err := strconv.ParseInt(os.Getenv(childClock), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	seed, err := strconv.ParseUint(os.Getenv(childSeed), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	say := func(text string) { fmt.Println("child", text) }
	h := newHouse(t, dir, time.Unix(at, 0).UTC(), say)
	a := h.open()
	random := rand.New(rand.NewPCG(seed, 1))
	for {
		h.clock.set(h.clock.now().Add(30 * time.Minute))
		say(fmt.Sprintf("at %d", h.clock.now().Unix()))
		which := actNames[random.IntN(len(actNames))]
		switch err := h.act(a, which); {
		case err == nil:
			say("did " + which)
		case !errors.Is(err, authority.ErrNotYet) && !errors.Is(err, authority.ErrNothing) && !errors.Is(err, authority.ErrRefused):
			t.Fatal(err)
		}
		h.tick(a)
		svid, err := signTwice(h.env, a)
		if err != nil {
			t.Fatal(err)
		}
		say(fmt.Sprintf("signed %s %d %d", of(a, authority.Issuing, authority.Active).ID, svid[0].NotAfter.Unix(), a.Bundle().Sequence))
	}
}

var actNames = []string{
	"rotate-issuing", "replace-issuing", "rotate-jwt", "replace-jwt", "publish-root", "activate-root", "drop-root", "roll-back-root", "install", "revoke",
}

// act does one of all that operators do.
func (h *house) act(a *authority.Authority, which string) (err error) {
	ctx := h.t.Context()
	switch which {
	case "rotate-issuing":
		_, err = a.RotateIssuing(ctx)
	case "replace-issuing":
		_, err = a.ReplaceIssuing(ctx, "lost")
	case "rotate-jwt":
		_, err = a.RotateJWT(ctx, "ES256")
	case "replace-jwt":
		_, err = a.ReplaceJWT(ctx, "ES256", "lost")
	case "publish-root":
		_, err = a.PublishRoot(ctx)
	case "activate-root":
		_, err = a.ActivateRoot(ctx, of(a, authority.Root, authority.Published).ID)
	case "drop-root":
		_, err = a.DropRoot(ctx, of(a, authority.Root, authority.Old).ID, false)
	case "roll-back-root":
		_, err = a.RollbackRoot(ctx)
	case "install":
		err = h.install(a)
	case "revoke":
		err = a.Revoke(ctx, []authority.Revocation{{
			Serial: big.NewInt(h.clock.now().Unix()), Issuer: of(a, authority.Issuing, authority.Active).ID, NotAfter: h.clock.now().Add(hour),
		}})
	}
	return err
}

// install has a corporate root of this moment's certify our CA.
func (h *house) install(a *authority.Authority) error {
	csr, _, err := a.CSR(h.t.Context(), false)
	if err != nil {
		return err
	}
	root := newPKI(h.t, fmt.Sprintf("Corporate Root %d", h.clock.now().Unix()), nil, nil)
	_, err = a.Install(h.t.Context(), root.grant(csr, 1000*day, h.clock.now(), nil))
	return err
}

// A broker is killed at 50 moments of rotation, by SIGKILL. It comes back each
// time: what it confirmed is there, what it signed is covered, and what signs
// is published.
func TestKilled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := newHouse(t, dir, start, func(string) {})
	h.openReady()
	if err := h.store.Close(); err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	now, did := start, map[string]int{}
	for i := range uint64(kills) {
		told := runChild(t, dir, now, seed+i, 1+random.IntN(30))
		now = told.at
		for _, which := range told.did {
			did[which]++
		}
		told.check(t, dir)
	}
	t.Logf("acts done: %v", did)
	if len(did) < 5 {
		t.Errorf("only these acts were done in %d lives: %v", kills, did)
	}
}

// told is what a child said before it was killed.
type told struct {
	at       time.Time
	did      []string
	sequence uint64
	expiry   map[string]time.Time // the last SVID's, by its CA
}

// runChild kills a child when it has said so many lines.
func runChild(t *testing.T, dir string, now time.Time, seed uint64, lines int) told {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestChild$", "-test.v")
	cmd.Env = append(os.Environ(), childDir+"="+dir, fmt.Sprintf("%s=%d", childClock, now.Unix()), fmt.Sprintf("%s=%d", childSeed, seed))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := told{at: now, expiry: map[string]time.Time{}}
	var text strings.Builder
	scanner := bufio.NewScanner(io.TeeReader(out, &text))
	for n := 0; scanner.Scan(); {
		line, ok := strings.CutPrefix(scanner.Text(), "child ")
		if !ok {
			continue
		}
		said.note(t, line)
		if n++; n == lines {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Exited() {
		t.Fatalf("the child was not killed: %v\n%s", err, text.String())
	}
	return said
}

func (s *told) note(t *testing.T, line string) {
	t.Helper()
	var id string
	var at int64
	if _, err := fmt.Sscanf(line, "at %d", &at); err == nil {
		s.at = time.Unix(at, 0).UTC()
	}
	if which, ok := strings.CutPrefix(line, "did "); ok {
		s.did = append(s.did, which)
	}
	if _, err := fmt.Sscanf(line, "signed %s %d %d", &id, &at, &s.sequence); err == nil {
		s.expiry[id] = time.Unix(at, 0).UTC()
	}
}

// check opens what a killed child left.
func (s *told) check(t *testing.T, dir string) {
	t.Helper()
	h := newHouse(t, dir, s.at, func(string) {})
	defer h.store.Close()
	rows := rowsOf(t.Context(), h.store)
	if err := checkStep(rows, rows); err != nil {
		t.Fatal(err)
	}
	for id, expiry := range s.expiry {
		if rows[id].LastExpiry.Before(expiry) {
			t.Fatalf("CA %s: an SVID lives until %s, the record says %s", id, expiry, rows[id].LastExpiry)
		}
	}
	a := h.open()
	if got := a.Bundle().Sequence; got < s.sequence {
		t.Fatalf("sequence number %d after %d", got, s.sequence)
	}
	h.tick(a)
	h.believed(a)
	for _, l := range a.CRLs() {
		list, err := x509.ParseRevocationList(l.DER)
		if err != nil || !s.at.Before(list.NextUpdate) {
			t.Fatalf("CRL of %s: %v", l.Issuer, err)
		}
	}
}

// believed signs, and verifies it as a peer does that has the document.
func (h *house) believed(a *authority.Authority) {
	h.t.Helper()
	peers := peerOf(h.t, a)
	b, _ := peers.Get(td)
	svid, err := signTwice(h.env, a)
	if err != nil {
		h.t.Fatal(err)
	}
	if _, _, err := federation.VerifyX509(svid, peers, h.clock.now()); err != nil {
		h.t.Fatal(err)
	}
	for _, alg := range []string{"ES256", "RS256"} {
		token, err := a.SignJWT(h.t.Context(), jwtGrant(h.t, alg, h.clock.now(), "a"))
		if err != nil {
			h.t.Fatal(err)
		}
		parsed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(alg)})
		if err != nil {
			h.t.Fatal(err)
		}
		kid := parsed.Signatures[0].Header.KeyID
		key, ok := b.FindJWTAuthority(kid)
		if !ok {
			h.t.Fatalf("%s key %s signs and is not published", alg, kid)
		}
		if _, err := parsed.Verify(key); err != nil {
			h.t.Fatal(err)
		}
	}
}
