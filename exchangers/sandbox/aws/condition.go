package aws

import (
	"fmt"
	"slices"
	"strings"
)

// A conditionContext holds the condition keys of one request, in lower case: the
// names of keys are not case-sensitive, their values are. A key without values
// is absent.
type conditionContext map[string][]string

func (c conditionContext) add(key string, values ...string) {
	if len(values) > 0 {
		c[strings.ToLower(key)] = values
	}
}

type operator struct {
	matches func(pattern, value string) bool
	negated bool
	arn     bool // patterns are ARNs
}

var operators = map[string]operator{
	"StringEquals":    {matches: equal},
	"StringNotEquals": {matches: equal, negated: true},
	"StringLike":      {matches: glob},
	"StringNotLike":   {matches: glob, negated: true},
	"ArnEquals":       {matches: arnLike, arn: true},
	"ArnLike":         {matches: arnLike, arn: true},
	"ArnNotEquals":    {matches: arnLike, arn: true, negated: true},
	"ArnNotLike":      {matches: arnLike, arn: true, negated: true},
	"Bool":            {matches: strings.EqualFold},
}

type condition struct {
	operator
	null     bool   // the Null operator, which has one value
	set      string // ForAnyValue, ForAllValues or empty
	ifExists bool
	key      string // lower case
	values   []string
}

// holds evaluates one condition as IAM does: a missing key makes a positive
// operator false and a negated one true. What IAM leaves undefined, a key with
// several values and no set operator, is decided against the caller.
func (c condition) holds(ctx conditionContext, deny bool) bool {
	got, present := ctx[c.key]
	switch {
	case c.null:
		return present == (c.values[0] == "false")
	case !present && c.ifExists:
		return true
	case c.set == "ForAnyValue":
		return slices.ContainsFunc(got, c.one)
	case c.set == "ForAllValues":
		return !slices.ContainsFunc(got, func(v string) bool { return !c.one(v) })
	case !present:
		return c.negated
	case len(got) != 1:
		return deny
	}
	return c.one(got[0])
}

func (c condition) one(value string) bool {
	return c.negated != slices.ContainsFunc(c.values, func(p string) bool { return c.matches(p, value) })
}

func parseConditions(v any) ([]condition, error) {
	o, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%w: Condition is not an object", errPolicy)
	}
	var all []condition
	for name, v := range o {
		keys, ok := v.(map[string]any)
		if !ok || len(keys) == 0 {
			return nil, fmt.Errorf("%w: operator %s has no keys", errPolicy, name)
		}
		for key, v := range keys {
			c, err := parseCondition(name, key, v)
			if err != nil {
				return nil, err
			}
			all = append(all, c)
		}
	}
	return all, nil
}

func parseCondition(name, key string, v any) (condition, error) {
	c := condition{key: strings.ToLower(key)}
	if !strings.Contains(key, ":") || strings.Contains(key, "${") {
		return c, fmt.Errorf("%w: %q is no condition key", errPolicy, key)
	}
	bare := name
	if set, rest, ok := strings.Cut(name, ":"); ok && (set == "ForAnyValue" || set == "ForAllValues") {
		c.set, bare = set, rest
	}
	if rest, ok := strings.CutSuffix(bare, "IfExists"); ok {
		c.ifExists, bare = true, rest
	}
	c.null = name == "Null"
	known := c.null
	if !known {
		c.operator, known = operators[bare]
	}
	if !known {
		return c, fmt.Errorf("%w: operator %q is not evaluated here", errPolicy, name)
	}
	return c, c.readValues(bare, v)
}

func (c *condition) readValues(name string, v any) error {
	if b, ok := v.(bool); ok { // IAM takes true for "true"
		v = fmt.Sprint(b)
	}
	var err error
	if c.values, err = textList(v); err != nil {
		return fmt.Errorf("%w in condition %s %s", err, name, c.key)
	}
	for _, s := range c.values {
		_, arnErr := splitARN(s)
		switch {
		case (c.null || name == "Bool") && s != "true" && s != "false", c.null && len(c.values) > 1:
			return fmt.Errorf("%w: %s takes true or false", errPolicy, name)
		case c.arn && arnErr != nil:
			return fmt.Errorf("%w: %s: %w", errPolicy, name, arnErr)
		}
	}
	return nil
}

func equal(a, b string) bool { return a == b }

// arnLike compares part by part, so that a wildcard never crosses a colon that
// separates parts. ArnEquals does the same.
func arnLike(pattern, value string) bool {
	p, err1 := splitARN(pattern)
	v, err2 := splitARN(value)
	return err1 == nil && err2 == nil && glob(p.partition, v.partition) && glob(p.service, v.service) &&
		glob(p.region, v.region) && glob(p.account, v.account) && glob(p.resource, v.resource)
}

// glob matches * with any run and ? with one character. It backtracks to the
// last star alone, so its cost is the product of the lengths.
func glob(pattern, s string) bool {
	p, v := []rune(pattern), []rune(s)
	star, mark, i, j := -1, 0, 0, 0
	for j < len(v) {
		switch {
		case i < len(p) && p[i] == '*':
			star, mark = i, j
			i++
		case i < len(p) && (p[i] == '?' || p[i] == v[j]):
			i++
			j++
		case star >= 0:
			mark++
			i, j = star+1, mark
		default:
			return false
		}
	}
	for i < len(p) && p[i] == '*' {
		i++
	}
	return i == len(p)
}
