package identity

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
)

// Bounds of one CEL expression. The cost is CEL's own, some nanoseconds a
// unit, so that the most expensive evaluation stays under a few milliseconds.
const (
	maxWhen     = 4 << 10
	maxWhenCost = 20_000
	maxWhenDeep = 32
)

// A when is a compiled Item.When. Which fact each of its paths names is
// settled when it is compiled, from the text alone, never by which facts a
// caller brings: else a caller could turn a fact into a group, and a Deny with
// it, by an added label.
type when struct {
	text    string
	program cel.Program
	uses    map[string]use
	reads
}

// reads is what an evaluation may depend on.
type reads struct {
	names  []string // facts
	groups []string // prefixes: all facts below each
	any    []string // prefixes: whether there is a fact below each
}

// use is how an expression uses a path.
type use uint8

const (
	useValue  use = 1 << iota // as a fact: in a comparison, a call
	useMany                   // as a container: right of `in`, or iterated
	useWhole                  // so that each fact below matters: not by one constant key
	useInside                 // on the way to a longer path
	useHas                    // in has()
)

// group says whether path so used may stand for the facts below it. What is
// used as a fact stands for that fact alone, and so does what only has() asks
// for, if it is deep enough to be a label.
func (u use) group(path string) bool {
	switch {
	case u&useInside != 0:
		return true
	case u&useValue != 0:
		return false
	case u&useMany != 0:
		return true
	default:
		return u&useHas != 0 && strings.Count(path, ".") <= 1
	}
}

func newCEL() (*cel.Env, error) {
	opts := []cel.EnvOption{
		cel.ParserExpressionSizeLimit(maxWhen),
		cel.ParserRecursionLimit(maxWhenDeep),
		cel.ExpressionNestingDepthLimit(2 * maxWhenDeep),
	}
	for _, root := range roots {
		opts = append(opts, cel.Variable(root, cel.MapType(cel.StringType, cel.DynType)))
	}
	return cel.NewEnv(opts...)
}

// compileWhen refuses what is not a condition, and what could only be a
// mistake: a fact compared with a number, a group of facts compared at all.
func compileWhen(env *cel.Env, text string) (*when, error) {
	if len(text) > maxWhen {
		return nil, fmt.Errorf("%d bytes: at most %d are taken", len(text), maxWhen)
	}
	checked, issues := env.Compile(text)
	if err := issues.Err(); err != nil {
		return nil, err
	}
	if !checked.OutputType().IsExactType(cel.BoolType) {
		return nil, fmt.Errorf("it gives %s, and a condition gives bool", checked.OutputType())
	}
	w := &when{text: text, uses: map[string]use{}}
	r := reader{w: w}
	r.expr(checked.NativeRep().Expr())
	if r.err != nil {
		return nil, r.err
	}
	if err := w.settle(); err != nil {
		return nil, err
	}
	var err error
	w.program, err = env.Program(checked, cel.EvalOptions(cel.OptOptimize), cel.CostLimit(maxWhenCost))
	return w, err
}

// settle decides what each path is, and refuses one that would be two things.
func (w *when) settle() error {
	for path, u := range w.uses {
		if u&useInside != 0 && u&useValue != 0 {
			return fmt.Errorf("%s is used both as a fact and as a group of facts", path)
		}
		if u&useInside == 0 && strings.Contains(path, ".") {
			w.names = append(w.names, path)
		}
		if u&useWhole != 0 {
			w.groups = append(w.groups, path)
		} else if u&(useHas|useMany) != 0 && u.group(path) {
			w.any = append(w.any, path)
		}
	}
	for _, name := range w.names {
		if err := CheckFactName(name); err != nil {
			return err
		}
	}
	if len(w.names)+len(w.groups)+len(w.any) == 0 {
		return errors.New("it reads no fact")
	}
	w.tidy()
	return nil
}

// tidy sorts and drops repetitions, for a stable answer.
func (r *reads) tidy() {
	for _, list := range []*[]string{&r.names, &r.groups, &r.any} {
		slices.Sort(*list)
		*list = slices.Clip(slices.Compact(*list))
	}
}

// add adds what other reads.
func (r *reads) add(other reads) {
	r.names = append(r.names, other.names...)
	r.groups = append(r.groups, other.groups...)
	r.any = append(r.any, other.any...)
}

// eval returns unknown, and why, for whatever CEL can't say: an absent or
// unknown fact, operands that don't fit, a spent cost limit.
func (w *when) eval(e *evidence) (truth, error) {
	out, _, err := w.program.Eval(&activation{e: e, w: w})
	switch {
	case err != nil:
		return isUnknown, err
	case out == types.True:
		return isTrue, nil
	case out == types.False:
		return isFalse, nil
	default:
		return isUnknown, fmt.Errorf("it gave %v", out)
	}
}
