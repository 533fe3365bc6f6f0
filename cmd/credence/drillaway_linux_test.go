//go:build drill

package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/credence-id/credence/broker/server"
)

// How long the database is away (MINUTES in the environment says otherwise), how long
// an X509-SVID lives meanwhile, and how soon all must be possible again.
const (
	awayMinutes = 10
	awayLife    = 80 * time.Second
	awayBack    = 10 * time.Second
)

// TestDrillAway takes PostgreSQL away from two brokers, for ten minutes. Two agents
// go on all the while: no X509-SVID and no JWT-SVID fails, of lives so short that
// each is made by a broker. What was denied a moment before, what is denied here and
// who is evicted here stays so, over a kill of each broker too, which starts from its
// snapshot; what must be written is refused, and may be tried again; and is possible
// within seconds of the database's return.
func TestDrillAway(t *testing.T) {
	c := newCluster(t, 2)
	d := &drill{t: t, began: time.Now(), counts: map[string]*[2]int{}}
	a := &awayDrill{drill: d, c: c, gone: map[string]time.Time{}}
	d.do("two agents join", a.begin)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	d.stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(d.stop)
	wait := func(what string, long time.Duration) { d.do(what, func() { <-time.After(long) }) } // the drill's own pace
	d.every(ctx, &running, "all X509-SVIDs are there, and fresh", 2, a.fresh)
	d.every(ctx, &running, "a JWT-SVID that a broker makes", 2, a.token)
	d.every(ctx, &running, "an X509-SVID that a broker makes", 1, a.issue)
	d.every(ctx, &running, "what is denied is not there", 1, a.withheld)
	wait("at rest", 45*time.Second) // a snapshot is made every so often
	d.do("a Deny is applied", func() {
		c.credence(1, "apply", "-f", a.deny("before", "w1"))
		a.possible(2, "get", "deny", "before") // what the other has not heard of by then it cannot know
		a.out("w1", server.EvictionBound)
	})

	away := time.Duration(number("MINUTES", awayMinutes)) * time.Minute
	d.do("PostgreSQL is killed", c.database.kill)
	began := time.Now()
	until := func(what string, part float64) {
		wait(what, time.Until(began.Add(time.Duration(part*float64(away)))))
	}
	until("no database", 0.2)
	a.refused("apply", "-f", a.deny("late", "w3"))
	a.refused("token", "create", "--node", "late")
	d.do("a Deny is made here, at each broker", func() {
		for n := 1; n <= 2; n++ {
			c.credence(n, "apply", "--here", "-f", a.deny("here", "w2"))
		}
		a.out("w2", 5*time.Second)
	})
	d.do("a node is evicted here, likewise", func() {
		for n := 1; n <= 2; n++ {
			c.credence(n, "node", "evict", "n2", "--here", "--reason", "a drill")
		}
		a.out("n2", 5*time.Second)
	})
	until("no database", 0.4)
	for n := 1; n <= 2; n++ {
		d.do(fmt.Sprintf("broker %d is killed", n), c.brokers[n].kill)
		wait("one broker", 5*time.Second)
		d.do(fmt.Sprintf("broker %d starts from its snapshot", n), func() { c.startBroker(n) })
		if said, _ := c.brokers[n].printed(); !strings.Contains(string(said), "started from the snapshot") {
			t.Errorf("broker %d did not start from its snapshot: %s", n, said)
		}
		until("no database", 0.5+0.2*float64(n))
	}
	a.refused("apply", "-f", a.deny("late", "w3"))
	until("no database", 1)
	d.do("PostgreSQL starts", c.startDatabase)
	back := time.Now()
	took := back.Sub(began)
	for n := 1; n <= 2; n++ {
		d.do(fmt.Sprintf("a token is made at broker %d", n), func() { a.possible(n, "token", "create", "--node", fmt.Sprint("late", n)) })
		d.do(fmt.Sprintf("a change at broker %d", n), func() { a.possible(n, "apply", "-f", a.deny(fmt.Sprint("after", n), "w9")) })
	}
	d.do("what was denied here is a resource", func() {
		for n := 1; n <= 2; n++ {
			a.possible(n, "get", "deny", "here")
			a.possible(n, "get", "deny", "before")
		}
	})
	recovered := time.Since(back)
	wait("at rest", 20*time.Second)
	for n := 1; n <= 2; n++ {
		if said := c.credence(n, "node", "show", "n2"); !strings.Contains(said, "evicted") {
			t.Errorf("broker %d: %s", n, said)
		}
		if said, _ := c.try(n, "status"); strings.Contains(said, "on this broker alone") {
			t.Errorf("broker %d: %s", n, said)
		}
	}
	d.do("Denies are deleted", func() {
		c.credence(2, "delete", "deny", "here")
		c.credence(1, "delete", "deny", "before")
		a.mu.Lock()
		delete(a.gone, "w1")
		delete(a.gone, "w2")
		a.back = time.Now()
		a.mu.Unlock()
	})
	wait("at rest", 15*time.Second)
	d.end()
	t.Logf("away for %s; %d X509-SVIDs reached the agents' workloads; all was possible %.1f s after the database took connections", took.Round(time.Second), len(a.serials), recovered.Seconds())
	if recovered > awayBack {
		t.Errorf("that is more than %s", awayBack)
	}
}

