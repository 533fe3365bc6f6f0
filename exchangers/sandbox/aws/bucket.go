package aws

import (
	"sync"
	"time"
)

// A bucket is a token bucket of rate tokens a second, as many as it holds.
type bucket struct {
	rate float64

	mu     sync.Mutex // guards the rest
	tokens float64
	last   time.Time
}

func newBucket(rate int, now time.Time) *bucket {
	return &bucket{rate: float64(rate), tokens: float64(rate), last: now}
}

// take takes a token, or says that there is none. A clock set back adds none.
func (b *bucket) take(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if d := now.Sub(b.last); d > 0 {
		b.tokens = min(b.rate, b.tokens+d.Seconds()*b.rate)
	}
	b.last = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
