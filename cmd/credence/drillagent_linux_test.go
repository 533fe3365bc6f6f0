//go:build drill

package main_test

import (
	"bufio"
	"cmp"
	"crypto/tls"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// In this drill SVIDs live for so long, and the broker is there and away for so
// long in turn: for half of every life.
const (
	agentLife   = 80 * time.Second
	tokenLife   = agentLife + time.Minute // by so much is its iat dated back
	agentPeriod = 24 * time.Second
)

// What all are given to begin, an agent to come back, and a change of policy to
// arrive.
const (
	agentBegins = 10 // seconds
	agentBack   = 3 * time.Second
	agentHeeds  = 3 * time.Second
)

// TestDrillAgent has an agent serve 20 workloads while the broker is away for
// half of the time, and kills it five times, and prints what each workload had
// second by second. What one once had it may never be without again, but for
// those that keep nothing while there is no agent, and for those that are denied;
// none may have anything past its end, or of another.
func TestDrillAgent(t *testing.T) {
	d := newAgentDrill(t)
	events := map[time.Duration]func(){
		146 * time.Second: d.deny,
		28 * time.Second:  d.killAgent, // a little after the broker has gone
		84 * time.Second:  d.killAgent, // in the middle of its absence
		142 * time.Second: d.killAgent, // just before it comes back
		158 * time.Second: d.killAgent, // while it is there
		217 * time.Second: d.killAgent, // as it goes
	}
	for at := agentPeriod; at <= 10*agentPeriod; at += 2 * agentPeriod {
		events[at], events[at+agentPeriod] = d.killBroker, d.startBroker
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for at := range 10*int(agentPeriod/time.Second) + 10 {
		d.at = at
		if event := events[time.Duration(at)*time.Second]; event != nil {
			event()
		}
		<-tick.C
		d.look()
	}
	d.end()
}

// An agentDrill is an agent, its broker, and what its workloads have.
type agentDrill struct {
	t      *testing.T
	side   *side
	config string
	socket string
	agent  *process

	workloads []*held
	broker    timeline
	owners    map[string]*held // of SVIDs, by number
	kills     []string         // seconds
	at        int              // second
	restarted time.Time        // the agent
	denied    time.Time        // some
	faults    []string
	seconds   int // looked at, of all workloads
}

// A timeline is what was when, a run for each change.
type timeline struct {
	runs []string
	last string
	from int
}

func (l *timeline) note(at int, what string) {
	if what == l.last {
		return
	}
	l.close(at)
	l.last, l.from = what, at
}

func (l *timeline) close(at int) {
	if l.last != "" && at > l.from {
		l.runs = append(l.runs, fmt.Sprintf("%s %d-%d", l.last, l.from, at))
	}
}

// held is a workload, and what it has.
type held struct {
	name, kind, id string
	dir            string // of files; else a process
	denied         bool
	timeline       timeline

	mu      sync.Mutex // guards what follows
	numbers []string   // all that it had
	number  string     // empty: none
	until   time.Time
	why     string // none
	heard   time.Time
	ids     []string // that it was given and are not its own
	old     int      // it was given past their end
}

func newAgentDrill(t *testing.T) *agentDrill {
	d := &agentDrill{t: t, side: newSide(t, "example.org"), owners: map[string]*held{}}
	var policy, outputs strings.Builder
	kinds := []struct {
		kind string
		n    int
	}{{"stream", 7}, {"caller", 4}, {"jwt", 4}, {"files", 5}}
	for _, k := range kinds {
		for i := range k.n {
			w := &held{name: fmt.Sprintf("%s-%d", k.kind, i+1), kind: k.kind, denied: i == 0 && k.kind != "jwt"}
			w.id = "spiffe://example.org/" + w.name
			match := "workload.unix.path: " + d.side.path(w.name)
			if w.kind == "files" {
				w.dir, match = d.side.path(w.name), "workload.output.name: "+w.name
				fmt.Fprintf(&outputs, "- {name: %s, uid: %d, files: {dir: %s}}\n", w.name, os.Getuid(), w.dir)
			}
			fmt.Fprintf(&policy, "---\nkind: Identity\nname: %s\nspiffe_id: /%s\nmatch: [{node.name: n1, workload.unix.uid: %d, %s}]\nx509: {ttl: %s}\njwt: {ttl: %s, audiences: [orders]}\n",
				w.name, w.name, os.Getuid(), match, agentLife, tokenLife)
			d.workloads = append(d.workloads, w)
		}
	}
	d.side.credence(policy.String(), "apply", "-f", "-")
	d.config = d.side.agentFile("n1", "outputs:\n"+outputs.String())
	d.agent, d.socket = d.side.runAgent(d.config), d.side.socket("n1")
	for _, w := range d.workloads {
		if w.kind != "files" {
			d.run(w)
		}
	}
	return d
}

// run starts a workload: a program of its own, by its path.
func (d *agentDrill) run(w *held) {
	program, err := os.Executable()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := os.Link(program, d.side.path(w.name)); err != nil {
		d.t.Fatal(err)
	}
	cmd := exec.Command(d.side.path(w.name))
	cmd.Args = []string{"workload", "hold", w.kind, d.socket} // by the first it knows what to be
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		d.t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			w.hear(strings.Fields(lines.Text()))
		}
	}()
	d.t.Cleanup(func() { _ = cmd.Process.Kill(); <-read; _ = cmd.Wait() })
}