// An awayDrill is two nodes, n1 and n2: on both w0 to w3 are given.
type awayDrill struct {
	*drill
	c       *cluster
	sockets map[string]string
	clients map[string]*workloadapi.Client

	mu      sync.Mutex           // guards what follows
	gone    map[string]time.Time // by when a workload's, or a node's, identities must be gone
	back    time.Time            // when those that were gone were given again
	serials map[string]bool
}

func (a *awayDrill) begin() {
	a.sockets, a.clients, a.serials = map[string]string{}, map[string]*workloadapi.Client{}, map[string]bool{}
	var policy strings.Builder
	for n := 1; n <= 2; n++ {
		for w := range 4 {
			fmt.Fprintf(&policy, "---\nkind: Identity\nname: n%d-w%d\nspiffe_id: /n%d/w%d\nmatch: [{node.name: n%d, workload.unix.uid: %d}]\nx509: {ttl: %s}\njwt: {audiences: [{name: pay, use: single_use}]}\n", n, w, n, w, n, os.Getuid(), awayLife)
		}
	}
	a.c.credence(1, "apply", "-f", a.write("policy.yaml", policy.String()))
	for n := 1; n <= 2; n++ {
		a.node(fmt.Sprint("n", n))
	}
}

func (a *awayDrill) write(name, text string) string {
	path := filepath.Join(a.c.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

// deny writes a Deny of a workload on both nodes.
func (a *awayDrill) deny(name, workload string) string {
	return a.write(name+".yaml", fmt.Sprintf("kind: Deny\nname: %s\nmatch: [{node.method: token}]\nspiffe_ids: [\"/*/%s\"]\nreason: a drill\n", name, workload))
}

// node has an agent join, which knows both brokers.
func (a *awayDrill) node(name string) {
	var made struct {
		Token string `json:"token"`
		CAPin string `json:"ca_pin"`
	}
	if err := json.Unmarshal([]byte(a.c.credence(1, "token", "create", "--node", name, "-o", "json")), &made); err != nil {
		a.t.Fatal(err)
	}
	data := filepath.Join(a.c.dir, name)
	config := a.write(name+".yaml", fmt.Sprintf("trust_domain: example.org\ndata: %s\nbroker: [\"127.0.0.1:%s\", \"127.0.0.1:%s\"]\ntrust: {ca_pin: [%q]}\njoin: {method: token, token_file: %s}\n",
		data, a.c.ports["b1"], a.c.ports["b2"], made.CAPin, a.write(name+".token", made.Token)))
	p := start(a.t, "credence", "agent", "run", "-c", config)
	if _, err := p.await("joined", 0); err != nil {
		a.t.Fatal(err)
	}
	a.sockets[name] = "unix://" + filepath.Join(data, "run", "workload.sock")
	client, err := workloadapi.New(context.Background(), workloadapi.WithAddr(a.sockets[name]))
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { client.Close() })
	a.clients[name] = client
	open, err := workloadapi.NewX509Source(context.Background(), workloadapi.WithClient(client)) // what nobody has open is not renewed
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { open.Close() })
	for deadline := time.Now().Add(time.Minute); ; <-time.After(200 * time.Millisecond) {
		if svids, err := client.FetchX509SVIDs(context.Background()); err == nil && len(svids) == 4 {
			return
		} else if time.Now().After(deadline) {
			a.t.Fatalf("%s has not its four SVIDs: %d, %v", name, len(svids), err)
		}
	}
}

