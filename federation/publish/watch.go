package publish

import (
	"context"
	"errors"
	"time"
)

// Config is the wiring of Watch. Fields are required unless noted.
type Config struct {
	Source func(context.Context) (Set, error) // what is published now; not blocking for long
	Target Target
	Report func(Outcome)    // called for each change and each failure
	Look   time.Duration    // how often Source is asked; 0: 5 s
	Renew  time.Duration    // how often a place that should be unchanged is looked at; 0: 10 min
	Try    time.Duration    // how long one publication may take; 0: 1 min
	Now    func() time.Time // nil means time.Now
}

// An Outcome is what came of one publication.
type Outcome struct {
	Set     Set       // what was to be published; zero where there was none
	Changed []string  // names of the documents that are now there
	Err     error     // nil: all of Set is durable
	Since   time.Time // with Err: since when no publication succeeded; zero: never did one
}

// Watch publishes whatever is new until ctx ends, tries again what failed, at
// first soon, and mends a place that others changed.
func Watch(ctx context.Context, cfg Config) error {
	if cfg.Source == nil || cfg.Target == nil || cfg.Report == nil {
		return errors.New("publishing continuously: Source, Target and Report are required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	for d, otherwise := range map[*time.Duration]time.Duration{&cfg.Look: 5 * time.Second, &cfg.Renew: 10 * time.Minute, &cfg.Try: time.Minute} {
		if *d <= 0 {
			*d = otherwise
		}
	}
	w := &watcher{Config: cfg}
	ticker := time.NewTicker(cfg.Look)
	defer ticker.Stop()
	for {
		w.look(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

type watcher struct {
	Config
	done   Set       // that is there
	at     time.Time // since when
	tried  Set       // last
	failed int       // in a row
	again  time.Time // after which what failed is tried again
}

// maxPause is how long at most a failure rests, where nothing changes.
const maxPause = time.Minute

func (w *watcher) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, w.Try)
	defer cancel()
	s, err := w.Source(ctx)
	now := w.Now()
	switch {
	case w.failed > 0 && now.Before(w.again) && (err != nil || same(s, w.tried)):
		return
	case err == nil && w.failed == 0 && same(s, w.done) && now.Sub(w.at) < w.Renew:
		return
	}
	var changed []string
	if err == nil {
		changed, err = w.Target.Publish(ctx, s)
	}
	if context.Cause(ctx) == context.Canceled {
		return // told to stop
	}
	outcome, recovered := Outcome{Set: s, Changed: changed, Err: err}, w.failed > 0
	if err != nil {
		outcome.Since = w.at
		w.again = now.Add(min(w.Look<<min(w.failed, 10), maxPause))
		w.tried, w.failed = s, w.failed+1
	} else {
		w.done, w.at, w.failed = s, w.Now(), 0
	}
	if err != nil || len(changed) > 0 || recovered {
		w.Report(outcome)
	}
}

func same(a, b Set) bool {
	return a.TrustDomain == b.TrustDomain && a.Issuer == b.Issuer && a.BundleCache == b.BundleCache && a.OIDCCache == b.OIDCCache &&
		string(a.Bundle) == string(b.Bundle) && string(a.Discovery) == string(b.Discovery) && string(a.Keys) == string(b.Keys)
}
