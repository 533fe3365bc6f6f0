package exchangers

import "time"

// A Session is how a Source stands with its provider.
type Session struct {
	Obtained time.Time // when what is held was; zero: nothing is
	Expires  time.Time
	Failing  time.Time // since when each exchange failed; zero: the last was good, or there was none
	Failure  error     // of the last of them
}

// Session tells how the Source stands. It waits for nobody.
func (s *Source) Session() Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := Session{Failing: s.since, Failure: s.failure}
	if s.cred != (Credential{}) {
		now.Obtained, now.Expires = s.got, s.cred.Expires
	}
	return now
}
