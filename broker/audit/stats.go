package audit

import "time"

// Stats are how a Log stands.
type Stats struct {
	Head    Ref    // of what is durable
	Records uint64 // made durable since Open
	Commits uint64 // writes that made them durable
	Failed  uint64 // writes that did not
	Waiting int    // calls that wait for the disk
	Bytes   int    // that these bring, and may not exceed MaxBytes
	Max     int
	// FailingSince is since when no write succeeded any more; zero: the last one
	// did. Error is why.
	FailingSince time.Time
	Error        string
	// Free is the room left on the record's disk, in bytes; negative: not known.
	Free int64
}

// A Commit is one write of what had gathered.
type Commit struct {
	Records int
	Bytes   int
	Took    time.Duration // until it was durable, or failed
	Err     error
}

// Stats says how the Log stands. It asks the disk for its room.
func (l *Log) Stats() Stats {
	l.mu.Lock()
	s := l.stats
	s.Head, s.Waiting, s.Bytes, s.Max = l.at.head, len(l.queue), l.queued, maxQueue
	l.mu.Unlock()
	s.Free = room(l.lock.Name())
	return s
}

// note counts a Commit.
func (l *Log) note(c Commit) {
	l.mu.Lock()
	switch {
	case c.Err == nil:
		l.stats.Commits++
		l.stats.Records += uint64(c.Records)
		l.stats.FailingSince, l.stats.Error = time.Time{}, ""
	default:
		l.stats.Failed++
		l.stats.Error = c.Err.Error()
		if l.stats.FailingSince.IsZero() {
			l.stats.FailingSince = l.now()
		}
	}
	l.mu.Unlock()
	if l.observe != nil {
		l.observe(c)
	}
}
