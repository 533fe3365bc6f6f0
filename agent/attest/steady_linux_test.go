package attest_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/credence-id/credence/agent/attest"
	"github.com/credence-id/credence/agent/attest/attesttest"
	"github.com/credence-id/credence/agent/caller"
)

func TestMain(m *testing.M) { attesttest.Main(m) }

var (
	first  = strings.Repeat("ab12", 16)
	second = strings.Repeat("cd34", 16)
)

// What is said of a process counts if it stayed where it was, and lives.
func TestSteady(t *testing.T) {
	broken := errors.New("broken")
	for name, test := range map[string]struct {
		meanwhile func(t *testing.T, p *caller.Process) error
		want      string
	}{
		"it stays": {func(*testing.T, *caller.Process) error { return nil }, ""},
		"it moves": {func(t *testing.T, p *caller.Process) error {
			attesttest.Into(t, "/kubepods/"+second, p.PID())
			return nil
		}, "meanwhile"},
		"it is let go":   {func(_ *testing.T, p *caller.Process) error { return p.Close() }, "gone"},
		"nobody can say": {func(*testing.T, *caller.Process) error { return broken }, "broken"},
	} {
		t.Run(name, func(t *testing.T) {
			pid := attesttest.Process(t)
			attesttest.Into(t, "/kubepods/"+first, pid)
			p, err := caller.Open(pid)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			facts, unknown, err := attest.Steady(p, func(place attest.Place) (map[string][]string, []string, error) {
				if place.Container == nil || place.Container.ID != first {
					t.Errorf("it is in %+v", place)
				}
				return map[string][]string{"a.b": {"c"}}, []string{"a.d"}, test.meanwhile(t, p)
			})
			if test.want == "" && (err != nil || len(facts) != 1 || len(unknown) != 1) {
				t.Errorf("%v, %v, %v", facts, unknown, err)
			}
			if test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want) || facts != nil || unknown != nil) {
				t.Errorf("%v, %v, %v; want %q", facts, unknown, err, test.want)
			}
		})
	}
}

func TestFirst(t *testing.T) {
	in, below, elsewhere := attesttest.Process(t), attesttest.Process(t), attesttest.Process(t)
	attesttest.Into(t, "/kubepods/"+first, in)
	attesttest.Into(t, "/kubepods/"+first+"/made/inside", below)
	attesttest.Into(t, "/kubepods/burstable/"+first, elsewhere)
	p, err := caller.Open(in)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	place, err := attest.Of(p)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		pid int
		ok  bool
	}{"there": {in, true}, "below": {below, true}, "elsewhere": {elsewhere, false}, "in none": {os.Getpid(), false}, "nobody": {1<<22 - 1, false}} {
		if err := attest.First(test.pid, place); (err == nil) != test.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTold(t *testing.T) {
	told := attest.Tell("workload.x")
	told.Put("a", "one", "two")
	told.Put("b", "")
	told.Put("c")
	told.Put("d", "good", "bad\x1b[2J")
	told.Group("labels", map[string]string{"app.kubernetes.io/name": "web", "empty": "", "a b": "", "a..b": "", ".a": "", "a.": "", "{a}": "", "": "", "\n": ""})
	told.Group("more", map[string]string{"good": "x", "bad": "\xff"})
	if len(told.Facts) != 3 || len(told.Facts["workload.x.a"]) != 2 || told.Facts["workload.x.labels.app.kubernetes.io/name"][0] != "web" || told.Facts["workload.x.labels.empty"][0] != "" {
		t.Errorf("%v", told.Facts)
	}
	if strings.Join(told.Unknown, " ") != "workload.x.d workload.x.more" {
		t.Errorf("%v", told.Unknown)
	}
}
