package authority

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
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
			return fmt.Errorf("forgetting keys: %w", refused("root %s: the issuing CA %s of broker %s works until %s: start that broker, and have agents and peers learn another root first (credence ca rotate root)",
				id, ca.ID, ca.Broker, ca.NotAfter.UTC().Format("2006-01-02T15:04Z")))
		}
		changed = append(changed, a.forgotten(r))
	}
	c := Change{Broker: cfg.Broker, Records: a.withRoom(records, changed), Publication: publication, Seen: publication.Version, All: true}
	defer func() { a.resign(ctx) }()
	if c.Fence, err = a.takeFence(ctx); err != nil {
		return fmt.Errorf("forgetting keys: %w", err)
	}
	_, err = cfg.Records.SaveAuthorities(ctx, c)
	return err
}

// Rewrap seals anew what is not sealed as it would be today, shared keys that lie in
// files here among it, and returns how many keys that are. Brokers may sign meanwhile, and change what they share: then it
// looks again. A key that cannot be opened stays as it is, and is in the error.
func Rewrap(ctx context.Context, cfg Config) (rewrapped int, err error) {
	if cfg, err = complete(cfg); err != nil {
		return 0, err
	}
	a := &Authority{cfg: cfg, asked: true, ticking: make(turn, 1), signers: map[string]openedKey{}, unopened: map[string]error{}}
	defer func() { a.resign(ctx) }()
	err = a.decide(ctx, func(ctx context.Context) error {
		rewrapped, err = a.rewrap(ctx)
		return err
	})
	if err != nil {
		return rewrapped, fmt.Errorf("sealing keys anew: %w", err)
	}
	return rewrapped, nil
}

func (a *Authority) rewrap(ctx context.Context) (int, error) {
	fence, err := a.takeFence(ctx)
	if err != nil {
		return 0, err
	}
	records, publication, err := a.cfg.Records.Authorities(ctx)
	if err != nil {
		return 0, err
	}
	c := Change{Broker: a.cfg.Broker, Seen: publication.Version, Fence: fence}
	var errs []error
	for _, r := range records {
		sealing, ok := a.keysOf(r).(SealedKeys)
		if !ok {
			continue
		}
		var changed bool
		if len(r.Sealed) == 0 {
			changed, err = a.takeIn(ctx, sealing, &r)
		} else if current, failed := sealing.Current(r.Sealed, r.bound()...); failed != nil {
			err = failed
		} else if !current {
			changed, err = true, a.reseal(&r, r)
		}
		if changed && err == nil {
			c.Records = append(c.Records, r)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("authority %s (%s %s): %w", r.ID, r.Use, r.Alg, err))
		}
	}
	if len(c.Records) > 0 {
		if _, err := a.cfg.Records.SaveAuthorities(ctx, c); err != nil {
			return 0, err
		}
	}
	return len(c.Records), errors.Join(errs...)
}

// takeIn seals a key that a broker had for itself, in a file here, before it began
// to share a database.
func (a *Authority) takeIn(ctx context.Context, sealing SealedKeys, r *Record) (taken bool, err error) {
	if r.KeyRef == "" || r.State == Revoked || r.Use == JWTKey && r.State == Old {
		return false, nil
	}
	key, err := openKey(ctx, a.cfg.Keys, *r)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // CheckKeys tells
	}
	if err != nil {
		return false, err
	}
	r.Sealed, err = sealing.Seal(key, r.bound()...)
	return err == nil, err
}

// takeFence takes the lead for what an operator does while no Authority is open
// here.
func (a *Authority) takeFence(ctx context.Context) (uint64, error) {
	if a.cfg.Leases == nil {
		return 0, nil
	}
	var err error
	if a.lease, _, err = a.cfg.Leases.Acquire(ctx, LeaseName, a.cfg.Broker, leaseLife, true); err != nil {
		return 0, fmt.Errorf("taking the lead over the authorities: %w", err)
	}
	return a.lease.Fence, a.lease.checkClock()
}

// remaining is an issuing CA that is not forgotten and lives: this broker's, or
// another's, which may well open what this one cannot.
func (a *Authority) remaining(records []Record, forget []string) (Record, bool) {
	i := slices.IndexFunc(records, func(r Record) bool {
		return r.Use == Issuing && r.State == Active && (r.Broker == a.cfg.Broker || a.cfg.Leases != nil) && !slices.Contains(forget, r.ID) && a.now().Before(r.NotAfter)
	})
	if i < 0 {
		return Record{}, false
	}
	return records[i], true
}

// forgotten is r without its key: what relying parties need to verify what it
// signed stays published.
func (a *Authority) forgotten(r Record) Record {
	r.Sealed = nil
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
			r.State, r.Sealed = Revoked, nil
			changed = append(changed, r)
		}
	}
	return changed
}
