package exchangers_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credence-id/credence/exchangers"
)

// A session is one identity at one target, for all workloads that share it.
type session struct {
	source *exchangers.Source
	cloud  *cloud
	life   time.Duration
	asked  []time.Time
	failed []time.Time
}

// least is how few sessions could have served all who asked: each lasts to its
// last usable second, and the next begins when somebody asks.
func (s *session) least() (n int) {
	var until time.Time
	for _, at := range s.asked {
		if at.After(until) {
			n, until = n+1, at.Add(s.life-min(30*time.Second, s.life/10))
		}
	}
	return n
}

// day lives through so long of 50 workloads on one node: 40 identities, each at one
// to five targets with lives as the clouds give them, asked for every second
// minute to once in hours. The provider is out between from and to.
func day(t *testing.T, length, from, to time.Duration) (all []*session) {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	start := time.Now()
	out := func() bool { at := time.Since(start); return at >= from && at < to }
	lives := []time.Duration{time.Hour, time.Hour, 75 * time.Minute, 15 * time.Minute, 12 * time.Hour}
	byKey := map[string]*session{}
	var workloads sync.WaitGroup
	for w := range 50 {
		for target := range 1 + r.IntN(5) {
			key := fmt.Sprint(w%40, target)
			s := byKey[key]
			if s == nil {
				s = &session{life: lives[target]}
				s.cloud = &cloud{takes: 300 * time.Millisecond, answer: func(n int) (exchangers.Credential, error) {
					if out() {
						return refuse(exchangers.Outage)
					}
					return bearer(n, s.life)
				}}
				s.source = exchangers.NewSource(exchangers.SourceConfig{Exchanger: s.cloud, SVIDs: svids{}, Jitter: rand.New(rand.NewPCG(uint64(w), uint64(target))).Float64})
				byKey[key] = s
				all = append(all, s)
			}
			every := []time.Duration{2 * time.Minute, 2 * time.Minute, 10 * time.Minute, 20 * time.Minute, 5 * time.Hour}[r.IntN(5)]
			first := time.Duration(r.Int64N(int64(every)))
			workloads.Go(func() {
				time.Sleep(first)
				for time.Since(start) < length {
					s.ask(t)
					time.Sleep(every)
				}
			})
		}
	}
	workloads.Go(func() {
		for time.Since(start) < length {
			time.Sleep(time.Minute)
			for _, s := range all {
				s.sweep()
			}
		}
	})
	workloads.Wait()
	for _, s := range all {
		s.source.Close()
	}
	return all
}

// sweep drops what nobody has asked for in an hour, as the agent does.
func (s *session) sweep() {
	asking.Lock()
	idle := len(s.asked) > 0 && time.Since(s.asked[len(s.asked)-1]) > time.Hour
	asking.Unlock()
	if idle {
		s.source.Drop()
	}
}

var asking sync.Mutex // guards every session's lists: they are of a test

func (s *session) ask(t *testing.T) {
	at := time.Now()
	_, err := s.source.Credential(t.Context())
	if errors.Is(err, exchangers.ErrDropped) { // swept just then: the agent asks again
		_, err = s.source.Credential(t.Context())
	}
	asking.Lock()
	defer asking.Unlock()
	s.asked = append(s.asked, at)
	if err != nil {
		s.failed = append(s.failed, at)
	}
}

func sum(all []*session) (calls, least, asked, failed int) {
	for _, s := range all {
		slices.SortFunc(s.asked, time.Time.Compare)
		calls, least, asked, failed = calls+s.cloud.count(), least+s.least(), asked+len(s.asked), failed+len(s.failed)
	}
	return calls, least, asked, failed
}