func (w *held) hear(words []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.heard = time.Now()
	if len(words) == 4 && words[0] == "has" {
		end, err := strconv.ParseInt(words[3], 10, 64)
		if err == nil {
			w.take(words[1], words[2], time.Unix(end, 0))
			return
		}
	}
	w.number, w.why = "", strings.Join(words, " ")
}

// take must be called with mu held.
func (w *held) take(id, number string, until time.Time) {
	if id != w.id {
		w.ids = append(w.ids, id)
	}
	if !time.Now().Before(until) {
		w.old++
	}
	w.number, w.until = number, until
}

// read looks into the files: all of one delivery.
func (w *held) read() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.heard, w.number, w.why = time.Now(), "", "none"
	now, err := os.OpenRoot(filepath.Join(w.dir, "..data"))
	if err != nil {
		return
	}
	defer now.Close()
	chain, err1 := now.ReadFile("svid.pem")
	key, err2 := now.ReadFile("svid_key.pem")
	if err := cmp.Or(err1, err2); err != nil {
		w.why = "none " + err.Error()
		return
	}
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		w.ids = append(w.ids, err.Error())
		return
	}
	id := ""
	if len(pair.Leaf.URIs) == 1 {
		id = pair.Leaf.URIs[0].String()
	}
	w.number, w.until = fmt.Sprintf("%x", pair.Leaf.SerialNumber), pair.Leaf.NotAfter
	if id != w.id {
		w.ids = append(w.ids, id)
	}
}

func (d *agentDrill) killBroker() { d.side.broker.kill() }

func (d *agentDrill) startBroker() { d.side.startBroker() }

// killAgent ends it as a power cut would, and starts it again.
func (d *agentDrill) killAgent() {
	d.agent.kill()
	d.kills = append(d.kills, fmt.Sprint(d.at))
	d.agent = d.side.runAgent(d.config)
	d.restarted = time.Now()
}

// deny takes their identities from one workload of each kind.
func (d *agentDrill) deny() {
	var ids []string
	for _, w := range d.workloads {
		if w.denied {
			ids = append(ids, strconv.Quote("/"+w.name))
		}
	}
	d.side.credence(fmt.Sprintf("kind: Deny\nname: some\nmatch: [{node.name: n1}]\nspiffe_ids: [%s]\nreason: a drill\n", strings.Join(ids, ", ")), "apply", "-f", "-")
	d.denied = time.Now()
}

// look is what each workload has now.
func (d *agentDrill) look() {
	state := "here"
	select {
	case <-d.side.broker.ended:
		state = "away"
	default:
	}
	d.broker.note(d.at, state)
	for _, w := range d.workloads {
		if w.kind == "files" {
			w.read()
		}
		d.judge(w)
	}
}

// judge holds what a workload has against what it should.
func (d *agentDrill) judge(w *held) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	d.seconds++
	if owner := d.owners[w.number]; w.number != "" && owner != nil && owner != w {
		d.fault(w, "it has what is "+owner.name+"'s")
	}
	silent := w.kind == "caller" && now.Sub(w.heard) > 5*time.Second
	has, ended := w.number != "" && !silent, !now.Before(w.until)
	switch {
	case !has:
		w.timeline.note(d.at, "-")
	case ended:
		w.timeline.note(d.at, "ended")
	default:
		d.owners[w.number] = w
		w.timeline.note(d.at, w.letter())
	}
	switch {
	case has && ended:
		d.fault(w, "what it has is over")
	case w.denied && !d.denied.IsZero():
		if has && now.Sub(d.denied) > agentHeeds {
			d.fault(w, "it has an SVID though it is denied")
		}
	case has || d.at < agentBegins:
	case w.kind == "caller" && now.Sub(d.restarted) < agentBack:
	default:
		d.fault(w, fmt.Sprintf("it has none: %s, silent: %t", w.why, silent))
	}
}

// letter names an SVID, in the order in which the workload had them.
func (w *held) letter() string {
	i := slices.Index(w.numbers, w.number)
	if i < 0 {
		i = len(w.numbers)
		w.numbers = append(w.numbers, w.number)
	}
	return string(rune('A' + i))
}

func (d *agentDrill) fault(w *held, what string) {
	line := fmt.Sprintf("second %d, %s: %s", d.at, w.name, what)
	d.faults = append(d.faults, line)
	d.t.Log(line) // a drill is long: at once
}

func (d *agentDrill) end() {
	var text strings.Builder
	row := func(name string, l *timeline) {
		l.close(d.at + 1)
		fmt.Fprintf(&text, "%-9s %s\n", name, strings.Join(l.runs, "  "))
	}
	row("broker", &d.broker)
	fmt.Fprintf(&text, "agent     killed at %s\n", strings.Join(d.kills, ", "))
	strange, old := 0, 0
	for _, w := range d.workloads {
		w.mu.Lock()
		row(w.name, &w.timeline)
		strange, old = strange+len(w.ids), old+w.old
		for _, id := range w.ids {
			d.fault(w, "it was given "+id)
		}
		w.mu.Unlock()
	}
	d.t.Logf("what each workload had, by letters in the order in which it had them, in seconds:\n%s", &text)
	d.t.Logf("%d workloads, %d seconds of them, %d SVIDs; %d faults; %d given that were another's, %d past their end",
		len(d.workloads), d.seconds, len(d.owners), len(d.faults), strange, old)
	if len(d.faults) > 0 || old > 0 {
		d.t.Error("a workload was without what it should have had, or had what it should not")
	}
}
