package agent

import (
	"bytes"
	"crypto/sha256"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker/api"
)

// Bounds of the JWT-SVIDs that are held. Those made ahead leave room for those
// that are asked for, and these push out none of another set's: where there is
// no room, a token is handed out and not kept.
const (
	maxTokens   = 4096
	maxAheadAll = 3072
	maxOwn      = 64 // of a set, not made ahead
	maxAhead    = 16 // audiences of one identity that are made ahead
)

// Uses of an audience, besides the default. What else a broker says is taken
// for the strictest.
const (
	useAudited = "audited"
	useSingle  = "single_use"
)

// A JWTSVID is a token and whom it names.
type JWTSVID struct {
	ID      spiffeid.ID
	Hint    string
	Token   string
	Expires time.Time
}

type tokenKey struct {
	set       [sha256.Size]byte
	audiences string // joined
	id        spiffeid.ID

	// Of a token for a target, which has no audiences asked for.
	target   string
	revision uint64
	toFile   bool
}

// heldJWT is a token, and what it was granted on.
type heldJWT struct {
	JWTSVID
	identity string
	depends  map[string]*api.Values
	digest   []byte // of the X509-SVID that its set held of the same identity
}

// isOf says whether an SVID is of the same identity.
func (h heldJWT) isOf(v *SVID) bool { return v.Identity == h.identity && v.ID == h.ID }

// tokenEntry is one answer of the broker. It is immutable, but for what the
// cache guards.
type tokenEntry struct {
	audiences               []string // none: for a target
	svids                   []heldJWT
	use                     string
	obtained, renewAt, ends time.Time
	ahead                   bool // renewed as long as the set is in use

	// Guarded by tokens.mu.
	asked time.Time
	stage stage
}

// stage is where an entry of an earlier run of the agent is.
type stage int

const (
	current  stage = iota
	former         // of a run before: served until the broker is heard
	unproven       // since then: served no more, unless it proves to hold
)

// lives fills in when an entry ends, and when it is renewed.
func (e *tokenEntry) lives() {
	for n, v := range e.svids {
		if n == 0 || v.Expires.Before(e.ends) {
			e.ends = v.Expires
		}
	}
	e.renewAt = halfLife(e.obtained, e.ends)
}

// told is what a caller gets of an entry.
func (e tokenEntry) told() (all []JWTSVID) {
	for _, v := range e.svids {
		all = append(all, v.JWTSVID)
	}
	return all
}

// fits says whether what a set holds is what the tokens were granted with: the
// digest covers what an identity may ask for, and what was revoked.
func (e *tokenEntry) fits(svids []*SVID) bool {
	for _, h := range e.svids {
		if !h.fits(svids) {
			return false
		}
	}
	return len(e.svids) > 0
}

func (h heldJWT) fits(svids []*SVID) bool {
	return len(h.digest) > 0 && slices.ContainsFunc(svids, func(v *SVID) bool { return h.isOf(v) && bytes.Equal(v.digest, h.digest) })
}

// only is the part of an entry that is of one ID.
func (e tokenEntry) only(id spiffeid.ID) (tokenEntry, bool) {
	var of []heldJWT
	for _, v := range e.svids {
		if v.ID == id {
			of = append(of, v)
		}
	}
	e.svids = of
	return e, len(of) > 0
}

// tokens are the JWT-SVIDs that this node holds, each served until it ends.
type tokens struct {
	wake chan struct{} // of capacity 1: look after those that are made ahead
	back chan struct{} // of capacity 1: the broker answers
	kept *kept         // learns of changes

	mu    sync.Mutex // guards what follows
	all   map[[sha256.Size]byte]map[tokenKey]*tokenEntry
	count int // in all
	made  int // of these, ahead
	// turns are when the audiences that lack a token are asked for.
	turns map[tokenKey]time.Time
	// generation counts what was forgotten: an answer asked for before is not
	// kept.
	generation uint64
	turnedAway uint64 // tokens that were not kept, for there was no room
}

func (t *tokens) init(k *kept) {
	t.kept, t.wake, t.back = k, make(chan struct{}, 1), make(chan struct{}, 1)
	t.all, t.turns = make(map[[sha256.Size]byte]map[tokenKey]*tokenEntry), make(map[tokenKey]time.Time)
}

func (t *tokens) nudge() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// now is the present generation.
func (t *tokens) now() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.generation
}

// forget drops the tokens of a set of facts, from the disk too; an empty id
// means all.
func (t *tokens) forget(set []byte) {
	t.mu.Lock()
	t.generation++
	before := t.count
	for id := range t.all {
		if len(set) == 0 || bytes.Equal(id[:], set) {
			t.drop(id, func(tokenKey, *tokenEntry) bool { return true })
		}
	}
	for k := range t.turns {
		if len(set) == 0 || bytes.Equal(k.set[:], set) {
			delete(t.turns, k)
		}
	}
	dropped := t.count < before
	t.mu.Unlock()
	if dropped {
		t.kept.nudge(true)
	}
	t.nudge()
}

// drop must be called with mu held.
func (t *tokens) drop(set [sha256.Size]byte, which func(tokenKey, *tokenEntry) bool) {
	for k, e := range t.all[set] {
		if !which(k, e) {
			continue
		}
		delete(t.all[set], k)
		t.count--
		if e.ahead {
			t.made--
		}
	}
	if len(t.all[set]) == 0 {
		delete(t.all, set)
	}
}

