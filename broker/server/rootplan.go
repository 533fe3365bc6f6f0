package server

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/credence-id/credence/broker/authority"
)

// rootView is all that the replacement of the root depends on.
type rootView struct {
	active, next, old *authority.Status // next: published, not active; old: active before
	nodes             int               // that joined
	connected         int               // nodes with an open stream
	holding           int               // of these, the ones that hold the newest bundle
	peersUntil        time.Time         // when every peer that polls at the hint has it; zero: nobody can poll
	anchors           []string          // targets whose cloud holds our root
	confirmed         []string          // of these, the ones confirmed for the newest root
	under             []string          // authorities that sign SVIDs under the active root, or did
	left              int               // X509-SVIDs of others that have no successor by these
	leftUntil         time.Time         // when the last of them ends
	unknown           error             // why left is not known: just after a start the index is behind
	now               time.Time
}

// newest is the root that comes; nil: none does.
func (v rootView) newest() *authority.Status {
	switch {
	case v.next != nil:
		return v.next
	case v.old != nil:
		return v.active
	}
	return nil
}

// The steps of a replacement, in order.
const (
	stepPublish  = "publish"
	stepAgents   = "agents"
	stepPeers    = "peers"
	stepClouds   = "clouds"
	stepActivate = "activate"
	stepResign   = "re-sign"
	stepDrop     = "drop"
)

// The states of a step.
const (
	stepDone  = "done"
	stepWaits = "waits"
	stepNext  = "next" // may be taken now
	stepLater = "later"
)

type step struct{ name, state, detail string }

// rootsOf finds the roots that a replacement is about.
func rootsOf(list []authority.Status) (v rootView) {
	for _, st := range list {
		if st.Use != authority.Root {
			continue
		}
		switch st.State {
		case authority.Active:
			v.active = &st
		case authority.Published:
			v.next = &st
		case authority.Old:
			v.old = &st
		}
	}
	for _, st := range list {
		if v.active != nil && st.Root == v.active.ID && st.State != authority.Revoked {
			v.under = append(v.under, st.ID)
		}
	}
	return v
}

// plan says of each step where it stands. It has no state of its own: whoever
// asks again, after a restart too, goes on. hurry waits for agents alone.
func (v rootView) plan(hurry bool) []step {
	newest := v.newest()
	if newest == nil {
		steps := []step{{stepPublish, stepNext, "a new root is made and joins the bundle"}}
		for _, name := range []string{stepAgents, stepPeers, stepClouds, stepActivate, stepResign, stepDrop} {
			steps = append(steps, step{name, stepLater, ""})
		}
		return steps
	}
	steps := []step{{stepPublish, stepDone, "root " + newest.ID + " is in the bundle since " + clock(newest.PublishedAt)}}
	steps = append(steps, v.learn()...)
	if v.old != nil {
		for i := range steps {
			steps[i].state = stepDone
		}
		return append(steps, v.leave()...)
	}
	activate := step{stepActivate, stepNext, "issuing CAs are signed under it"}
	for i, s := range steps {
		switch {
		case s.state == stepWaits && hurry && s.name != stepAgents:
			steps[i].state, steps[i].detail = stepDone, "not waited for: "+s.detail
		case s.state == stepWaits:
			activate.state = stepLater
		}
	}
	return append(steps, activate, step{stepResign, stepLater, ""}, step{stepDrop, stepLater, ""})
}

// learn are the steps by which others come to know the new root.
func (v rootView) learn() []step {
	state := func(held bool) string {
		if held {
			return stepDone
		}
		return stepWaits
	}
	agents := fmt.Sprintf("%d of %d connected nodes hold it", v.holding, v.connected)
	if away := v.nodes - v.connected; away > 0 {
		agents += fmt.Sprintf("; %d that joined are away, and get it when they connect", away)
	}
	steps := []step{{stepAgents, state(v.holding >= v.connected), agents}}
	switch {
	case v.peersUntil.IsZero():
		steps = append(steps, step{stepPeers, stepDone, "no listener lets peers poll our bundle"})
	case v.now.Before(v.peersUntil):
		steps = append(steps, step{stepPeers, stepWaits, "peers have three refresh hints to poll it, until " + clock(v.peersUntil)})
	default:
		steps = append(steps, step{stepPeers, stepDone, "every peer that polls at the hint has it"})
	}
	missing := v.unconfirmed()
	clouds := fmt.Sprintf("confirmed for %d targets whose cloud holds our root", len(v.anchors))
	if len(missing) > 0 {
		clouds = "add it (credence bundle show -o pem) to the trust anchor of " + strings.Join(missing, ", ") + ", then: credence ca replace root --confirm " + missing[0]
	}
	return append(steps, step{stepClouds, state(len(missing) == 0), clouds})
}

func (v rootView) unconfirmed() []string {
	return slices.DeleteFunc(slices.Clone(v.anchors), func(t string) bool { return slices.Contains(v.confirmed, t) })
}

// settleTime is how long workloads have to take up what was signed anew: agents
// hand it to them as it comes.
const settleTime = 5 * time.Second

// leave are the steps by which the old root goes.
func (v rootView) leave() []step {
	steps := []step{{stepActivate, stepDone, "issuing CAs are signed under it since " + clock(v.active.ActivatedAt)}}
	settled := v.active.ActivatedAt.Add(settleTime)
	if v.unknown == nil && v.left == 0 && v.holding >= v.connected && !v.now.Before(settled) {
		return append(steps, step{stepResign, stepDone, "no SVID under root " + v.old.ID + " is without a successor"},
			step{stepDrop, stepNext, "root " + v.old.ID + " leaves the bundle"})
	}
	why := fmt.Sprintf("%d SVIDs under root %s have no successor yet, the last of them ends at %s", v.left, v.old.ID, clock(v.leftUntil))
	switch {
	case v.unknown != nil:
		why = "how many SVIDs under it have no successor is not known: " + v.unknown.Error()
	case v.left > 0:
	case v.holding >= v.connected:
		why = "workloads have until " + clock(settled) + " to take up what is signed anew"
	default:
		why = fmt.Sprintf("%d of %d connected nodes hold the newest bundle", v.holding, v.connected)
	}
	return append(steps, step{stepResign, stepWaits, why}, step{stepDrop, stepLater, ""})
}

// breaks says what going past the steps that wait breaks, and for whom.
func (v rootView) breaks(steps []step) []string {
	var lines []string
	for _, s := range steps {
		if s.state != stepWaits {
			continue
		}
		switch s.name {
		case stepAgents:
			lines = append(lines, fmt.Sprintf("forced: workloads on %d connected nodes refuse SVIDs under the new root until they have the bundle", v.connected-v.holding))
		case stepPeers:
			lines = append(lines, "forced: peers refuse our SVIDs until they poll our bundle again, by "+clock(v.peersUntil))
		case stepClouds:
			lines = append(lines, "forced: Roles Anywhere refuses our SVIDs at "+strings.Join(v.unconfirmed(), ", ")+" until its trust anchor has the new root")
		case stepResign:
			if v.unknown != nil {
				lines = append(lines, "forced: nobody knows how many SVIDs under the old root are refused from now on: "+v.unknown.Error())
				continue
			}
			lines = append(lines, fmt.Sprintf("forced: %d SVIDs under the old root are refused from now on, by agents at once, by peers as they poll, until their holders renew them", v.left))
		}
	}
	return lines
}

func clock(t time.Time) string { return t.UTC().Format(time.RFC3339) }
