package identity

import (
	"fmt"
	"slices"
	"strings"

	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
)

// A reader walks an expression and notes how it uses facts.
type reader struct {
	w   *when
	err error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
}

// note records that the fact at the end of path is used as u.
func (r *reader) note(path []string, u use) {
	if len(path) == 1 && u&useValue != 0 {
		r.fail("%s alone is no fact", path[0])
		return
	}
	for i := 1; i < len(path); i++ {
		r.w.uses[strings.Join(path[:i], ".")] |= useInside
	}
	r.w.uses[strings.Join(path, ".")] |= u
}

func (r *reader) expr(x ast.Expr) {
	if path, ok := factPath(x); ok {
		r.note(path, useValue)
		return
	}
	switch x.Kind() {
	case ast.SelectKind:
		s := x.AsSelect()
		if path, ok := factPath(s.Operand()); ok && s.IsTestOnly() {
			r.note(append(path, s.FieldName()), useHas)
			return
		}
		r.expr(s.Operand())
	case ast.CallKind:
		r.call(x.AsCall())
	case ast.ListKind:
		r.all(x.AsList().Elements()...)
	case ast.MapKind:
		for _, entry := range x.AsMap().Entries() {
			r.all(entry.AsMapEntry().Key(), entry.AsMapEntry().Value())
		}
	case ast.StructKind:
		for _, field := range x.AsStruct().Fields() {
			r.expr(field.AsStructField().Value())
		}
	case ast.ComprehensionKind:
		r.comprehension(x.AsComprehension())
	}
}

func (r *reader) all(xs ...ast.Expr) {
	for _, x := range xs {
		r.expr(x)
	}
}

func (r *reader) comprehension(c ast.ComprehensionExpr) {
	for _, v := range []string{c.IterVar(), c.IterVar2(), c.AccuVar()} {
		if slices.Contains(roots, v) {
			r.fail("%s is the name of facts: call the variable something else", v)
		}
	}
	r.container(c.IterRange(), true)
	r.all(c.AccuInit(), c.LoopCondition(), c.LoopStep(), c.Result())
}

// container notes what is iterated or searched; whole says that every fact
// below it is.
func (r *reader) container(x ast.Expr, whole bool) {
	path, ok := factPath(x)
	if !ok {
		r.expr(x)
		return
	}
	if whole {
		r.note(path, useMany|useWhole)
	} else {
		r.note(path, useMany)
	}
}

func (r *reader) call(c ast.CallExpr) {
	args := c.Args()
	switch c.FunctionName() {
	case operators.In, operators.OldIn:
		key, literal := stringLiteral(args[0])
		r.searched(args[0], args[1])
		if path, ok := factPath(args[1]); ok && literal {
			r.w.names = append(r.w.names, strings.Join(append(path, key), "."))
		}
		r.container(args[1], !literal)
		r.expr(args[0])
		return
	case operators.Index:
		if _, isFact := factPath(args[0]); isFact && !isNumber(args[1]) {
			r.container(args[0], true) // a key that is known only when it is evaluated
			r.expr(args[1])
			return
		}
	case operators.Equals, operators.NotEquals:
		r.compared(args[0], args[1])
		r.compared(args[1], args[0])
	}
	if c.IsMemberFunction() {
		r.expr(c.Target())
	}
	r.all(args...)
}

// compared refuses fact == 1000, which is false for each fact: facts are
// strings.
func (r *reader) compared(fact, with ast.Expr) {
	if path, ok := factPath(fact); ok && with.Kind() == ast.LiteralKind && with.AsLiteral().Type() != types.StringType {
		r.fail("%s is compared with %v, but facts are strings: quote it", strings.Join(path, "."), with.AsLiteral().Value())
	}
}

func (r *reader) searched(fact, list ast.Expr) {
	if list.Kind() != ast.ListKind {
		return
	}
	for _, x := range list.AsList().Elements() {
		r.compared(fact, x)
	}
}

// factPath returns the parts of a path of constants that starts at one of the
// roots.
func factPath(x ast.Expr) ([]string, bool) {
	switch x.Kind() {
	case ast.IdentKind:
		name := strings.TrimPrefix(x.AsIdent(), ".")
		return []string{name}, slices.Contains(roots, name)
	case ast.SelectKind:
		if s := x.AsSelect(); !s.IsTestOnly() {
			path, ok := factPath(s.Operand())
			return append(path, s.FieldName()), ok
		}
	case ast.CallKind:
		if c := x.AsCall(); c.FunctionName() == operators.Index {
			if key, ok := stringLiteral(c.Args()[1]); ok {
				path, ok := factPath(c.Args()[0])
				return append(path, key), ok
			}
		}
	}
	return nil, false
}

func stringLiteral(x ast.Expr) (string, bool) {
	if x.Kind() != ast.LiteralKind {
		return "", false
	}
	s, ok := x.AsLiteral().(types.String)
	return string(s), ok
}

func isNumber(x ast.Expr) bool {
	return x.Kind() == ast.LiteralKind && x.AsLiteral().Type() == types.IntType
}
