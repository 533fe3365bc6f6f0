package kubernetes_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/credence-id/credence/agent/attest/kubernetes"
)

// FuzzList: whatever a list holds, it is taken or refused, and each container
// that is known by its pod can be told.
func FuzzList(f *testing.F) {
	var text bytes.Buffer
	twin := web()
	twin.UID = otherUID
	writeList(&text, web(), twin)
	f.Add(text.Bytes())
	for _, s := range []string{`{"items":null}`, `{"kind":"PodList","items":[{}]}`, `{"items":[{"metadata":{"uid":"` + uid + `"}}]}`, `[`, `{"items":[null]}`, `{"metadata":null}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := kubernetes.Listed(bytes.NewReader(b))
		if err == nil && n > strings.Count(string(b), "://") {
			t.Errorf("%d containers", n)
		}
	})
}

func FuzzEvents(f *testing.F) {
	f.Add([]byte(`{"type":"ADDED","object":{}}{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"1"}}}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if n := kubernetes.Events(bytes.NewReader(b)); n > len(b) {
			t.Errorf("%d events", n)
		}
	})
}
