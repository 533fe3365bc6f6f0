package awscredentials

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const mark = "# written by credence, output web"

var values = []keyValue{{"aws_access_key_id", "ASIA1"}, {"aws_secret_access_key", "s/+="}, {"aws_session_token", "t=="}}

const written = mark + "\naws_access_key_id = ASIA1\naws_secret_access_key = s/+=\naws_session_token = t==\n"

// What else is in a file stays byte for byte.
//
// Regression: aws-spiffe-workload-helper's --force
func TestPutKeepsTheRest(t *testing.T) {
	for _, c := range []struct{ name, text, want, removed string }{
		{"no file", "", "[web]\n" + written, ""},
		{"another profile", "[default]\naws_access_key_id=AKIA\n", "[default]\naws_access_key_id=AKIA\n[web]\n" + written, "[default]\naws_access_key_id=AKIA\n"},
		{"no newline at the end", "[default]\nregion=x", "[default]\nregion=x\n[web]\n" + written, "[default]\nregion=x\n"},
		{
			"in the middle, with odd lines", "; top\r\n[a]\r\nx = 1\r\n\r\n[web] # mine\nregion = eu\n# note\n[z]\n\ty\n",
			"; top\r\n[a]\r\nx = 1\r\n\r\n[web] # mine\n" + written + "region = eu\n# note\n[z]\n\ty\n", "; top\r\n[a]\r\nx = 1\r\n\r\n[web] # mine\nregion = eu\n# note\n[z]\n\ty\n",
		},
		{
			"again", "[web]\n" + mark + "\nAWS_Access_Key_Id=old\naws_secret_access_key=old\n  goes on\naws_session_token = old\nregion = eu\n[z]\n",
			"[web]\n" + written + "region = eu\n[z]\n", "[web]\nregion = eu\n[z]\n",
		},
		{"a header at the end", "[web]", "[web]\n" + written, ""},
		{"names that look alike", "[webb]\na=1\n[we]\n[ web ]\n", "[webb]\na=1\n[we]\n[ web ]\n" + written, "[webb]\na=1\n[we]\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := put([]byte(c.text), "web", mark, values)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, string(got)); diff != "" {
				t.Error(diff)
			}
			if got, err = remove(got, "web", mark); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.removed, string(got)); diff != "" {
				t.Error("removed:", diff)
			}
		})
	}
}

func TestPutRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"keys of the user's":    "[web]\naws_access_key_id = AKIA\n",
		"another output's mark": "[web]\n# written by credence, output other\naws_secret_access_key = s\n",
		"the profile twice":     "[web]\n[web]\n",
		"an indented profile":   "[a]\nx = 1\n  [web]\n",
		"a profile not closed":  "[web\n",
		"no text":               "[a]\n\x00",
		"too long":              strings.Repeat("#", maxFile+1),
	} {
		if got, err := put([]byte(text), "web", mark, values); err == nil || strings.Contains(err.Error(), "AKIA") {
			t.Errorf("%s: %q %v", name, got, err)
		}
	}
	for _, bad := range []string{"", "a\nb", "a b", "a\x00", "ä"} {
		if _, err := put(nil, "web", mark, []keyValue{{"aws_access_key_id", bad}}); err == nil {
			t.Errorf("the value %q is written", bad)
		}
	}
	// What is not ours is not removed either.
	if got, err := remove([]byte("[web]\naws_access_key_id = AKIA\n"), "web", mark); err != nil || !bytes.Contains(got, []byte("AKIA")) {
		t.Errorf("removed: %q %v", got, err)
	}
}

// FuzzPut holds that nothing but one profile changes, that writing again
// changes nothing, and that removing leaves no key of ours.
func FuzzPut(f *testing.F) {
	for _, s := range []string{
		"", "[default]\naws_access_key_id=A\n", "[web]\n" + written + "x=1\n[z]\n", "[web]\nregion=eu", "[a]\n  b\n[web] ; c\n\n#\n", "[web]\n" + mark + "\naws_session_token=\n old\n\n[b]\r\n",
		"\xef\xbb\xbf[web]\n", "[]\n[ ]\n", "=\n==\n", "[a] x\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		one, err := put([]byte(text), "web", mark, values)
		if err != nil {
			return
		}
		two, err := put(one, "web", mark, values)
		if err != nil || !bytes.Equal(one, two) {
			t.Fatalf("written twice: %q, then %q %v", one, two, err)
		}
		if !bytes.Contains(one, []byte(written)) {
			t.Fatalf("it is not there: %q", one)
		}
		if was, is := others(t, []byte(text)), others(t, one); was != is && was+"\n" != is {
			t.Fatalf("others were %q and are %q", was, is)
		}
		gone, err := remove(one, "web", mark)
		if err != nil {
			t.Fatal(err)
		}
		if was, is := others(t, []byte(text)), others(t, gone); was != is && was+"\n" != is {
			t.Fatalf("others were %q and are %q", was, is)
		}
		if lines, begin, end, err := find(gone, "web"); err != nil {
			t.Fatal(err)
		} else if begin >= 0 {
			if _, marked, keys := strip(lines[begin+1:end], mark); marked || keys {
				t.Fatalf("left: %q", gone)
			}
		}
	})
}

// others is all that is not the profile's.
func others(t *testing.T, text []byte) string {
	t.Helper()
	lines, begin, end, err := find(text, "web")
	if err != nil {
		t.Fatal(err)
	}
	if begin < 0 {
		return string(text)
	}
	return string(bytes.Join(lines[:begin], nil)) + string(bytes.Join(lines[end:], nil))
}