// get returns what is held for a set with these SVIDs and still valid, and
// whether it is time to ask for newer ones. Who asks for one identity is served
// from what was made ahead for all.
func (t *tokens) get(k tokenKey, svids []*SVID, now time.Time) (e tokenEntry, ok, due bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	every := k
	every.id = spiffeid.ID{}
	for _, other := range []tokenKey{every, k} {
		held := t.all[k.set][other]
		if held == nil || other != k && !held.ahead || held.stage == unproven || !now.Before(held.ends) || !held.fits(svids) {
			continue
		}
		held.asked = now
		if e, ok = *held, true; other != k {
			e, ok = e.only(k.id)
		}
		if ok {
			return e, true, !now.Before(e.renewAt)
		}
	}
	return tokenEntry{}, false, true
}

// lend is what other sets hold, or an earlier run held, for the same audiences
// on facts that hold for this workload too: of those identities alone whose
// SVIDs it has.
func (t *tokens) lend(k tokenKey, w *api.Workload, svids []*SVID, now time.Time) (tokenEntry, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	found := tokenEntry{}
	if k.target != "" {
		return found, false
	}
	for _, held := range t.all {
		for other, e := range held {
			if other.target != "" || other.audiences != k.audiences || e.stage == unproven || !now.Before(e.ends) {
				continue
			}
			for _, v := range e.svids {
				if (k.id.IsZero() || v.ID == k.id) && covers(v.depends, w) && v.fits(svids) {
					found.svids = append(found.svids, v)
					found.use = strictest(found.use, e.use)
				}
			}
		}
	}
	slices.SortFunc(found.svids, func(x, y heldJWT) int {
		if c := strings.Compare(x.identity, y.identity); c != 0 {
			return c
		}
		return y.Expires.Compare(x.Expires)
	})
	found.svids = slices.CompactFunc(found.svids, func(x, y heldJWT) bool { return x.identity == y.identity })
	found.lives()
	return found, len(found.svids) > 0
}

// put keeps an answer, if its use permits that, nothing was forgotten since it
// was asked for, and there is room. It says whether it did.
func (t *tokens) put(k tokenKey, e tokenEntry, now time.Time, generation uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if generation != t.generation || e.use == useSingle || slices.ContainsFunc(e.svids, func(h heldJWT) bool { return len(h.digest) == 0 }) {
		return false
	}
	t.drop(k.set, func(old tokenKey, _ *tokenEntry) bool { return old == k })
	if !t.room(k.set, e.ahead, now) {
		t.turnedAway++
		return false
	}
	if t.all[k.set] == nil {
		t.all[k.set] = make(map[tokenKey]*tokenEntry)
	}
	e.asked, e.stage = now, current
	t.all[k.set][k] = &e
	t.count++
	if e.ahead {
		t.made++
	}
	delete(t.turns, k)
	t.kept.nudgeLater()
	return true
}

// room makes room for one more, if that takes none that is in use from another
// set. It must be called with mu held.
func (t *tokens) room(set [sha256.Size]byte, ahead bool, now time.Time) bool {
	if ahead && t.made >= maxAheadAll {
		return false
	}
	if !ahead {
		t.shedOwn(set)
	}
	if t.count < maxTokens {
		return true
	}
	for id := range t.all { // what would be asked for again in any case
		t.drop(id, func(_ tokenKey, e *tokenEntry) bool {
			return !now.Before(e.ends) || !e.ahead && !now.Before(e.renewAt)
		})
	}
	return t.count < maxTokens
}

// shedOwn drops the token of a set that was asked for least recently, if it has
// as many as it may. It must be called with mu held.
func (t *tokens) shedOwn(set [sha256.Size]byte) {
	var oldest *tokenEntry
	n := 0
	for _, e := range t.all[set] {
		if e.ahead {
			continue
		}
		if n++; oldest == nil || e.asked.Before(oldest.asked) {
			oldest = e
		}
	}
	if n >= maxOwn {
		t.drop(set, func(_ tokenKey, e *tokenEntry) bool { return e == oldest })
	}
}

// strictest is the stricter of two uses.
func strictest(x, y string) string {
	order := []string{"", useAudited, useSingle}
	n := max(slices.Index(order, x), slices.Index(order, y))
	if !slices.Contains(order, x) || !slices.Contains(order, y) {
		return useSingle
	}
	return order[n]
}

// usesOf is the strictest use that these SVIDs are known to have for these
// audiences; of a pattern only the broker knows what it matches.
func usesOf(svids []*SVID, audiences []string, id spiffeid.ID) (use string) {
	for _, v := range svids {
		if !id.IsZero() && v.ID != id {
			continue
		}
		for _, a := range audiences {
			use = strictest(use, v.JWTUses[a])
		}
	}
	return use
}

// listedAhead are the audiences whose tokens may be made before anybody asks:
// those that are listed by name, the first of each identity, and by none for a
// single use.
func listedAhead(svids []*SVID) (all []string) {
	for _, v := range svids {
		n := 0
		for _, a := range v.JWTAudiences {
			if n == maxAhead {
				break
			}
			if strings.Contains(a, "*") || usesOf(svids, []string{a}, spiffeid.ID{}) == useSingle {
				continue
			}
			if n++; !slices.Contains(all, a) {
				all = append(all, a)
			}
		}
	}
	return all
}
