package bearer

import (
	"encoding/json"
	"strconv"

	"github.com/credence-id/credence/broker/identity"
)

// Facts are claims as facts under a prefix, such as "node.github": strings,
// booleans and whole numbers as they are written, lists of these as several
// values, objects by their members' names after a dot. What cannot be a fact's
// name or value is left out: no rule could name it.
func Facts(prefix string, claims map[string]any) (identity.Facts, error) {
	m := map[string][][]string{}
	for name, value := range claims {
		gather(m, prefix+"."+name, value)
	}
	facts := map[string][]string{}
	for name, found := range m {
		if len(found) == 1 { // {"a.b": 1, "a": {"b": 2}}: neither
			facts[name] = found[0]
		}
	}
	return identity.NewFacts(prefix, facts)
}

func gather(m map[string][][]string, name string, value any) {
	if object, ok := value.(map[string]any); ok {
		for member, v := range object {
			gather(m, name+"."+member, v)
		}
		return
	}
	if identity.CheckFactName(name) != nil {
		return
	}
	list, ok := value.([]any)
	if !ok {
		list = []any{value}
	}
	var values []string
	for _, v := range list {
		text, ok := scalar(v)
		if !ok {
			return // a part of a list would be another list
		}
		values = append(values, text)
	}
	if len(values) > 0 {
		m[name] = append(m[name], values)
	}
}

func scalar(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case bool:
		return strconv.FormatBool(v), true
	case json.Number:
		_, err := strconv.ParseInt(v.String(), 10, 64)
		return v.String(), err == nil
	}
	return "", false
}
