package agent

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"

	"github.com/credence-id/credence/broker/api"
)

// keptToken is one answer to a question for JWT-SVIDs, as it is sealed on disk.
type keptToken struct {
	Set       []byte   `json:"set"`
	Audiences []string `json:"audiences"`
	ID        string   `json:"id,omitempty"` // asked for; empty: all
	SVIDs     [][]byte `json:"svids"`        // api.JWTSVID
	Digests   [][]byte `json:"digests"`      // of the X509-SVIDs, one each
	Use       string   `json:"use,omitempty"`
	Obtained  int64    `json:"obtained"`
	Ahead     bool     `json:"ahead,omitempty"`
}

// snapshot are the tokens that a restart of the agent takes up: of those for
// targets none. What is used once is held by nobody.
func (t *tokens) snapshot(now time.Time) (all []keptToken, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, held := range t.all {
		for k, e := range held {
			if k.target != "" || e.stage == unproven || e.use == useSingle || !now.Before(e.ends) || slices.ContainsFunc(e.svids, func(h heldJWT) bool { return isProof(h.depends) }) {
				continue
			}
			one := keptToken{Set: k.set[:], Audiences: e.audiences, Use: e.use, Obtained: e.obtained.Unix(), Ahead: e.ahead}
			if !k.id.IsZero() {
				one.ID = k.id.String()
			}
			for _, v := range e.svids {
				raw, err := proto.Marshal(&api.JWTSVID{
					Identity: v.identity, SpiffeId: v.ID.String(), Hint: v.Hint, Token: v.Token, Expires: v.Expires.Unix(), Depends: v.depends,
				})
				if err != nil {
					return nil, err
				}
				one.SVIDs, one.Digests = append(one.SVIDs, raw), append(one.Digests, v.digest)
			}
			all = append(all, one)
		}
	}
	return all, nil
}

// restoreTokens takes up what an earlier run held.
func (a *Agent) restoreTokens(all []keptToken) error {
	if len(all) > maxTokens {
		return fmt.Errorf("%d tokens: not ours", len(all))
	}
	t, now := &a.tokens, a.cfg.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, one := range all {
		k, e, err := a.restoredToken(one)
		if err != nil {
			return err
		}
		if !now.Before(e.ends) || t.all[k.set][k] != nil {
			continue
		}
		if t.all[k.set] == nil {
			t.all[k.set] = make(map[tokenKey]*tokenEntry)
		}
		t.all[k.set][k] = e
		t.count++
		if e.ahead {
			t.made++
		}
	}
	return nil
}

func (a *Agent) restoredToken(one keptToken) (tokenKey, *tokenEntry, error) {
	if len(one.Set) != sha256.Size || len(one.Audiences) == 0 || len(one.SVIDs) == 0 || len(one.SVIDs) != len(one.Digests) || strictest(one.Use, "") == useSingle {
		return tokenKey{}, nil, errors.New("a token that is none of ours")
	}
	k := tokenKey{set: [sha256.Size]byte(one.Set), audiences: joined(one.Audiences...)}
	if one.ID != "" {
		var err error
		if k.id, err = spiffeid.FromString(one.ID); err != nil {
			return k, nil, err
		}
	}
	e := &tokenEntry{audiences: one.Audiences, use: one.Use, obtained: time.Unix(one.Obtained, 0), ahead: one.Ahead, stage: former}
	for n, raw := range one.SVIDs {
		m := &api.JWTSVID{}
		if err := proto.Unmarshal(raw, m); err != nil {
			return k, nil, err
		}
		v, err := a.readJWT(m)
		if err != nil {
			return k, nil, err
		}
		v.digest = one.Digests[n]
		e.svids = append(e.svids, v)
	}
	e.lives()
	return k, e, nil
}

// doubt ends the lending of what an earlier run held: the broker decides from
// now on, and what it confirms is used on.
func (t *tokens) doubt() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, held := range t.all {
		for _, e := range held {
			if e.stage == former {
				e.stage = unproven
			}
		}
	}
}

// heard ends a pause: the broker answers.
func (t *tokens) heard() {
	select {
	case t.back <- struct{}{}:
	default:
	}
}
