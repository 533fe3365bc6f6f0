package sandbox_test

import (
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/exchangers/sandbox"
)

func quiet() *log.Logger { return log.New(io.Discard, "", 0) }

// Regression: CVE-2022-2385
func TestReadForm(t *testing.T) {
	const form = "application/x-www-form-urlencoded"
	for name, tc := range map[string]struct {
		contentType, body string
		want              error
	}{
		"plain":            {form, "a=1&b=x%20y", nil},
		"charset":          {form + "; charset=utf-8", "a=1&b=x+y", nil},
		"other charset":    {form + "; charset=latin1", "a=1", sandbox.ErrContentType},
		"json":             {"application/json", "a=1", sandbox.ErrContentType},
		"no content type":  {"", "a=1", sandbox.ErrContentType},
		"duplicate":        {form, "a=1&a=2", sandbox.ErrDuplicate},
		"escaped the same": {form, "a=1&%61=2", sandbox.ErrDuplicate},
		"empty value":      {form, "a=", sandbox.ErrEmpty},
		"no value":         {form, "a", sandbox.ErrEmpty},
		"empty body":       {form, "", sandbox.ErrEmpty},
		"bad escape":       {form, "a=%zz", sandbox.ErrBody},
		"bare semicolon":   {form, "a=1;b=2", sandbox.ErrBody},
		"huge":             {form, "a=" + strings.Repeat("x", sandbox.MaxBody), sandbox.ErrTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest("POST", "/?a=query", strings.NewReader(tc.body))
			r.Header.Set("Content-Type", tc.contentType)
			got, err := sandbox.ReadForm(r)
			if !errors.Is(err, tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
			if err == nil && !cmp.Equal(got, map[string]string{"a": "1", "b": "x y"}) {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestBearer(t *testing.T) {
	for name, tc := range map[string]struct {
		headers []string
		want    string
	}{
		"one": {[]string{"Bearer x"}, "x"}, "lower case": {[]string{"bearer x"}, "x"},
		"none": {nil, ""}, "two": {[]string{"Bearer x", "Bearer y"}, ""}, "basic": {[]string{"Basic x"}, ""},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header["Authorization"] = tc.headers
		if got := sandbox.Bearer(r); got != tc.want {
			t.Errorf("%s: got %q", name, got)
		}
	}
}

func TestRecorderKeepsTheLast(t *testing.T) {
	r := sandbox.NewRecorder(2)
	h := sandbox.Serve("svc", time.Now, r.Record, func(w http.ResponseWriter, q *http.Request, e *sandbox.Entry) {
		e.Code = q.URL.Path
		w.WriteHeader(http.StatusTeapot)
	})
	for _, p := range []string{"/a", "/b", "/c"} {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", p, nil))
	}
	var got []string
	ids := map[string]bool{}
	for _, e := range r.Entries() {
		got = append(got, e.Code)
		ids[e.ID] = true
		if e.Status != http.StatusTeapot || e.Service != "svc" {
			t.Errorf("entry %+v", e)
		}
	}
	if d := cmp.Diff([]string{"/b", "/c"}, got); d != "" || len(ids) != 2 {
		t.Errorf("entries (-want +got):\n%s %v", d, ids)
	}
}

func TestFaults(t *testing.T) {
	ok := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"token":"secret","list":["secret"],"n":1}`)
	})
	f := &sandbox.Faults{}
	s := httptest.NewUnstartedServer(f.Wrap(ok))
	s.Config.ErrorLog = quiet()
	s.Start()
	defer s.Close()
	get := func() (*http.Response, string, error) {
		r, _ := http.NewRequest("POST", s.URL, strings.NewReader("x"))
		resp, err := s.Client().Do(r)
		if err != nil {
			return nil, "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return resp, string(b), err
	}
	for _, tc := range []struct {
		fault  sandbox.Fault
		status int
		after  string
		body   string
		broken bool
	}{
		{fault: sandbox.Fault{Kind: sandbox.FaultThrottled, RetryAfter: 2 * time.Second}, status: 429, after: "2"},
		{fault: sandbox.Fault{Kind: sandbox.FaultThrottled}, status: 429},
		{fault: sandbox.Fault{Kind: sandbox.FaultError}, status: 500},
		{fault: sandbox.Fault{Kind: sandbox.FaultUnavailable}, status: 503},
		{fault: sandbox.Fault{Kind: "typo"}, status: 500},
		{fault: sandbox.Fault{Kind: sandbox.FaultHTML}, status: 200, body: "<html>"},
		{fault: sandbox.Fault{Kind: sandbox.FaultTruncated}, status: 200, body: `{"token":"secret","li`},
		{fault: sandbox.Fault{Kind: sandbox.FaultEmpty}, status: 200, body: `{"list":[""],"n":1,"token":""}`},
		{fault: sandbox.Fault{Kind: sandbox.FaultClosed}, broken: true},
	} {
		f.Queue(1, tc.fault)
		resp, body, err := get()
		if tc.broken {
			if err == nil {
				t.Errorf("%v: no error", tc.fault)
			}
		} else if err != nil || resp.StatusCode != tc.status || resp.Header.Get("Retry-After") != tc.after || !strings.Contains(body, tc.body) {
			t.Errorf("%v: %v %v %q", tc.fault, err, resp, body)
		}
		if _, body, err := get(); err != nil || !strings.Contains(body, `"secret"`) {
			t.Errorf("after %v: %v %q", tc.fault, err, body)
		}
	}
	f.Queue(1, sandbox.Fault{Kind: sandbox.FaultHang})
	s.Client().Timeout = 50 * time.Millisecond
	if _, _, err := get(); err == nil {
		t.Error("no hang")
	}
}

func TestClockOffset(t *testing.T) {
	f := &sandbox.Faults{}
	base := time.Unix(1700000000, 0)
	now := f.Clock(func() time.Time { return base })
	f.SetClockOffset(time.Minute)
	if got := now(); !got.Equal(base.Add(time.Minute)) {
		t.Errorf("got %v", got)
	}
}

func TestEmptyXML(t *testing.T) {
	f := &sandbox.Faults{}
	f.Queue(1, sandbox.Fault{Kind: sandbox.FaultEmpty})
	w := httptest.NewRecorder()
	f.Wrap(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "<a>\n<b>secret</b>\n</a>")
	})).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	if strings.Contains(w.Body.String(), "secret") || !strings.Contains(w.Body.String(), "<b></b>") {
		t.Errorf("got %q", w.Body)
	}
}
