package authority

import (
	"context"
	"fmt"
	"slices"
)

// A KeyState says of one of our keys that are in use whether it can be opened.
type KeyState struct {
	ID     string
	Use    Use
	Alg    string
	State  State
	KeyRef string
	Err    error // nil: it opens
}

// CheckKeys tries to open every key of this broker that signs or is to sign,
// the root's too. No Authority need be open.
func CheckKeys(ctx context.Context, cfg Config) ([]KeyState, error) {
	a, records, _, err := offline(ctx, cfg)
	if err != nil {
		return nil, err
	}
	var all []KeyState
	for _, r := range records {
		if a.inUse(r) {
			_, err := openKey(ctx, a.keysOf(r), r)
			all = append(all, KeyState{r.ID, r.Use, r.Alg, r.State, r.KeyRef, err})
		}
	}
	return all, nil
}

// offline reads the records for what is done while no Authority is open.
func offline(ctx context.Context, cfg Config) (*Authority, []Record, Publication, error) {
	cfg, err := complete(cfg)
	if err != nil {
		return nil, nil, Publication{}, err
	}
	records, publication, err := cfg.Records.Authorities(ctx)
	return &Authority{cfg: cfg}, records, publication, err
}

// inUse says whether r is ours and signs, or is to sign.
func (a *Authority) inUse(r Record) bool {
	switch {
	case r.KeyRef == "" || r.Use == Issuing && r.Broker != a.cfg.Broker:
		return false
	case r.Use == JWTKey || r.Use == Root:
		return r.State == Published || r.State == Active
	}
	return r.State == Prepared || r.State == Published || r.State == Active
}

// keyIsLost is the reason of an authority that was set aside.
const keyIsLost = "its key is lost"

// ForgetKeys sets the authorities ids aside, whose keys are lost, so that the
// next Open makes others. It refuses a key that opens; and a root as long as
// there is an issuing CA: until that ends, agents and peers can learn another
// root. What lost keys signed stays valid as long as it lives. No Authority may
// be open on the same records.
func ForgetKeys(ctx context.Context, cfg Config, ids []string) error {
	a, records, publication, err := offline(ctx, cfg)
	if err != nil {
		return err
	}
	var changed []Record
	for _, id := range ids {
		i := slices.IndexFunc(records, func(r Record) bool { return r.ID == id })
		if i < 0 || !a.inUse(records[i]) {
			return fmt.Errorf("forgetting keys: %w", nothing("%q is no key of ours that is in use", id))
		}
		r := records[i]
		if _, err := openKey(ctx, a.keysOf(r), r); err == nil {
			return fmt.Errorf("forgetting keys: %w", refused("the key %s opens: it is not lost", id))
		}
		if ca, ok := a.remaining(records, ids); ok && r.Use == Root && r.State == Active {
			return fmt.Errorf("forgetting keys: %w", refused("root %s: the issuing CA %s works until %s: start the broker, and have agents and peers learn another root first (credence ca rotate root)",
				id, ca.ID, ca.NotAfter.UTC().Format("2006-01-02T15:04Z")))
		}
		changed = append(changed, a.forgotten(r))
	}
	c := Change{Broker: cfg.Broker, Records: a.withRoom(records, changed), Publication: publication, Seen: publication.Version, All: true}
	if cfg.Leases != nil {
		lease, _, err := cfg.Leases.Acquire(ctx, LeaseName, cfg.Broker, leaseLife, true)
		if err != nil {
			return fmt.Errorf("forgetting keys: %w", err)
		}
		c.Fence = lease.Fence
	}
	_, err = cfg.Records.SaveAuthorities(ctx, c)
	return err
}

// remaining is this broker's issuing CA, if it is not forgotten and lives.
func (a *Authority) remaining(records []Record, forget []string) (Record, bool) {
	i := slices.IndexFunc(records, func(r Record) bool {
		return r.Use == Issuing && r.State == Active && r.Broker == a.cfg.Broker && !slices.Contains(forget, r.ID) && a.now().Before(r.NotAfter)
	})
	if i < 0 {
		return Record{}, false
	}
	return records[i], true
}

// forgotten is r without its key: what relying parties need to verify what it
// signed stays published.
func (a *Authority) forgotten(r Record) Record {
	switch {
	case r.Use == Root && r.State == Active:
		r.State, r.Reason = Old, keyIsLost
	case r.Use == JWTKey && r.State == Active:
		r.State, r.NotAfter, r.Reason = Old, a.now(), keyIsLost
	default:
		r.State, r.Reason = Revoked, keyIsLost
	}
	return r
}

// withRoom ends old JWT keys of which no token lives where another becomes old:
// three are published at most.
func (a *Authority) withRoom(records, changed []Record) []Record {
	for _, r := range records {
		makesRoom := func(c Record) bool { return c.Use == JWTKey && c.State == Old && c.Alg == r.Alg }
		if r.Use == JWTKey && r.State == Old && !a.now().Before(r.LastExpiry) && slices.ContainsFunc(changed, makesRoom) {
			r.State = Revoked
			changed = append(changed, r)
		}
	}
	return changed
}
