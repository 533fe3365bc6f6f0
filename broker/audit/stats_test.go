package audit_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/credence-id/credence/broker/audit"
)

func TestStats(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	var commits []audit.Commit
	l, err := audit.Open(audit.Config{Dir: t.TempDir() + "/audit", Now: func() time.Time { return now }, Observe: func(c audit.Commit) { commits = append(commits, c) }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Append(t.Context(), audit.Event{Kind: "a"}, audit.Event{Kind: "b"}); err != nil {
		t.Fatal(err)
	}
	s := l.Stats()
	if s.Head.Sequence != 2 || s.Records != 2 || s.Commits != 1 || s.Failed != 0 || !s.FailingSince.IsZero() || s.Free <= 0 || s.Max == 0 || s.Waiting != 0 {
		t.Errorf("%+v", s)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if len(commits) != 1 || commits[0].Records != 2 || commits[0].Bytes == 0 || commits[0].Err != nil {
		t.Errorf("%+v", commits)
	}
}

// A record that cannot be written says since when and why, until it can.
func TestStatsOfTrouble(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	var failing atomic.Bool
	d := newDisk(func(act string, _ int) error {
		if act == "sync" && failing.Load() {
			return errors.New("no such luck")
		}
		return nil
	})
	l, err := audit.OpenOn(d, audit.Config{Dir: t.TempDir() + "/audit", Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	failing.Store(true)
	if _, err := l.Append(context.Background(), audit.Event{Kind: "a"}); !errors.Is(err, audit.ErrUnavailable) {
		t.Fatal(err)
	}
	if s := l.Stats(); s.Failed != 1 || !s.FailingSince.Equal(now) || s.Error == "" || s.Head.Sequence != 0 {
		t.Errorf("%+v", s)
	}
	failing.Store(false)
	if _, err := l.Append(context.Background(), audit.Event{Kind: "a"}); err != nil {
		t.Fatal(err)
	}
	if s := l.Stats(); s.Failed != 1 || !s.FailingSince.IsZero() || s.Error != "" || s.Head.Sequence != 1 {
		t.Errorf("%+v", s)
	}
}
