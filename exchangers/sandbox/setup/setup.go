// Package setup reads what credence target setup -o json writes, and makes the
// emulators' configurations of it: a sandbox that holds exactly what would be
// created in the clouds.
//
// It trusts nothing of what it reads, and refuses every resource and every
// value that it does not know: what it left out would be a hole in the judge.
// What the cloud chooses (UUIDs of ARNs, client IDs) it chooses too, always the
// same for the same resource, unless the Target knows it already. Whether the
// values are ones that a cloud would take is left to the emulators.
package setup

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/credence-id/credence/exchangers/sandbox"
	"github.com/credence-id/credence/exchangers/sandbox/aws"
	"github.com/credence-id/credence/exchangers/sandbox/azure"
	"github.com/credence-id/credence/exchangers/sandbox/gcp"
)

const maxPlan = 1 << 20

// Clouds are what some plans come to.
type Clouds struct {
	AWS     *aws.Config // nil: no plan is for it
	GCP     *gcp.Config
	Azure   *azure.Config
	Targets map[string]map[string]any // the Targets that must say what the cloud chose, as apply takes them
}

// plan is the form of the output.
type plan struct {
	Target, Flow string
	Cloud        struct{ Name, Partition, Account, Region string }
	Resources    []resource
	Notes        []string
	Apply        map[string]any
}

type resource struct {
	Type, Label, ID, Account string
	Read                     bool
	Values                   map[string]any
}

// Read makes configurations of plans. Those for AWS must be of one account and
// region.
func Read(plans ...[]byte) (*Clouds, error) {
	c := &Clouds{Targets: map[string]map[string]any{}}
	for i, text := range plans {
		if err := c.read(text); err != nil {
			return nil, fmt.Errorf("setup %d: %w", i+1, err)
		}
	}
	return c, nil
}

func (c *Clouds) read(text []byte) error {
	if len(text) > maxPlan {
		return fmt.Errorf("%d bytes: at most %d are read", len(text), maxPlan)
	}
	if _, err := sandbox.ParseObject(text); err != nil { // one object, no name twice
		return err
	}
	var p plan
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is more after the plan")
	}
	m := &maker{plan: p, out: c, chosen: map[string]string{}}
	for n := range p.Resources {
		r := &p.Resources[n]
		if err := m.make(r); err != nil {
			return fmt.Errorf("%s %s: %w", r.Type, r.Label, err)
		}
	}
	if len(p.Apply) > 0 {
		doc, err := m.resolve(p.Apply)
		if err != nil {
			return fmt.Errorf("the Target: %w", err)
		}
		c.Targets[p.Target] = doc.(map[string]any) // it was one
	}
	return nil
}

// maker makes one plan's resources, in their order: a reference leads back.
type maker struct {
	plan
	out    *Clouds
	chosen map[string]string // what resources say of themselves, by TYPE.LABEL.ATTR
}

func (m *maker) make(r *resource) error {
	if r.Values == nil {
		return errors.New("it has no values")
	}
	f := &fields{m: m, left: maps.Clone(r.Values)}
	var err error
	switch m.Cloud.Name {
	case "aws":
		err = m.aws(r, f)
	case "gcp":
		err = m.gcp(r, f)
	case "azure":
		err = m.azure(r, f)
	default:
		err = fmt.Errorf("cloud %q is not emulated", m.Cloud.Name)
	}
	return errors.Join(err, f.err, f.rest())
}

// choose remembers what a resource says of itself.
func (m *maker) choose(r *resource, attrs map[string]string) {
	for name, v := range attrs {
		m.chosen[r.Type+"."+r.Label+"."+name] = v
	}
}

