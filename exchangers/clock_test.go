package exchangers_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/exchangers"
)

// dated is a provider whose clock is off, asked by a client of ours.
type dated struct {
	client *http.Client
	url    string
	err    error
}

func (d *dated) Exchange(ctx context.Context, _ exchangers.SVIDs) (exchangers.Credential, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url, nil)
	if err != nil {
		return exchangers.Credential{}, err
	}
	resp, err := d.client.Do(r)
	if err != nil {
		return exchangers.Credential{}, err
	}
	defer resp.Body.Close()
	if d.err != nil {
		return exchangers.Credential{}, d.err
	}
	return bearer(1, time.Hour)
}

func TestAClockThatIsOffIsNamed(t *testing.T) {
	refusal := &exchangers.Error{Provider: "aws", Status: 400, Code: "ExpiredTokenException", Class: exchangers.Config, Hint: "compare the broker's clock"}
	for name, row := range map[string]struct {
		ahead time.Duration // the provider's clock
		date  string        // instead
		err   error
		want  string
	}{
		"7 min behind":          {ahead: 7 * time.Minute, err: refusal, want: "this machine's clock is 7 min behind aws's"},
		"7 min ahead":           {ahead: -7 * time.Minute, err: refusal, want: "this machine's clock is 7 min ahead of aws's"},
		"90 s behind":           {ahead: 90 * time.Second, err: refusal, want: "this machine's clock is 8"}, // 89 or 90: the Date is cut to its second
		"another error":         {ahead: time.Hour, err: errors.New("no"), want: "this machine's clock is 60 min behind the provider's"},
		"a success":             {ahead: 7 * time.Minute, want: "this machine's clock is 7 min behind the provider's"},
		"within a minute":       {ahead: 50 * time.Second, err: refusal},
		"within a minute ahead": {ahead: -50 * time.Second, err: refusal},
		"no date":               {date: "none", err: refusal},
		"a date of garbage":     {date: "yesterday", err: refusal},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, cfg := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				date := time.Now().Add(row.ahead).UTC().Format(http.TimeFormat)
				if row.date != "" {
					date = row.date
				}
				w.Header().Set("Date", date)
				if row.date == "none" {
					w.Header()["Date"] = nil
				}
				w.WriteHeader(http.StatusForbidden) // refusals tell the time too
			})
			var log bytes.Buffer
			d := &dated{client: client(t, cfg), url: server.URL, err: row.err}
			s := exchangers.NewSource(exchangers.SourceConfig{Exchanger: d, SVIDs: svids{}, Log: slog.New(slog.NewTextHandler(&log, nil))})
			_, err := s.Credential(t.Context())
			s.Close()
			if (err == nil) != (row.err == nil) || row.err != nil && row.want == "" && err != row.err {
				t.Errorf("got %v", err)
			}
			if row.want == "" {
				if strings.Contains(log.String(), "clock is") {
					t.Errorf("log: %s", &log)
				}
				return
			}
			if !strings.Contains(log.String(), "level=WARN msg=\"clocks differ\" problem=\""+row.want) {
				t.Errorf("log: %s", &log)
			}
			if row.err != nil && !strings.Contains(err.Error(), row.want) {
				t.Errorf("error: %v", err)
			}
			if row.err == error(refusal) && !strings.Contains(err.Error(), "compare the broker's clock") || refusal.Hint != "compare the broker's clock" {
				t.Errorf("the hint is lost or changed: %v", err)
			}
		})
	}
}
