package aws

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/credence-id/credence/exchangers/sandbox"
)

// maxTrustPolicy is the largest quota that IAM grants for a role trust policy,
// white space not counted.
const maxTrustPolicy = 8192

var errPolicy = errors.New("trust policy is not acceptable")

// A policy is a parsed role trust policy.
type policy []statement

type statement struct {
	deny       bool
	anyone     bool                // Principal "*" or {"AWS":"*"}
	principals map[string][]string // by kind: Service, Federated, AWS
	actions    []string            // lower case, may hold wildcards
	conditions []condition
}

// A question is put to a policy: may this principal do that, in this context?
type question struct {
	kind       string   // Service, Federated or AWS
	principals []string // the names of one principal
	action     string
	context    conditionContext
}

// allows says whether some Allow matches and no Deny does.
func (p policy) allows(q question) bool {
	allowed := false
	for _, s := range p {
		if !s.matches(q) {
			continue
		}
		if s.deny {
			return false
		}
		allowed = true
	}
	return allowed
}

func (s statement) matches(q question) bool {
	action := strings.ToLower(q.action)
	return s.names(q) &&
		slices.ContainsFunc(s.actions, func(a string) bool { return glob(a, action) }) &&
		!slices.ContainsFunc(s.conditions, func(c condition) bool { return !c.holds(q.context, s.deny) })
}

// names says whether the statement is about the principal. "Everyone" is heard
// in a Deny alone: no document says that it stands for services and federated
// principals in an Allow.
func (s statement) names(q question) bool {
	return s.anyone && s.deny || slices.ContainsFunc(q.principals, func(p string) bool { return slices.Contains(s.principals[q.kind], p) })
}

// parsePolicy parses a role trust policy. It refuses every element, operator and
// wildcard that is not evaluated here.
func parsePolicy(text string) (policy, error) {
	var compact bytes.Buffer
	if len(text) > sandbox.MaxBody || json.Compact(&compact, []byte(text)) != nil || compact.Len() > maxTrustPolicy {
		return nil, fmt.Errorf("%w: not JSON of at most %d bytes", errPolicy, maxTrustPolicy)
	}
	o, err := sandbox.ParseObject(compact.Bytes())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errPolicy, err)
	}
	if err := only(o, "Version", "Id", "Statement"); err != nil {
		return nil, err
	}
	if o["Version"] != "2012-10-17" {
		return nil, fmt.Errorf("%w: Version is not 2012-10-17", errPolicy)
	}
	list, ok := o["Statement"].([]any)
	if !ok {
		list = []any{o["Statement"]}
	}
	var p policy
	for i, v := range list {
		s, err := parseStatement(v)
		if err != nil {
			return nil, fmt.Errorf("statement %d: %w", i+1, err)
		}
		p = append(p, s)
	}
	if len(p) == 0 {
		return nil, fmt.Errorf("%w: no statement", errPolicy)
	}
	return p, nil
}

func parseStatement(v any) (statement, error) {
	var s statement
	o, ok := v.(map[string]any)
	if !ok {
		return s, fmt.Errorf("%w: not an object", errPolicy)
	}
	if err := only(o, "Sid", "Effect", "Principal", "Action", "Condition"); err != nil {
		return s, err
	}
	if o["Effect"] != "Allow" && o["Effect"] != "Deny" {
		return s, fmt.Errorf("%w: Effect is neither Allow nor Deny", errPolicy)
	}
	s.deny = o["Effect"] == "Deny"
	if err := s.readPrincipal(o["Principal"]); err != nil {
		return s, err
	}
	if err := s.readActions(o["Action"]); err != nil {
		return s, err
	}
	c, present := o["Condition"]
	if !present {
		return s, nil
	}
	var err error
	s.conditions, err = parseConditions(c)
	return s, err
}

func (s *statement) readPrincipal(v any) error {
	if v == "*" {
		s.anyone = true
		return nil
	}
	o, ok := v.(map[string]any)
	if !ok || len(o) == 0 {
		return fmt.Errorf("%w: Principal is missing or empty", errPolicy)
	}
	if err := only(o, "Service", "Federated", "AWS"); err != nil {
		return err
	}
	s.principals = map[string][]string{}
	for kind, v := range o {
		list, err := textList(v)
		if err != nil {
			return fmt.Errorf("%w in Principal %s", err, kind)
		}
		if kind == "AWS" && slices.Contains(list, "*") {
			s.anyone = true
		} else if slices.ContainsFunc(list, func(p string) bool { return strings.ContainsAny(p, "*?") }) {
			return fmt.Errorf("%w: wildcard in Principal %s", errPolicy, kind)
		}
		s.principals[kind] = list
	}
	return nil
}

func (s *statement) readActions(v any) error {
	list, err := textList(v)
	if err != nil {
		return fmt.Errorf("%w in Action", err)
	}
	for _, a := range list {
		a = strings.ToLower(a)
		if !strings.HasPrefix(a, "sts:") || a == "sts:" {
			return fmt.Errorf("%w: Action %q is none of STS", errPolicy, a)
		}
		s.actions = append(s.actions, a)
	}
	return nil
}

// only refuses names that are not known.
func only(o map[string]any, known ...string) error {
	for name := range o {
		if !slices.Contains(known, name) {
			return fmt.Errorf("%w: element %q is not evaluated here", errPolicy, name)
		}
	}
	return nil
}

// textList reads a string or a non-empty array of them. Policy variables are
// not evaluated here, so they are refused.
func textList(v any) ([]string, error) {
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	var out []string
	for _, e := range list {
		s, ok := e.(string)
		if !ok || s == "" || strings.Contains(s, "${") {
			return nil, fmt.Errorf("%w: %v is no text, or has a variable", errPolicy, e)
		}
		out = append(out, s)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: empty list", errPolicy)
	}
	return out, nil
}
