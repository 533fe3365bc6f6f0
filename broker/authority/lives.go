package authority

import (
	"fmt"
	"time"
)

// Lives are how long things live. Zero fields take their defaults.
type Lives struct {
	Root        time.Duration // 10 years
	Issuing     time.Duration // 72 h, at most 7 days; replaced at half; leaves live at most a third of it
	JWTKey      time.Duration // 7 days: how long a JWT key signs
	Lead        time.Duration // 24 h from a JWT key's publication to its first use: what the slowest cloud caches
	Keep        time.Duration // 24 h from a JWT key's last use to its removal, or longer: what it signed lives on
	RefreshHint time.Duration // 300 s
	Backdate    time.Duration // 60 s: notBefore and iat lie before now
	MaxJWT      time.Duration // 1 h: from a JWT-SVID's iat to its exp
	CRL         time.Duration // 24 h from a CRL's making to its next update; made anew at half
}

const day = 24 * time.Hour

func (l Lives) complete() (Lives, error) {
	for _, f := range []struct {
		name     string
		d        *time.Duration
		standard time.Duration
		most     time.Duration
	}{
		{"root", &l.Root, 3652 * day, 20 * 3652 * day},
		{"issuing CA", &l.Issuing, 72 * time.Hour, 7 * day},
		{"JWT key", &l.JWTKey, 7 * day, 365 * day},
		{"JWT key's lead", &l.Lead, day, 90 * day},
		{"old JWT key", &l.Keep, day, 90 * day},
		{"refresh hint", &l.RefreshHint, 300 * time.Second, 10 * time.Minute},
		{"backdating", &l.Backdate, time.Minute, 10 * time.Minute},
		{"JWT-SVID", &l.MaxJWT, time.Hour, time.Hour},
		{"CRL", &l.CRL, day, 30 * day},
	} {
		if *f.d == 0 {
			*f.d = f.standard
		}
		if *f.d < time.Second || *f.d > f.most {
			return l, fmt.Errorf("life of the %s is %s: want 1s to %s", f.name, *f.d, f.most)
		}
	}
	switch {
	case l.RefreshHint%time.Second != 0: // SPIFFE Trust Domain and Bundle §4.1.2
		return l, fmt.Errorf("refresh hint is %s: want whole seconds", l.RefreshHint)
	case l.Lead < 3*l.RefreshHint: // SPIFFE Federation §4.1
		return l, fmt.Errorf("JWT key's lead is %s: want at least 3 refresh hints, %s", l.Lead, 3*l.RefreshHint)
	case l.JWTKey < l.Lead:
		return l, fmt.Errorf("life of a JWT key is %s: want at least its lead, %s", l.JWTKey, l.Lead)
	case l.Issuing > l.Root:
		return l, fmt.Errorf("life of the issuing CA is %s: want at most the root's, %s", l.Issuing, l.Root)
	}
	return l, nil
}
