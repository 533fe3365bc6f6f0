package server

import "time"

// NewLimits are the token endpoint's, for what HTTP would take too long to show.
func NewLimits(burst, rate float64, now func() time.Time) func(key string) (time.Duration, bool) {
	return newLimits(burst, rate, now).take
}

// MaxBuckets and SourceOf likewise.
const MaxBuckets = maxBuckets

var SourceOf = sourceOf
