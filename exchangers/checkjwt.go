package exchangers

import (
	"cmp"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

// JWTRules are what a cloud asks of JWT-SVIDs besides what all ask.
type JWTRules struct {
	Cloud          string // its name in prose, such as "AWS"
	MaxIssuer      int    // bytes; 0: 255
	MinSubject     int    // bytes
	MaxSubject     int    // bytes; 0: no bound
	IssuerField    string // where the cloud holds it, such as "cloud.oidc_provider.url"
	SubjectField   string
	ExactSubject   bool // each subject has to be known to the cloud before
	MaxLife        time.Duration
	UploadableKeys int // how many the cloud takes where the key set is uploaded; 0: it takes none
}

const (
	// A cached key set is believed for an hour at least, by some clouds for a day.
	leastLead = time.Hour
	mostLead  = 24 * time.Hour
	// azidentity and others read a token's file only every ten minutes.
	fileLife = 10 * time.Minute
	maxKeys  = 100 // of one type: AWS; the first hundred: Entra
)

// JWT runs the steps of a Target that takes JWT-SVIDs. own are the cloud's, about
// the Target itself.
func (w *Walk) JWT(r JWTRules, own ...func() bool) []Finding {
	steps := []func() bool{w.Listed, w.Settled, func() bool { return w.issuer(r) }}
	steps = append(steps, own...)
	return w.Steps(append(steps, func() bool { return w.subjects(r) }, func() bool { return w.lives(r) }, w.keys, w.discovery, func() bool { return w.keySet(r) })...)
}

func (w *Walk) issuer(r JWTRules) bool {
	const step = "issuer"
	if w.Issuer == "" {
		return w.Fail(step, "issuer_none", "broker.issuer", "the broker has no issuer, so there are no JWT-SVIDs", "set issuer in broker.yaml to an https URL that "+r.Cloud+" reaches")
	}
	if w.Registered.Issuer != "" && !w.Compare(step, "issuer", "the issuer", r.IssuerField, w.Issuer, w.Registered.Issuer) {
		return false
	}
	u, err := url.Parse(w.Issuer)
	most := cmp.Or(r.MaxIssuer, 255)
	switch change := "set issuer in broker.yaml to https://HOST or https://HOST/PATH, and in the cloud to the same"; {
	case err != nil || u.Scheme != "https" || u.Hostname() == "":
		return w.Fail(step, "issuer_not_https", "broker.issuer", "the issuer "+visible(w.Issuer)+" is no https URL", change)
	case u.User != nil || strings.ContainsAny(w.Issuer, "?#"):
		return w.Fail(step, "issuer_query", "broker.issuer", "the issuer "+visible(w.Issuer)+" has a user, a query or a fragment", change)
	case strings.ContainsFunc(w.Issuer, blank):
		return w.Fail(step, "issuer_blank", "broker.issuer", "the issuer "+visible(w.Issuer)+" has whitespace in it", change)
	case len(w.Issuer) > most:
		return w.Fail(step, "issuer_long", "broker.issuer", fmt.Sprintf("the issuer has %d bytes, and %s takes %d", len(w.Issuer), r.Cloud, most), "shorten issuer in broker.yaml, and set it in the cloud to the same")
	case Loopback(u.Hostname()):
		return w.Warn(step, "issuer_loopback", "broker.issuer", w.Issuer+portOf(u)+" is on this machine: only a sandbox here can read it", "give the broker an issuer that "+r.Cloud+" reaches, without a port")
	case u.Port() != "":
		return w.Fail(step, "issuer_with_port", "broker.issuer", "the issuer "+w.Issuer+" has the port "+u.Port()+", and clouds take none", "serve it on port 443, and leave the port out of issuer in broker.yaml and in the cloud")
	}
	return w.Done(step, "%s", w.Issuer)
}

func portOf(u *url.URL) string {
	if u.Port() == "" {
		return ""
	}
	return " has a port, which clouds do not take, and"
}

// Loopback says whether a host is this machine.
func Loopback(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

var template = regexp.MustCompile(`\{[^{}]*\}`)

// subjects holds each SPIFFE ID against the bounds, in bytes, and what is
// registered against the only one.
func (w *Walk) subjects(r JWTRules) bool {
	for _, p := range w.parties() {
		if !w.Subject("subject", r.Cloud, p, r.MinSubject, r.MaxSubject) {
			return false
		}
		if r.ExactSubject && Fixed(p.SPIFFEID) != p.SPIFFEID {
			w.Warn("subject", "subject_template", "identity.spiffe_id", p.Identity+" is "+p.SPIFFEID+": "+r.Cloud+" takes exact subjects",
				"register each SPIFFE ID that it can have, or give what shares a cloud identity one SPIFFE ID")
		}
	}
	return w.RegisteredSubject(r.SubjectField)
}

// Subject checks the length of one SPIFFE ID. What facts add to a template is
// not known: its fixed part alone must fit.
func (w *Walk) Subject(step, cloud string, p Party, least, most int) bool {
	n, whole := len(Fixed(p.SPIFFEID)), Fixed(p.SPIFFEID) == p.SPIFFEID
	switch {
	case most > 0 && n > most:
		return w.Fail(step, "subject_long", "identity.spiffe_id", fmt.Sprintf("%s is %s, of %d bytes, and %s takes %d", p.Identity, p.SPIFFEID, n, cloud, most),
			"shorten spiffe_id of Identity "+p.Identity)
	case whole && n < least:
		return w.Fail(step, "subject_short", "identity.spiffe_id", fmt.Sprintf("%s is %s, of %d bytes, and %s wants %d", p.Identity, p.SPIFFEID, n, cloud, least),
			"lengthen spiffe_id of Identity "+p.Identity)
	case !whole && most > 0:
		return w.Done(step, "%s leaves %d bytes of %d to its facts", p.SPIFFEID, most-n, most)
	}
	return w.Done(step, "%s has %d bytes", p.SPIFFEID, n)
}

// RegisteredSubject compares the SPIFFE IDs with the one in the cloud: one of
// them has to be it.
func (w *Walk) RegisteredSubject(field string) bool {
	theirs, all := w.Registered.Subject, w.parties()
	if theirs == "" {
		return true
	}
	nearest, most := "", -1
	for _, p := range all {
		if Renders(p.SPIFFEID, theirs) {
			return w.Done("subject", "%s is registered", theirs)
		}
		d, _ := Differ(p.SPIFFEID, theirs)
		if d.Byte > most {
			nearest, most = p.SPIFFEID, d.Byte
		}
	}
	return w.Compare("subject", "subject", "the subject", field, nearest, theirs)
}

// Renders says whether a template can give an ID.
func Renders(spiffeID, id string) bool {
	whole, err := regexp.Compile("^" + pattern(spiffeID, regexp.QuoteMeta) + "$")
	return err == nil && whole.MatchString(id)
}

// Fixed is a text without the facts of a template.
func Fixed(text string) string { return template.ReplaceAllString(text, "") }

func (w *Walk) lives(r JWTRules) bool {
	const step = "life"
	for _, p := range w.parties() {
		switch {
		case p.TokenTTL <= 0:
			return w.Fail(step, "life_none", "broker.issuer", p.Identity+" gets no JWT-SVID for this Target", "set issuer in broker.yaml")
		case r.MaxLife > 0 && p.TokenTTL > r.MaxLife:
			return w.Fail(step, "life_long", "broker.target_ttl", fmt.Sprintf("a JWT-SVID of %s lives for %s, and %s takes %s", p.Identity, p.TokenTTL, r.Cloud, r.MaxLife), "shorten it")
		case p.TokenTTL < fileLife:
			w.Warn(step, "life_short", "broker.target_ttl", fmt.Sprintf("a JWT-SVID of %s lives for %s, and SDKs read a token's file every %s", p.Identity, p.TokenTTL, fileLife), "have them ask the agent, not a file")
		default:
			w.Done(step, "a JWT-SVID of %s lives for %s", p.Identity, p.TokenTTL)
		}
	}
	return true
}

// keys checks the key that signs: RS256, which every cloud takes, and published
// for so long that clouds' copies of the key set hold it.
func (w *Walk) keys() bool {
	const step = "key"
	i := slices.IndexFunc(w.Keys, func(k JWTKey) bool { return k.Active && k.Alg == "RS256" })
	if i < 0 {
		return w.Fail(step, "key_none", "broker.issuer", "no RS256 key signs", "see credence ca show: it says what the key waits for")
	}
	key := w.Keys[i]
	age := w.Now.Sub(key.Published)
	older := slices.ContainsFunc(w.Keys, func(k JWTKey) bool { return k.Alg == "RS256" && key.Published.Sub(k.Published) > time.Minute })
	found := fmt.Sprintf("key %s signs, and is published for %s: a cloud may hold an older copy of our keys", key.ID, age.Round(time.Second))
	switch wait := "wait until " + key.Published.Add(mostLead).UTC().Format(time.RFC3339) + ", and have jwt_key_lead in broker.yaml at 24h"; {
	case older && age < leastLead:
		return w.Fail(step, "key_young", "broker.jwt_key_lead", found, wait)
	case older && age < mostLead:
		return w.Warn(step, "key_recent", "broker.jwt_key_lead", found, wait)
	}
	return w.Done(step, "%s, RS256", key.ID)
}