// uuid is the one that the cloud gives a resource.
func (m *maker) uuid(r *resource, what string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q", []string{m.Cloud.Name, m.Cloud.Account, m.Cloud.Region, m.Target, r.Type, r.Label, what}))
	return fmt.Sprintf("%x-%x-%x-%x-%x", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
}

var errType = errors.New("another type than it should have")

// resolve fills references in.
func (m *maker) resolve(v any) (any, error) {
	switch v := v.(type) {
	case map[string]any:
		if ref, ok := v["ref"]; ok {
			name, _ := ref.(string)
			chosen, known := m.chosen[name]
			if !known || len(v) != 1 {
				return nil, fmt.Errorf("reference %q leads nowhere", name)
			}
			return chosen, nil
		}
		out := make(map[string]any, len(v))
		for name, e := range v {
			r, err := m.resolve(e)
			if err != nil {
				return nil, err
			}
			out[name] = r
		}
		return out, nil
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			r, err := m.resolve(e)
			if err != nil {
				return nil, err
			}
			out[i] = r
		}
		return out, nil
	}
	return v, nil
}

// fields reads values, each once. It remembers the first mistake.
type fields struct {
	m    *maker
	left map[string]any
	err  error
}

func (f *fields) fail(name string, err error) {
	if f.err == nil {
		f.err = fmt.Errorf("%s: %w", name, err)
	}
}

func (f *fields) take(name string) (any, bool) {
	v, ok := f.left[name]
	delete(f.left, name)
	if ok {
		var err error
		if v, err = f.m.resolve(v); err != nil {
			f.fail(name, err)
			return nil, false
		}
	}
	return v, ok
}

// rest refuses what nobody read.
func (f *fields) rest() error {
	if len(f.left) > 0 {
		return fmt.Errorf("%q is not known here", slices.Sorted(maps.Keys(f.left))[0])
	}
	return nil
}

// text is required; maybe is not.
func (f *fields) text(name string) string {
	s := f.maybe(name)
	if s == "" {
		f.fail(name, errors.New("it is missing or empty"))
	}
	return s
}

func (f *fields) maybe(name string) string {
	v, ok := f.take(name)
	s, isText := v.(string)
	if ok && !isText {
		f.fail(name, errType)
	}
	return s
}

func (f *fields) flag(name string) bool {
	v, ok := f.take(name)
	b, isBool := v.(bool)
	if ok && !isBool {
		f.fail(name, errType)
	}
	return b
}

func (f *fields) number(name string) int {
	v, _ := f.take(name)
	n, isNumber := v.(float64)
	if !isNumber || n != float64(int(n)) {
		f.fail(name, errType)
	}
	return int(n)
}

// texts is a list of strings that is not empty.
func (f *fields) texts(name string) (all []string) {
	v, _ := f.take(name)
	list, isList := v.([]any)
	for _, e := range list {
		s, isText := e.(string)
		isList = isList && isText
		all = append(all, s)
	}
	if !isList || len(all) == 0 {
		f.fail(name, errType)
	}
	return all
}

// document is JSON that the plan holds in the open.
func (f *fields) document(name string) string {
	v, _ := f.take(name)
	o, isObject := v.(map[string]any)
	text, err := json.Marshal(o)
	if !isObject || err != nil {
		f.fail(name, errType)
	}
	return string(text)
}

// one reads the only block of a name; each reads all of them. Without one they
// are not called.
func (f *fields) one(name string, read func(*fields)) {
	n := 0
	f.each(name, func(inner *fields) {
		if n++; n == 1 {
			read(inner)
		} else {
			clear(inner.left)
		}
	})
	if n > 1 {
		f.fail(name, errors.New("it stands there more than once"))
	}
}

func (f *fields) each(name string, read func(*fields)) {
	v, ok := f.take(name)
	list, isList := v.([]any)
	if ok && !isList {
		f.fail(name, errType)
	}
	for _, e := range list {
		o, isObject := e.(map[string]any)
		if !isObject {
			f.fail(name, errType)
			return
		}
		inner := &fields{m: f.m, left: maps.Clone(o)}
		read(inner)
		if err := errors.Join(inner.err, inner.rest()); err != nil {
			f.fail(name, err)
			return
		}
	}
}
