package server

import (
	"context"
	"time"
)

// NewLimits are the token endpoint's, for what HTTP would take too long to show.
func NewLimits(burst, rate float64, now func() time.Time) func(key string) (time.Duration, bool) {
	return newLimits(burst, rate, now).take
}

// NodeCalls are those of nodes.
func NodeCalls(l Limits, now func() time.Time) func(key string) (time.Duration, bool) {
	return newRates(l, now).calls.take
}

// MaxBuckets and SourceOf likewise.
const MaxBuckets = maxBuckets

var SourceOf = sourceOf

// MaxStrangersOf is how many connections without a certificate one address has.
const MaxStrangersOf = maxStrangersOf

// NewPlaces are few places.
func NewPlaces(n int) func(ctx context.Context, source string) (leave func(), err error) {
	return newPlaces(n).enter
}

// Least is the least role of each RPC.
var Least = least

// May says whether a role may call an RPC.
func (r Role) May(method string) bool { return r.may(method) }

// Hung is of a beat, and now.
func Hung(beat, now time.Time) []string { return hung(beat.UnixMilli(), now) }

// TryRecord tries a record that could not be written.
func (s *Server) TryRecord(ctx context.Context) { s.tryRecord(ctx) }

// UnreadyFor is what is unready where a broker stands like that.
func (s *Server) UnreadyFor(o Overview) []string { return s.unready(o) }

// ProblemsFor is what somebody has to see to where a broker stands like that.
func (s *Server) ProblemsFor(o Overview) []string { return s.problems(o) }

// CatchUp takes over what other brokers write until ctx ends.
func (s *Server) CatchUp(ctx context.Context) error { return s.catchUp(ctx) }

// RecordsItself are the RPCs of which no call is recorded at the admin socket.
var RecordsItself = recordsItself