// out notes by when something must be gone.
func (a *awayDrill) out(what string, within time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.gone[what] = time.Now().Add(within)
}

// should says whether a workload of n1 must have its identity; who is on its way out
// may.
func (a *awayDrill) should(workload string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, gone := a.gone[workload]
	return !gone && time.Since(a.back) > 10*time.Second
}

// fresh: n1 has all that it should have, and each was renewed in time.
func (a *awayDrill) fresh(ctx context.Context) error {
	svids, err := a.clients["n1"].FetchX509SVIDs(ctx)
	if err != nil {
		return err
	}
	have := map[string]bool{}
	for _, s := range svids {
		left := time.Until(s.Certificates[0].NotAfter)
		if left < awayLife/8 {
			return fmt.Errorf("%s ends in %s, and was not renewed", s.ID, left)
		}
		have[filepath.Base(s.ID.Path())] = true
		a.mu.Lock()
		a.serials[s.Certificates[0].SerialNumber.String()] = true
		a.mu.Unlock()
	}
	for _, w := range []string{"w0", "w1", "w2", "w3"} {
		if a.should(w) && !have[w] {
			return fmt.Errorf("%s has no SVID", w)
		}
	}
	return nil
}

// token is one that no agent keeps. A workload whose broker was killed a moment ago
// asks again, for ten seconds.
func (a *awayDrill) token(ctx context.Context) (err error) {
	for ctx.Err() == nil {
		if _, err = a.clients["n1"].FetchJWTSVIDs(ctx, jwtsvid.Params{Audience: "pay"}); err == nil {
			return nil
		}
		a.noted("a workload asks again for a token", err)
		<-time.After(500 * time.Millisecond)
	}
	return err
}

// issue has an SVID made that no agent has.
func (a *awayDrill) issue(ctx context.Context) (err error) {
	for ctx.Err() == nil {
		cmd := exec.CommandContext(ctx, "credence", "svid", "x509", "--ttl", "1m")
		cmd.Env = append(os.Environ(), "SPIFFE_ENDPOINT_SOCKET="+a.sockets["n1"])
		var said []byte
		if said, err = cmd.CombinedOutput(); err == nil {
			return nil
		}
		err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(said))
		a.noted("a workload asks again for an X509-SVID", err)
		<-time.After(500 * time.Millisecond)
	}
	return err
}

// withheld: nobody has what is denied, nor the evicted node anything.
func (a *awayDrill) withheld(ctx context.Context) error {
	for name, client := range a.clients {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		svids, err := client.FetchX509SVIDs(ctx)
		cancel()
		if err != nil {
			continue // all is, or its agent has ended; fresh judges n1
		}
		a.mu.Lock()
		for _, s := range svids {
			for _, what := range []string{name, filepath.Base(s.ID.Path())} {
				if by, ok := a.gone[what]; ok && time.Now().After(by) {
					err = errors.Join(err, fmt.Errorf("%s is there still", s.ID))
				}
			}
		}
		a.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// refused: what must be written says that it may be tried again.
func (a *awayDrill) refused(args ...string) {
	for n := 1; n <= 2; n++ {
		said, err := a.c.try(n, args...)
		exit := (*exec.ExitError)(nil)
		if !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.Contains(said, "the database is away: try again") {
			a.t.Errorf("%s at broker %d: %v: %s", args, n, err, said)
		}
	}
	a.t.Logf("%s is refused with exit code 3 at both", args[0])
}

// possible waits until a verb works.
func (a *awayDrill) possible(n int, args ...string) {
	for deadline := time.Now().Add(time.Minute); ; <-time.After(100 * time.Millisecond) {
		said, err := a.c.try(n, args...)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			a.t.Fatalf("%s at broker %d: %v: %s", args, n, err, said)
		}
	}
}
