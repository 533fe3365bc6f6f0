package identity

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// maxWhens is how many CEL expressions one decision evaluates; a request that
// would take more is refused.
const maxWhens = 64

// Config is what a Set must know besides resources. A life of zero means the
// default that is named.
type Config struct {
	TrustDomain spiffeid.TrustDomain // required
	JWT         bool                 // whether there is an issuer: without one no JWT-SVID at all
	// TokenEndpoint is the audience of JWT-SVIDs that are evidence at our own
	// token endpoint: such a one has no other, lives EvidenceTTL at most, is
	// used once, and is never what an exchange gives. Empty: there is none.
	TokenEndpoint string
	DNSSuffixes   []string // under which Identities may ask for DNS names; empty permits none
	AnyDNSName    bool     // instead: none is out of bounds, for checks without a broker's configuration
	Subjects      []string // patterns of RDNs that Identities may ask for besides CN=<their name>, such as "O=Acme"

	X509TTL    time.Duration // 1 h, or MaxX509TTL where that is less
	MaxX509TTL time.Duration // 24 h: a third of the issuing CA's default life
	JWTTTL     time.Duration // 5 min, or MaxJWTTTL where that is less
	TargetTTL  time.Duration // 15 min, likewise
	FileTTL    time.Duration // 1 h, likewise: of a target's token that goes to a file
	MaxJWTTTL  time.Duration // 1 h
	MinTTL     time.Duration // 1 min; only a drill sets less
}

// Resources are what a Set is made from.
type Resources struct {
	Identities []Identity
	Denies     []Deny
	Targets    []Target
	Peers      []string // names of Peers: their trust domains
}

// An Error is a mistake in one resource. Field is the path to it as YAML
// writes it, such as "x509.ttl" or "jwt.audiences[1]"; that of a term is
// "match[0]." and the fact's name. An Error without Kind is about Config.
type Error struct {
	Kind, Name, Field, Msg string
}

func (e *Error) Error() string {
	if e.Kind == "" {
		return fmt.Sprintf("%s: %s", e.Field, e.Msg)
	}
	if e.Field == "" {
		return fmt.Sprintf("%s %s: %s", e.Kind, e.Name, e.Msg)
	}
	return fmt.Sprintf("%s %s: %s: %s", e.Kind, e.Name, e.Field, e.Msg)
}

// A Set is all policy, compiled. It is immutable, and safe for concurrent use;
// a change makes another Set.
type Set struct {
	config     Config
	identities []*identity      // by name
	denies     []*deny          // by name
	subjects   []subjectPattern // Config.Subjects
	targets    map[string]Target
	peers      map[string]bool
	allow      *index
	deny       *index
	denyReads  reads // what all Denies read
	whens      map[string]usedWhen
	costly     map[string]int // costly facts: how many Identities read each
	wanted     []string       // those, and what the Denies read
}

// named returns the Identity of a name.
func (s *Set) named(name string) (*identity, bool) {
	at, ok := slices.BinarySearchFunc(s.identities, name, (*identity).compareName)
	if !ok {
		return nil, false
	}
	return s.identities[at], true
}

func (i *identity) compareName(name string) int { return strings.Compare(i.Name, name) }
func (d *deny) compareName(name string) int     { return strings.Compare(d.Name, name) }

// An identity is a compiled Identity.
type identity struct {
	Identity
	id           idTemplate
	reads        *reads // shared with others that read the same
	alternatives []*alternative
	x509TTL      time.Duration
	jwtTTL       time.Duration
	names        *nameTemplates // of its X509-SVIDs; nil: as X509 has them
	claims       *claimTemplates
	audiences    []pattern
	listed       []Audience // as told: of a literal one the use that counts
}

// A deny is a compiled Deny.
type deny struct {
	Deny
	ids          []idPattern
	alternatives []*alternative
}

// NewSet compiles policy. It refuses all of it for one mistake: the error
// joins (errors.Join) an *Error for each of the first twenty.
func NewSet(c Config, r Resources) (*Set, error) { return (*Set)(nil).Replace(c, r) }

