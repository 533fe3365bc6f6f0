package azure_test

import (
	"errors"
	"testing"
	"time"

	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/azure"
)

func TestNarrow(t *testing.T) {
	s := &azure.Settings{Scope: "https://a/.default"}
	for name, row := range map[string]struct {
		life   time.Duration
		scopes []string
		want   error
	}{
		"short":                  {59 * time.Minute, nil, exchangers.ErrLife},
		"long":                   {time.Hour, nil, nil},
		"its scope":              {time.Hour, []string{"https://a/.default"}, nil},
		"another scope":          {time.Hour, []string{"https://b/.default"}, exchangers.ErrScope},
		"its scope and one more": {time.Hour, []string{"https://a/.default", "x"}, exchangers.ErrScope},
	} {
		if _, err := s.Narrow(row.life, row.scopes); !errors.Is(err, row.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
