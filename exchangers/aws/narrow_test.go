package aws_test

import (
	"errors"
	"testing"
	"time"

	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/aws"
)

func TestNarrow(t *testing.T) {
	const m = time.Minute
	for _, row := range []struct {
		name              string
		d, life, want     time.Duration
		chained, wantNext time.Duration
		err               error
	}{
		{"less than there is", 0, 5 * m, 0, 0, 0, exchangers.ErrLife},
		{"just under the least", 0, 15 * m, 0, 0, 0, exchangers.ErrLife},
		{"no duration of its own", 0, 40 * m, 40*m - 5*time.Second, 0, 40*m - 5*time.Second, nil},
		{"no more than the default", 0, 10 * 60 * m, 60 * m, 0, 60 * m, nil},
		{"a shorter one stays", 20 * m, 40 * m, 20 * m, 20 * m, 20 * m, nil},
		{"a longer one is cut", 12 * 60 * m, 40 * m, 40*m - 5*time.Second, 60 * m, 40*m - 5*time.Second, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			next := &aws.AssumeRole{Role: "r", Duration: exchangers.Duration(row.chained)}
			for name, s := range map[string]exchangers.Narrower{
				"anywhere": &aws.RolesAnywhere{Duration: exchangers.Duration(row.d), AssumeRole: next},
				"web":      &aws.WebIdentity{Duration: exchangers.Duration(row.d), AssumeRole: next},
			} {
				got, err := s.Narrow(row.life, nil)
				if !errors.Is(err, row.err) {
					t.Fatalf("%s: %v", name, err)
				}
				if err != nil {
					continue
				}
				var d exchangers.Duration
				var second *aws.AssumeRole
				switch s := got.(type) {
				case *aws.RolesAnywhere:
					d, second = s.Duration, s.AssumeRole
				case *aws.WebIdentity:
					d, second = s.Duration, s.AssumeRole
				}
				if time.Duration(d) != row.want || time.Duration(second.Duration) != row.wantNext {
					t.Errorf("%s: %s, then %s", name, d, second.Duration)
				}
			}
			if time.Duration(next.Duration) != row.chained {
				t.Error("what was there is changed")
			}
		})
	}
	if _, err := (&aws.WebIdentity{}).Narrow(time.Hour, []string{"a"}); !errors.Is(err, exchangers.ErrScope) {
		t.Errorf("scopes: %v", err)
	}
}
