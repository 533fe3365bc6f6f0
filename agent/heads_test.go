package agent_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/agent"
)

// headLine is what a broker signs, as far as an agent looks at it.
func headLine(origin string, sequence int, at time.Time) []byte {
	return fmt.Appendf(nil, `{"trust_domain":"example.org","origin":%q,"sequence":%d,"hash":"%064x","time":%q,"signature":"AA==","chain":["AA=="]}`, origin, sequence, sequence, at.UTC().Format(time.RFC3339Nano))
}

type keeper struct {
	*agent.Heads
	t   *testing.T
	dir string
	now time.Time
}

func newKeeper(t *testing.T) *keeper {
	k := &keeper{t: t, dir: t.TempDir(), now: time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)}
	k.open()
	return k
}

func (k *keeper) open() {
	k.t.Helper()
	h, err := agent.OpenHeads(agent.Config{TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"), Data: k.dir, Now: func() time.Time { return k.now }})
	if err != nil {
		k.t.Fatal(err)
	}
	k.Heads = h
}

func (k *keeper) take(origin string, sequence int) {
	k.t.Helper()
	if err := k.Take(headLine(origin, sequence, k.now)); err != nil {
		k.t.Fatal(err)
	}
}

// TestHeadsAreThinned takes one each half minute for four days and looks at what
// is left, before and after a restart.
func TestHeadsAreThinned(t *testing.T) {
	k := newKeeper(t)
	for i := range 4 * 24 * 120 {
		k.now = k.now.Add(30 * time.Second)
		k.take("b1", i+1)
		if i%120 == 0 {
			if err := k.Save(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := k.Save(); err != nil {
		t.Fatal(err)
	}
	told := k.Told()
	if n := len(told); n < 60+47+2 || n > 61+48+3+1 {
		t.Errorf("%d heads are kept", n)
	}
	if want := headLine("b1", 4*24*120, k.now); !bytes.Equal(told[0], want) {
		t.Errorf("the newest is %s, want %s", told[0], want)
	}
	if oldest := string(told[len(told)-1]); !strings.Contains(oldest, `"sequence":1,`) {
		t.Errorf("the oldest is %s", oldest)
	}
	k.open()
	if again := k.Told(); len(again) != len(told) || !bytes.Equal(again[0], told[0]) || !bytes.Equal(again[len(again)-1], told[len(told)-1]) {
		t.Errorf("after a restart %d heads are kept, before %d", len(again), len(told))
	}
	info, err := os.Stat(filepath.Join(k.dir, "heads.jsonl"))
	if err != nil || info.Mode().Perm() != 0o600 || info.Size() > 700*300 {
		t.Errorf("the file: %v, %v", info, err)
	}
}

// TestWhatIsKeptIsNotDisplaced has a broker tell as much as it likes: what it said
// before stays.
func TestWhatIsKeptIsNotDisplaced(t *testing.T) {
	k := newKeeper(t)
	k.take("b1", 500)
	first := headLine("b1", 500, k.now)
	for i := range 3000 {
		k.now = k.now.Add(time.Millisecond)
		k.take("b1", i+1)
	}
	for i := range 100 {
		_ = k.Take(headLine(fmt.Sprintf("x%d", i), 7, k.now))
	}
	if err := k.Take(headLine("x99", 8, k.now)); err == nil {
		t.Error("heads of a hundred brokers are kept")
	}
	told := k.Told()
	if len(told) > 2+15 || !slicesContain(told, first) {
		t.Errorf("%d are kept, %s is not among them", len(told), first)
	}
}

// TestBrokersThatAreGoneMakeRoom has brokers come and go under ever new names.
func TestBrokersThatAreGoneMakeRoom(t *testing.T) {
	k := newKeeper(t)
	for i := range 16 {
		k.take(fmt.Sprintf("b%d", i), 1)
	}
	k.now = k.now.Add(89 * 24 * time.Hour)
	k.take("b0", 2)
	if err := k.Take(headLine("new", 1, k.now)); err == nil {
		t.Error("one is forgotten whose heads are kept yet")
	}
	k.now = k.now.Add(48 * time.Hour)
	k.take("new", 2)
	if told := k.Told(); !bytes.Equal(told[0], headLine("new", 2, k.now)) {
		t.Errorf("%s", told)
	}
}

func slicesContain(all [][]byte, one []byte) bool {
	for _, line := range all {
		if bytes.Equal(line, one) {
			return true
		}
	}
	return false
}

func TestHeadsThatAreNotKept(t *testing.T) {
	k := newKeeper(t)
	good := string(headLine("b1", 7, k.now))
	for name, line := range map[string]string{
		"no JSON":              "x",
		"two lines":            strings.Replace(good, ",", ",\n", 1),
		"too long":             strings.Replace(good, "AA==", strings.Repeat("A", 17<<10), 1),
		"another trust domain": strings.Replace(good, "example.org", "example.com", 1),
		"no origin":            strings.Replace(good, `"b1"`, `""`, 1),
		"no sequence":          strings.Replace(good, `:7,`, `:0,`, 1),
		"a short hash":         strings.Replace(good, "0000", "00", 1),
		"of tomorrow":          string(headLine("b1", 7, k.now.Add(24*time.Hour))),
		"of yesterday":         string(headLine("b1", 7, k.now.Add(-24*time.Hour))),
	} {
		if err := k.Take([]byte(line)); err == nil {
			t.Errorf("%s: it is kept", name)
		}
	}
	k.take("b1", 7)
	if err := k.Save(); err != nil {
		t.Fatal(err)
	}
	// A crash in the middle of the next line.
	path := filepath.Join(k.dir, "heads.jsonl")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(text, text[:40]...), 0o600); err != nil {
		t.Fatal(err)
	}
	k.open()
	k.now = k.now.Add(time.Hour)
	k.take("b1", 8)
	if err := k.Save(); err != nil {
		t.Fatal(err)
	}
	k.open()
	if told := k.Told(); len(told) != 2 {
		t.Errorf("%s", told)
	}
}
