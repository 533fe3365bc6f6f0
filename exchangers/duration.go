package exchangers

import (
	"fmt"
	"strings"
	"time"
)

// A Duration is written as Go writes it, "1h" or "15m", in YAML and in JSON.
type Duration time.Duration

// MarshalText writes 1h0m0s.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads what [time.ParseDuration] reads.
func (d *Duration) UnmarshalText(text []byte) error {
	if len(text) > 64 {
		return fmt.Errorf("duration of %d characters: at most 64 are read", len(text))
	}
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("duration %q: write it like 1h or 15m", text)
	}
	*d = Duration(v)
	return nil
}

// String writes 1h0m0s.
func (d Duration) String() string { return time.Duration(d).String() }

// Brief writes a duration as people do: 1h, not 1h0m0s.
func Brief(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// CheckRange refuses a duration outside min and max, and one that is not of
// whole seconds. Zero passes: the field was left out.
func (d Duration) CheckRange(field string, min, max time.Duration) error {
	v := time.Duration(d)
	if v == 0 {
		return nil
	}
	if v < min || v > max || v%time.Second != 0 {
		return fmt.Errorf("%s %s: it must be whole seconds from %s to %s", field, v, min, max)
	}
	return nil
}
