package server

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// maxForm bounds the body of a request for a token.
const maxForm = 64 << 10

// tokenPath is where the token endpoint is: under the issuer's path, as its
// audience says. Empty: there is no issuer, and none.
func (s *Server) tokenPath() string {
	u, err := url.Parse(s.cfg.Policy.TokenEndpoint)
	if err != nil {
		return ""
	}
	return u.Path
}

// token is RFC 8693: POST, a form, one JWT-SVID in and one token out. There are
// no clients here but those whom the subject token names.
func (s *Server) token(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Cache-Control", "no-store") // RFC 6749 §5.1
	header.Set("Pragma", "no-cache")
	header.Set("X-Content-Type-Options", "nosniff")
	if r.Method != http.MethodPost {
		header.Set("Allow", http.MethodPost)
		http.Error(w, "a token is asked for by POST (RFC 8693)", http.StatusMethodNotAllowed)
		return
	}
	ctx, end := r.Context(), func(int) {}
	if s.cfg.Trace != nil {
		ctx, end = s.cfg.Trace(r, "")
	}
	ctx, cancel := context.WithTimeout(ctx, exchangeTime)
	defer cancel()
	a, err := s.tokenFor(ctx, w, r)
	if err != nil {
		end(s.refuseToken(ctx, w, err))
		return
	}
	end(http.StatusOK)
	s.writeToken(w, http.StatusOK, struct {
		AccessToken string `json:"access_token"`
		Issued      string `json:"issued_token_type"`
		Type        string `json:"token_type"`
		ExpiresIn   int64  `json:"expires_in"`
		Scope       string `json:"scope,omitempty"`
	}{a.token, a.kind, a.usage, a.in(s.cfg.Now()), a.scope})
}

func (s *Server) tokenFor(ctx context.Context, w http.ResponseWriter, r *http.Request) (answer, error) {
	if wait, ok := s.sources.take(sourceOf(r, s.cfg.WebProxied)); !ok {
		s.cfg.Broker.CountRefused("too many of one address")
		return answer{}, slowDown(wait)
	}
	form, err := readForm(w, r)
	if err != nil {
		return answer{}, err
	}
	subject, q, err := readQuestion(form)
	if err != nil {
		return answer{}, err
	}
	leave, err := s.enter() // the body is here: nobody is slow in here
	if err != nil {
		return answer{}, err
	}
	defer leave()
	if err := s.check(q); err != nil {
		return answer{}, err
	}
	e, err := s.verifiedJWT(ctx, subject)
	if err != nil {
		reason := "token not verified"
		if form := new(badToken); errors.As(err, &form) {
			reason = "token not for us"
		}
		s.cfg.Broker.CountRefused(reason)
		return answer{}, err
	}
	return s.exchange(ctx, e, q)
}

// readForm reads the parameters, each of which comes once but for those of which
// RFC 8693 §2.1 lets several come. Nothing is read from the URL, where it would
// be logged.
func readForm(w http.ResponseWriter, r *http.Request) (url.Values, error) {
	if r.Header.Get("Authorization") != "" {
		w.Header().Set("WWW-Authenticate", "None") // RFC 6749 §5.2 wants one
		return nil, &failure{401, 0, "invalid_client", "clients do not authenticate here: the subject_token says who asks", 0}
	}
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	switch {
	case err != nil || kind != "application/x-www-form-urlencoded" || len(r.Header.Values("Content-Type")) != 1:
		return nil, invalid("the body is application/x-www-form-urlencoded")
	case r.Header.Get("Content-Encoding") != "":
		return nil, invalid("the body has no Content-Encoding")
	case r.URL.RawQuery != "" || r.URL.ForceQuery:
		return nil, invalid("parameters stand in the body, not in the URL")
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxForm))
	if err != nil {
		return nil, invalid("the body is incomplete, or has more than %d bytes", maxForm)
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, invalid("the body is no form")
	}
	return form, checkForm(form)
}

// parameters are those that mean something here, and how often each may come.
var parameters = map[string]int{
	"grant_type": 1, "subject_token": 1, "subject_token_type": 1, "requested_token_type": 1, "scope": 1,
	"resource": 1, "audience": 16, "client_id": 1,
	"actor_token": 0, "actor_token_type": 0, "client_secret": 0, "client_assertion": 0, "client_assertion_type": 0,
}

// checkForm refuses what two readers could read in two ways: a parameter that
// comes twice, or that another would take for one of ours.
func checkForm(form url.Values) error {
	for name, values := range form {
		most, known := parameters[name]
		_, nearly := parameters[strings.ToLower(name)]
		switch {
		case !known && nearly:
			return invalid("a parameter is written in lower case")
		case known && most == 0:
			return invalid("%s is not taken: the subject_token alone says who asks", name)
		case len(values) > max(most, 1):
			return invalid("a parameter comes %d times", len(values))
		}
	}
	return nil
}

func readQuestion(form url.Values) (subject string, q question, err error) {
	switch grant := form.Get("grant_type"); {
	case grant == "":
		return "", q, invalid("grant_type is missing")
	case grant != grantExchange:
		return "", q, &failure{400, 0, "unsupported_grant_type", "grant_type is " + grantExchange, 0}
	case form.Get("subject_token") == "":
		return "", q, invalid("subject_token is missing")
	case form.Get("subject_token_type") != typeJWT:
		return "", q, invalid("subject_token_type is %s", typeJWT)
	}
	q = question{resource: form.Get("resource"), kind: form.Get("requested_token_type"), scopes: strings.Fields(form.Get("scope"))}
	for _, a := range form["audience"] {
		if a != "" { // RFC 6749 §3.2: as if it were omitted
			q.audiences = append(q.audiences, a)
		}
	}
	return form.Get("subject_token"), q, nil
}

// refuseToken writes RFC 6749 §5.2. It returns the status.
func (s *Server) refuseToken(ctx context.Context, w http.ResponseWriter, err error) int {
	f := s.failureOf(ctx, err)
	if f.after > 0 {
		w.Header().Set("Retry-After", strconv.FormatInt(seconds1(f.after), 10))
	}
	s.writeToken(w, f.status, struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}{f.code, printable(f.text)})
	return f.status
}

// printable is text of the characters that RFC 6749 §5.2 takes.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '"' || r == '\\':
			return '\''
		case r < ' ' || r > '~':
			return '?'
		}
		return r
	}, text)
}

func (s *Server) writeToken(w http.ResponseWriter, status int, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		text, status = []byte(`{"error":"server_error"}`), http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(text) // the caller may be gone
}