func TestADayOf50WorkloadsCostsLessThanThreeTimesTheLeastSessionCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := day(t, 24*time.Hour, 0, 0)
		calls, least, asked, failed := sum(all)
		t.Logf("24 h, 50 workloads, %d sessions, %d times asked: %d session calls, the least possible %d: %.2f times", len(all), asked, calls, least, float64(calls)/float64(least))
		// Refreshed between 40 and 60 % of a life: 2 times, and what is kept warm
		// for who comes rarely.
		if failed != 0 || float64(calls) > 2.8*float64(least) {
			t.Errorf("%d failures, %d calls", failed, calls)
		}
	})
}

func TestAnOutageShorterThanWhatIsLeftIsSeenByNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// 5 min: less than what is left of the shortest life (15 min) at 60 %.
		quiet, least, _, _ := sum(day(t, 6*time.Hour, 0, 0))
		calls, _, asked, failed := sum(day(t, 6*time.Hour, 2*time.Hour, 2*time.Hour+5*time.Minute))
		t.Logf("5 min of outage: %d of %d failed, %d session calls, without it %d, the least possible %d", failed, asked, calls, quiet, least)
		if failed != 0 || calls > quiet+quiet/10 {
			t.Errorf("%d failed, %d calls", failed, calls)
		}
	})
}

func TestALongOutageIsNotHammered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		quiet, _, _, _ := sum(day(t, 8*time.Hour, 0, 0))
		all := day(t, 8*time.Hour, 2*time.Hour, 5*time.Hour)
		calls, _, asked, failed := sum(all)
		t.Logf("3 h of outage: %d of %d failed, %d session calls, without it %d", failed, asked, calls, quiet)
		// At most about one a minute and session.
		if most := quiet + len(all)*3*60*3/2; calls > most || failed == 0 {
			t.Errorf("%d calls, at most %d are in order", calls, most)
		}
		for _, s := range all {
			for _, at := range s.failed {
				if s.life == 12*time.Hour && len(s.asked) > 20 {
					t.Errorf("a session of 12 h failed at %s", at)
				}
			}
		}
	})
}

// most is how many times fall into any stretch of this length.
func most(times []time.Time, stretch time.Duration) (n int) {
	slices.SortFunc(times, time.Time.Compare)
	for i, j := 0, 0; j < len(times); j++ {
		for times[j].Sub(times[i]) >= stretch {
			i++
		}
		n = max(n, j-i+1)
	}
	return n
}

// thousand nodes hold the same session, all from the same moment on.
func thousand(t *testing.T, answer func(n int) (exchangers.Credential, error), live time.Duration) (times []time.Time) {
	t.Helper()
	var clouds []*cloud
	var nodes sync.WaitGroup
	for range nodeCount {
		c := &cloud{answer: answer}
		clouds = append(clouds, c)
		s := exchangers.NewSource(exchangers.SourceConfig{Exchanger: c, SVIDs: svids{}})
		nodes.Go(func() {
			_, _ = s.Credential(t.Context())
			time.Sleep(live)
			s.Close()
		})
	}
	nodes.Wait()
	for _, c := range clouds {
		times = append(times, c.times[1:]...) // the first one somebody waits for
	}
	return times
}

func TestAThousandNodesDoNotRefreshAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		times := thousand(t, func(n int) (exchangers.Credential, error) { return bearer(n, time.Hour) }, 6*time.Hour)
		inASecond := most(times, time.Second)
		t.Logf("%d refreshes in 6 h, at most %d in a second", len(times), inASecond)
		if inASecond > 20 { // 1000/720 s is the mean
			t.Errorf("%d in a second", inASecond)
		}
	})
}

func TestAThousandThrottledNodesDoNotComeBackAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		times := thousand(t, func(n int) (exchangers.Credential, error) {
			if n > 1 && time.Since(begin) < time.Hour-time.Minute {
				return exchangers.Credential{}, &exchangers.Error{Class: exchangers.Throttled, RetryAfter: time.Minute}
			}
			return bearer(n, time.Hour)
		}, 50*time.Minute)
		if n := most(times, time.Second); n > nodeCount/10 { // at once they would be all
			t.Errorf("%d in a second", n)
		} else {
			t.Logf("%d tries, at most %d in a second", len(times), n)
		}
	})
}
