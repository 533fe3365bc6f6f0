package gcp

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/ext"

	"github.com/credence-id/credence/exchangers/sandbox"
)

// celCost bounds one evaluation.
const celCost = 100_000

// A provider is a Provider whose expressions are compiled and keys parsed.
type provider struct {
	Provider
	pool      string
	mapping   map[string]cel.Program
	condition cel.Program   // nil admits all
	keys      []sandbox.Key // uploaded; nil for discovery
}

// name is the full resource name of the provider, without scheme.
func (p *provider) name() string {
	return "//iam.googleapis.com/" + p.pool + "/providers/" + p.ID
}

func (c *Cloud) compile(poolName string, p Provider) (*provider, error) {
	if err := p.check(c.issuers); err != nil {
		return nil, err
	}
	if p.TrustStore != nil && p.AttributeMapping == nil {
		p.AttributeMapping = map[string]string{"google.subject": "assertion.subject.dn.cn"}
	}
	out := &provider{Provider: p, pool: poolName, mapping: map[string]cel.Program{}}
	if err := out.compileCEL(); err != nil {
		return nil, fmt.Errorf("provider %q: %w", p.ID, err)
	}
	if p.KeySet != nil {
		var err error
		if out.keys, err = uploadedKeys(p.KeySet); err != nil {
			return nil, fmt.Errorf("provider %q: %w", p.ID, err)
		}
	}
	return out, nil
}

// uploadedKeys allows what the documents allow to upload: at most 8 keys, RSA
// or EC P-256.
func uploadedKeys(b []byte) ([]sandbox.Key, error) {
	keys, err := sandbox.ParseKeySet(b)
	if err != nil {
		return nil, err
	}
	if len(keys) > 8 {
		return nil, fmt.Errorf("%d uploaded keys, at most 8", len(keys))
	}
	for _, k := range keys {
		if k.Err != nil || k.Type == "EC" && k.Curve != "P-256" {
			return nil, fmt.Errorf("uploaded key %q is not a usable RSA or P-256 key", k.ID)
		}
	}
	return keys, nil
}

func (p *provider) compileCEL() error {
	env, err := cel.NewEnv(ext.Strings(), cel.Variable("assertion", cel.MapType(cel.StringType, cel.DynType)))
	if err != nil {
		return err
	}
	if p.AttributeMapping["google.subject"] == "" {
		return errors.New("attribute mapping: google.subject is required")
	}
	if len(p.AttributeMapping) > 52 {
		return errors.New("attribute mapping: more than 50 attributes")
	}
	for name, expr := range p.AttributeMapping {
		if name != "google.subject" && name != "google.groups" && !attributeName.MatchString(name) {
			return fmt.Errorf("attribute mapping: %q is not google.subject, google.groups or attribute.NAME", name)
		}
		if p.mapping[name], err = program(env, expr, 2048, nil); err != nil {
			return fmt.Errorf("attribute mapping %s: %w", name, err)
		}
	}
	if p.AttributeCondition == "" {
		return nil
	}
	object := cel.MapType(cel.StringType, cel.DynType)
	if env, err = env.Extend(cel.Variable("google", object), cel.Variable("attribute", object)); err != nil {
		return err
	}
	if p.condition, err = program(env, p.AttributeCondition, 4096, cel.BoolType); err != nil {
		return fmt.Errorf("attribute condition: %w", err)
	}
	return nil
}

func program(env *cel.Env, expr string, longest int, want *cel.Type) (cel.Program, error) {
	if expr == "" || len(expr) > longest {
		return nil, fmt.Errorf("expression of %d bytes, 1 to %d", len(expr), longest)
	}
	ast, issues := env.Compile(expr)
	if issues.Err() != nil {
		return nil, issues.Err()
	}
	if want != nil && !ast.OutputType().IsExactType(want) {
		return nil, fmt.Errorf("expression is a %s, not a %s", ast.OutputType(), want)
	}
	return env.Program(ast, cel.CostLimit(celCost))
}

// attributes are what a mapping made of a subject token.
type attributes struct {
	subject string
	groups  []string
	custom  map[string]string // by NAME, without "attribute."
}

// apply maps the claims. An expression that fails, and a result of another type
// than string (groups: list of strings), is an error.
func (p *provider) apply(claims map[string]any) (attributes, error) {
	vars := map[string]any{"assertion": numbers(claims)}
	out := attributes{custom: map[string]string{}}
	for name, prg := range p.mapping {
		v, _, err := prg.Eval(vars)
		if err != nil {
			return out, fmt.Errorf("mapping %s: %w", name, err)
		}
		if err := out.set(name, v); err != nil {
			return out, fmt.Errorf("mapping %s: %w", name, err)
		}
	}
	return out, nil
}

func (p *provider) admits(claims map[string]any, a attributes) (bool, error) {
	if p.condition == nil {
		return true, nil
	}
	v, _, err := p.condition.Eval(map[string]any{
		"assertion": numbers(claims),
		"google":    map[string]any{"subject": a.subject, "groups": a.groups},
		"attribute": a.custom,
	})
	if err != nil {
		return false, err
	}
	ok, isBool := v.Value().(bool)
	return ok && isBool, nil
}

// members are the ways in which a binding can name the principal.
func (p *provider) members(a attributes) []string {
	set := "principalSet://iam.googleapis.com/" + p.pool
	out := []string{p.principal(a), set + "/*"}
	for _, g := range a.groups {
		out = append(out, set+"/group/"+g)
	}
	for name, v := range a.custom {
		out = append(out, set+"/attribute."+name+"/"+v)
	}
	return out
}

func (p *provider) principal(a attributes) string {
	return "principal://iam.googleapis.com/" + p.pool + "/subject/" + a.subject
}

func (a attributes) size() int {
	n := len(a.subject)
	for _, g := range a.groups {
		n += len(g)
	}
	for name, v := range a.custom {
		n += len(name) + len(v)
	}
	return n
}

// numbers makes of each json.Number what CEL can count with.
func numbers(v any) any {
	switch v := v.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		f, _ := v.Float64() // out of range: an infinity that equals nothing
		return f
	case map[string]any:
		out := make(map[string]any, len(v))
		for name, e := range v {
			out[name] = numbers(e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = numbers(e)
		}
		return out
	}
	return v
}

var errType = errors.New("result is not a string, or for google.groups a list of strings")

func (a *attributes) set(name string, v ref.Val) error {
	if name == "google.groups" {
		list, err := v.ConvertToNative(reflect.TypeFor[[]string]())
		if err != nil {
			return errType
		}
		a.groups = list.([]string)
		return nil
	}
	s, ok := v.Value().(string)
	if !ok {
		return errType
	}
	if name == "google.subject" {
		a.subject = s
		return nil
	}
	a.custom[strings.TrimPrefix(name, "attribute.")] = s
	return nil
}