// Replace is NewSet that takes over what s, which may be nil, has compiled of
// CEL: compiling an expression takes a millisecond. It leaves s as it is.
func (s *Set) Replace(config Config, r Resources) (*Set, error) {
	c := &compiler{set: &Set{targets: make(map[string]Target, len(r.Targets)), whens: map[string]usedWhen{}, costly: map[string]int{}}, reads: map[string]*reads{}}
	if s != nil {
		c.old = s.whens
	}
	c.config(config)
	if len(c.errs) > 0 { // resources are judged by it
		return nil, errors.Join(c.errs...)
	}
	c.targets(r.Targets)
	c.peers(r.Peers)
	c.identities(r.Identities)
	c.denies(r.Denies)
	if len(c.errs) > 0 {
		return nil, errors.Join(c.errs...)
	}
	c.index()
	c.wanted()
	return c.set, errors.Join(c.errs...)
}

// maxErrors is how many mistakes are told at once.
const maxErrors = 20

// A compiler makes one Set.
type compiler struct {
	set        *Set
	kind, name string // of the resource at hand
	errs       []error
	env        *cel.Env
	old        map[string]usedWhen
	reads      map[string]*reads
}

// share returns what is equal to r already, if that is no more than names: a
// few lists are those of most Identities.
func (c *compiler) share(r *reads) *reads {
	if len(r.groups)+len(r.any) > 0 {
		return r
	}
	key := strings.Join(r.names, "\n")
	known, ok := c.reads[key]
	if !ok {
		c.reads[key] = r
	} else if slices.Equal(known.names, r.names) {
		return known
	}
	return r
}

func (c *compiler) fail(field, format string, args ...any) {
	if len(c.errs) < maxErrors {
		c.errs = append(c.errs, &Error{c.kind, c.name, field, fmt.Sprintf(format, args...)})
	}
}

// at turns to the next resource and checks its name.
func (c *compiler) at(kind, name string) {
	c.kind, c.name = kind, name
	if err := checkName(name); err != nil {
		c.fail("name", "%v", err)
	}
}

// checkName takes what can stand in a file name, a URL, and a common name.
func checkName(name string) error {
	if name == "" || len(name) > 63 {
		return fmt.Errorf("%d bytes: want 1 to 63", len(name))
	}
	for i := range len(name) {
		c := name[i]
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || i > 0 && (c == '-' || c == '.')) {
			return fmt.Errorf("%q: want a-z, 0-9, - and ., the first a letter or digit", name)
		}
	}
	return nil
}

// A usedWhen is an expression, and how many items have it.
type usedWhen struct {
	*when
	items int
}

// when compiles an expression once for all items that share its text.
func (c *compiler) when(text string) (*when, error) {
	w, ok := c.set.whens[text]
	if !ok {
		w.when = c.old[text].when
	}
	if w.when == nil {
		var err error
		if c.env == nil {
			if c.env, err = newCEL(); err != nil {
				return nil, err
			}
		}
		if w.when, err = compileWhen(c.env, text); err != nil {
			return nil, err
		}
	}
	w.items++
	c.set.whens[text] = w
	return w.when, nil
}

func (c *compiler) targets(targets []Target) {
	for _, t := range targets {
		c.at("Target", t.Name)
		if _, twice := c.set.targets[t.Name]; twice {
			c.fail("name", "there are two of this name")
		}
		if len(t.Audience) > maxAudience {
			c.fail("audience", "%d bytes: at most %d are taken", len(t.Audience), maxAudience)
		}
		c.set.targets[t.Name] = t
	}
}

func (c *compiler) peers(names []string) {
	c.set.peers = make(map[string]bool, len(names))
	for _, name := range names {
		c.kind, c.name = "Peer", name
		switch td, err := ParseTrustDomain(name); {
		case err != nil:
			c.fail("name", "%v", err)
		case td == c.set.config.TrustDomain:
			c.fail("name", "this is our own trust domain")
		case c.set.peers[name]:
			c.fail("name", "there are two of this name")
		}
		c.set.peers[name] = true
	}
}

