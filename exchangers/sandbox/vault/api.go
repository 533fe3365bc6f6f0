package vault

import (
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
)

// A refusal is what the server answers instead: {"errors": [text]}.
type refusal struct {
	status int
	text   string
	why    error // for the sandbox's log only
}

func bad(text string, why error) *refusal { return &refusal{http.StatusBadRequest, text, why} }

// denied is the answer to whoever asks for what there is not, too.
var denied = &refusal{http.StatusForbidden, "permission denied", nil}

func writeJSON(w http.ResponseWriter, status int, v any) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v) // the client may be gone; nobody else to tell
}

func fault(w http.ResponseWriter, status int) {
	text := map[int]string{http.StatusTooManyRequests: "rate limit quota exceeded", http.StatusServiceUnavailable: "Vault is sealed"}[status]
	if text == "" {
		text = "internal error"
	}
	writeJSON(w, status, map[string]any{"errors": []string{text}})
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request, e *sandbox.Entry) {
	out, no := s.answer(r, e)
	switch {
	case no != nil:
		e.Code, e.Reason = http.StatusText(no.status), no.text
		if no.why != nil {
			e.Reason = no.why.Error()
		}
		writeJSON(w, no.status, map[string]any{"errors": []string{no.text}})
	case out == nil:
		w.WriteHeader(http.StatusNoContent)
	default:
		for name, v := range map[string]any{"request_id": e.ID, "lease_id": "", "renewable": false, "lease_duration": 0, "data": nil, "wrap_info": nil, "warnings": nil, "auth": nil} {
			if _, ok := out[name]; !ok {
				out[name] = v
			}
		}
		writeJSON(w, http.StatusOK, out)
	}
}

// answer finds who answers. A namespace is said by the header, in the path, or
// partly in each.
func (s *Server) answer(r *http.Request, e *sandbox.Entry) (map[string]any, *refusal) {
	path, ok := strings.CutPrefix(r.URL.Path, "/v1/")
	headers := r.Header.Values("X-Vault-Namespace")
	if !ok || len(headers) > 1 {
		return nil, &refusal{http.StatusNotFound, "no handler for route", nil}
	}
	path = join(r.Header.Get("X-Vault-Namespace"), path)
	e.Fields = map[string]string{"path": path}
	update := r.Method == http.MethodPost || r.Method == http.MethodPut
	if namespace, call, ok := cutSelf(path); ok {
		return s.self(r, e, namespace, call, update)
	}
	for _, m := range s.cfg.Mounts {
		if path != m.at()+"/login" {
			continue
		}
		if !update {
			return nil, &refusal{http.StatusMethodNotAllowed, "unsupported operation", nil}
		}
		if m.Cert != nil {
			return s.certLogin(r, e, m)
		}
		return s.jwtLogin(r, e, m)
	}
	return nil, denied
}

// read reads the parameters of a login. A name in another case is none of them.
func read(r *http.Request, e *sandbox.Entry, known ...string) (map[string]string, *refusal) {
	if r.Header.Get("Content-Type") == "" { // its own client sends none
		r.Header.Set("Content-Type", "application/json")
	}
	o, err := sandbox.ReadJSON(r)
	if err != nil {
		return nil, bad("failed to parse JSON input", err)
	}
	out := map[string]string{}
	for _, name := range known {
		if o[name] == nil {
			continue
		}
		text, ok := o[name].(string)
		if !ok {
			return nil, bad("Field validation failed: error converting input for field \""+name+"\"", nil)
		}
		if out[name] = text; name != "jwt" {
			e.Fields[name] = text
		}
	}
	return out, nil
}

// opened is the answer to a login.
func (s *Server) opened(t session, of Token) (map[string]any, *refusal) {
	raw, t, err := s.open(t, of)
	if err != nil {
		return nil, &refusal{http.StatusServiceUnavailable, "too many tokens live", err}
	}
	return map[string]any{"auth": map[string]any{
		"client_token": raw, "accessor": t.accessor, "policies": t.policies, "token_policies": t.policies, "metadata": t.meta,
		"lease_duration": int(t.ttl / time.Second), "renewable": false, "entity_id": sandbox.NewID(), "token_type": "service",
		"orphan": true, "mfa_requirement": nil, "num_uses": 0,
	}}, nil
}

func cutSelf(path string) (namespace, call string, ok bool) {
	for _, call := range []string{"lookup-self", "revoke-self"} {
		if rest, ok := strings.CutSuffix(path, "auth/token/"+call); ok && (rest == "" || strings.HasSuffix(rest, "/")) {
			return strings.TrimSuffix(rest, "/"), call, true
		}
	}
	return "", "", false
}

// self is what a token may ask about itself.
func (s *Server) self(r *http.Request, e *sandbox.Entry, namespace, call string, update bool) (map[string]any, *refusal) {
	raw := r.Header.Get("X-Vault-Token")
	if raw == "" {
		raw = sandbox.Bearer(r)
	}
	e.Token = sandbox.HashToken(raw)
	t, ok := s.held(raw, namespace)
	switch {
	case !ok || len(r.Header.Values("X-Vault-Token")) > 1:
		return nil, denied
	case call == "revoke-self" && update:
		s.revoke(raw)
		return nil, nil
	case call == "revoke-self" || r.Method != http.MethodGet && !update:
		return nil, &refusal{http.StatusMethodNotAllowed, "unsupported operation", nil}
	}
	left := t.expires().Sub(s.now())
	return map[string]any{"data": map[string]any{
		"id": raw, "accessor": t.accessor, "path": t.path, "display_name": t.name, "meta": t.meta, "policies": t.policies,
		"creation_time": t.created.Unix(), "creation_ttl": int(t.ttl / time.Second), "issue_time": t.created.Format(time.RFC3339Nano),
		"expire_time": t.expires().Format(time.RFC3339Nano), "ttl": int(left / time.Second), "explicit_max_ttl": 0,
		"num_uses": 0, "orphan": true, "renewable": false, "type": "service", "entity_id": "",
	}}, nil
}
