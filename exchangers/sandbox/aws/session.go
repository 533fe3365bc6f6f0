package aws

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
)

// maxSessions bounds memory: more live sessions than that are not issued.
const maxSessions = 10_000

var errTooMany = errors.New("too many live sessions")

// A Session is what the cloud knows of issued credentials, secrets left out.
type Session struct {
	AccessKeyID    string
	ARN            string // of the assumed role, with the session's name
	UserID         string
	SourceIdentity string
	Tags           map[string]string
	Expires        time.Time
}

type session struct {
	Session
	secret, token string
	role          string   // its ARN
	transitive    []string // keys of the tags that go on
	policies      []string // what narrows it: inline, and ARNs
}

// Sessions returns all sessions that have not expired, by access key ID.
func (c *Cloud) Sessions() []Session {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var out []Session
	for _, id := range slices.Sorted(maps.Keys(c.sessions)) {
		if s := c.sessions[id]; c.cfg.Now().Before(s.Expires) {
			s.Tags = maps.Clone(s.Tags)
			out = append(out, s.Session)
		}
	}
	return out
}

// grant is what a session is made from.
type grant struct {
	role           role
	name           string
	sourceIdentity string
	tags           map[string]string
	transitive     []string
	policies       []string
	duration       time.Duration
	minToken       int
}

// issue makes and stores credentials. They expire at the whole second that the
// client is told.
func (c *Cloud) issue(g grant, now time.Time) (session, error) {
	s := session{
		Session: Session{
			AccessKeyID:    "ASIA" + base32.StdEncoding.EncodeToString(random(10)),
			ARN:            "arn:" + g.role.arn.partition + ":sts::" + g.role.arn.account + ":assumed-role/" + g.role.arn.roleName() + "/" + g.name,
			UserID:         g.role.id + ":" + g.name,
			SourceIdentity: g.sourceIdentity,
			Tags:           g.tags,
			Expires:        now.Add(g.duration).UTC().Truncate(time.Second),
		},
		role: g.role.text, transitive: g.transitive, policies: g.policies,
		secret: marked(random(30)),
		token:  marked(random(max(240, g.minToken))),
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.sessions) >= maxSessions {
		maps.DeleteFunc(c.sessions, func(_ string, s session) bool { return !now.Before(s.Expires) })
	}
	if len(c.sessions) >= maxSessions {
		return session{}, errTooMany
	}
	c.sessions[s.AccessKeyID] = s
	return s, nil
}

// marked is base64 that tests find, as long as without the mark.
func marked(b []byte) string {
	return sandbox.Canary + base64.StdEncoding.EncodeToString(b)[len(sandbox.Canary):]
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails: crypto/rand ends the program instead
	return b
}

// roleID is the unique ID of a role, stable for its ARN.
func roleID(roleARN string) string {
	sum := sha256.Sum256([]byte(roleARN))
	return "AROA" + strings.TrimRight(base32.StdEncoding.EncodeToString(sum[:]), "=")[:17]
}

// packed is the packed size of what narrows and describes a session, in per cent
// of the most allowed. The real packing is not public; this one counts bytes.
func packed(tags map[string]string, policies ...string) int {
	n := 0
	for k, v := range tags {
		n += len(k) + len(v)
	}
	for _, p := range policies {
		n += len(p)
	}
	return (n*100 + 4095) / 4096
}