func (c *compiler) identities(all []Identity) {
	block := make([]identity, len(all))
	c.set.identities = make([]*identity, len(all))
	order := slices.SortedFunc(indexes(len(all)), func(i, j int) int { return strings.Compare(all[i].Name, all[j].Name) })
	for to, from := range order {
		i := &block[to]
		c.set.identities[to] = i
		i.Identity = all[from]
		c.at("Identity", i.Name)
		if to > 0 && all[order[to-1]].Name == i.Name {
			c.fail("name", "there are two of this name")
		}
		c.identity(i)
	}
}

func (c *compiler) denies(all []Deny) {
	c.set.denies = make([]*deny, len(all))
	named := func(i int) string { return all[i].named() }
	order := slices.SortedFunc(indexes(len(all)), func(i, j int) int { return strings.Compare(named(i), named(j)) })
	for to, from := range order {
		d := &deny{Deny: all[from]}
		c.set.denies[to] = d
		c.at("Deny", d.Name)
		if to > 0 && named(order[to-1]) == named(from) {
			c.fail("name", "there are two of this name")
		}
		c.deny(d)
	}
	c.denyReads()
}

func (d Deny) named() string {
	if d.Here {
		return HereDeny(d.Name)
	}
	return d.Name
}

// deny checks and compiles d.
func (c *compiler) deny(d *deny) {
	d.Name = d.named()
	d.alternatives = c.compileItems(alternative{owner: d.Name, deny: d}, d.Match)
	d.Match = nil // the caller's
	for n, text := range d.SPIFFEIDs {
		p, err := parseIDPattern(c.set.config.TrustDomain, text)
		if err != nil {
			c.fail(fmt.Sprintf("spiffe_ids[%d]", n), "%v", err)
		}
		d.ids = append(d.ids, p)
	}
}

func (c *compiler) denyReads() {
	for _, d := range c.set.denies {
		for _, a := range d.alternatives {
			a.reads(&c.set.denyReads)
		}
	}
	c.set.denyReads.tidy()
}

// index files all alternatives.
func (c *compiler) index() {
	var allow, deny []*alternative
	for _, i := range c.set.identities {
		allow = append(allow, i.alternatives...)
	}
	for _, d := range c.set.denies {
		deny = append(deny, d.alternatives...)
	}
	c.set.allow, c.set.deny = buildIndex(allow), buildIndex(deny)
	c.checkAlways()
}

// checkAlways refuses more alternatives that are always found than a decision
// evaluates: it would refuse everybody.
func (c *compiler) checkAlways() {
	if n := len(c.set.allow.always) + len(c.set.deny.always); n > maxWhens {
		c.kind, c.name = "", ""
		c.fail("match", "%d items have only a when, and at most %d are evaluated for one request: give them terms", n, maxWhens)
	}
}

// wanted makes the answer of WantedFacts of what the Identities, counted
// already, and the Denies read.
func (c *compiler) wanted() {
	all := reads{names: slices.Collect(maps.Keys(c.set.costly))}
	c.set.denyReads.addCostly(&all)
	all.tidy()
	c.set.wanted = all.names
}

// count counts the costly facts that an Identity reads; by -1 it no longer does.
func (c *compiler) count(i *identity, by int) {
	var all reads
	i.reads.addCostly(&all)
	for _, name := range all.names {
		if c.set.costly[name] += by; c.set.costly[name] == 0 {
			delete(c.set.costly, name)
		}
	}
}

func indexes(n int) func(func(int) bool) {
	return func(yield func(int) bool) {
		for i := range n {
			if !yield(i) {
				return
			}
		}
	}
}

// An idPattern is a pattern over paths or over full IDs.
type idPattern struct {
	pattern
	full bool
}

func parseIDPattern(td spiffeid.TrustDomain, s string) (idPattern, error) {
	p, err := parsePattern(s)
	if err != nil {
		return idPattern{}, err
	}
	full := strings.HasPrefix(s, td.IDString()+"/")
	if !full && s[0] != '/' {
		return idPattern{}, fmt.Errorf("%q is a pattern neither of paths nor of IDs in %s: it would never hold", s, td.IDString())
	}
	return idPattern{p, full}, nil
}

func (p *idPattern) matches(id spiffeid.ID) bool {
	if p.full {
		return p.match(id.String())
	}
	return p.match(id.Path())
}
