package identity

import (
	"errors"
	"reflect"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
)

// activation gives a CEL program the facts, read where they lie.
type activation struct {
	e *evidence
	w *when
}

var _ cel.Activation = (*activation)(nil)

// ResolveName finds one of the four roots.
func (a *activation) ResolveName(name string) (any, bool) {
	for _, root := range roots {
		if root != name {
			continue
		}
		if a.w.uses[root]&useWhole != 0 && a.e.unknownBelow(root) {
			return unknownFact(root), true
		}
		return &view{a: a, prefix: root}, true
	}
	return nil, false
}

// Parent is none.
func (a *activation) Parent() cel.Activation { return nil }

// A view is the CEL map of the facts below a prefix. Its keys are what is left
// of their names, dots and all; besides, a path that goes on finds the view
// below it. Whatever may be unknown is an error, which CEL carries through
// its logic as Kleene's does the unknown: false && error is false.
type view struct {
	a      *activation
	prefix string
}

var _ traits.Mapper = (*view)(nil)

func unknownFact(name string) ref.Val { return types.NewErr("%s is unknown", name) }

// Find resolves one more part of a path.
func (v *view) Find(key ref.Val) (ref.Val, bool) {
	k, ok := key.(types.String)
	if !ok {
		return types.NewErr("facts have names, not %v", key.Type()), false
	}
	name := v.prefix + "." + string(k)
	e, u := v.a.e, v.a.w.uses[name]
	if e.isUnknown(name) {
		return unknownFact(name), false
	}
	values := e.root(name)[name]
	switch {
	case len(values) > 0 && u&useInside == 0:
		return factValue(values, u), true
	case !u.group(name) && u&useHas == 0:
		return types.NewErr("%s is absent", name), false // says more than CEL's own error
	case !u.group(name):
		return nil, false
	case u == useInside: // what follows decides
		return &view{a: v.a, prefix: name}, true
	case u&useWhole != 0 && e.unknownBelow(name):
		return unknownFact(name), false
	case len(values) > 0 || e.anyBelow(name):
		return &view{a: v.a, prefix: name}, true
	case e.unknownBelow(name):
		return unknownFact(name), false
	default:
		return nil, false
	}
}

// factValue is a string for one value and a list for several; where an
// expression only searches or iterates it, always a list.
func factValue(values []string, u use) ref.Val {
	if len(values) == 1 && u&(useMany|useValue) != useMany {
		return types.String(values[0])
	}
	return types.NewStringList(types.DefaultTypeAdapter, values)
}

// Contains says whether there is a fact of that name below the view.
func (v *view) Contains(key ref.Val) ref.Val {
	val, found := v.exact(key)
	if types.IsError(val) {
		return val
	}
	return types.Bool(found)
}

// Get returns the fact of that name below the view.
func (v *view) Get(key ref.Val) ref.Val {
	val, found := v.exact(key)
	if found || types.IsError(val) {
		return val
	}
	return types.NewErr("no such fact: %s.%v", v.prefix, key.Value())
}

// exact finds a fact, never a view.
func (v *view) exact(key ref.Val) (ref.Val, bool) {
	k, ok := key.(types.String)
	if !ok {
		return types.NewErr("facts have names, not %v", key.Type()), false
	}
	name := v.prefix + "." + string(k)
	if v.a.e.isUnknown(name) {
		return unknownFact(name), false
	}
	values := v.a.e.get(name)
	if len(values) == 0 {
		return nil, false
	}
	return factValue(values, 0), true
}

// Iterator yields the keys in order. Find lets nobody iterate over facts of
// which some are unknown.
func (v *view) Iterator() traits.Iterator {
	names := v.a.e.below(v.prefix)
	keys := make([]string, len(names))
	for i, name := range names {
		keys[i] = name[len(v.prefix)+1:]
	}
	return types.NewStringList(types.DefaultTypeAdapter, keys).Iterator()
}

// Size is for CEL's cost; no expression reaches it.
func (v *view) Size() ref.Val { return types.Int(len(v.a.e.below(v.prefix))) }

// ConvertToNative is refused: a view has no meaning outside an expression.
func (v *view) ConvertToNative(reflect.Type) (any, error) {
	return nil, errors.New("a group of facts is no value")
}

// ConvertToType is refused.
func (v *view) ConvertToType(ref.Type) ref.Val { return types.NewErr("a group of facts is no value") }

// Equal is refused.
func (v *view) Equal(ref.Val) ref.Val { return types.NewErr("a group of facts equals nothing") }

// Type is CEL's map.
func (v *view) Type() ref.Type { return types.MapType }

// Value is the view.
func (v *view) Value() any { return v }
