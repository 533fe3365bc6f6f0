package exchangers_test

import (
	"errors"
	"io"
	"log"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/exchangers"
)

var quiet = log.New(io.Discard, "", 0)

type settings struct {
	Role string              `yaml:"role" json:"role"`
	Life exchangers.Duration `yaml:"life,omitempty" json:"life,omitzero"`
}

func (settings) Audience() string { return "aud" }
func (s settings) Validate() error {
	if s.Role == "" {
		return errors.New("role: is required")
	}
	return s.Life.CheckRange("life", 15*time.Minute, time.Hour)
}

func TestWireRoundTrip(t *testing.T) {
	want := exchangers.Target{Flow: "gcp", Settings: &settings{Role: "r", Life: exchangers.Duration(20 * time.Minute)}, Endpoint: "https://sts.example", CAFile: "/etc/ca.pem"}
	data, err := want.Wire()
	if err != nil {
		t.Fatalf("writing: %v", err)
	}
	if text := `{"flow":"gcp","settings":{"role":"r","life":"20m0s"},"endpoint":"https://sts.example","ca_file":"/etc/ca.pem"}`; string(data) != text {
		t.Errorf("wrote %s", data)
	}
	got, err := exchangers.ParseWire(data, &settings{})
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

func TestParseWireRefuses(t *testing.T) {
	rows := map[string]string{
		"empty":                  ``,
		"null":                   `null`,
		"array":                  `[]`,
		"no flow":                `{"settings":{"role":"r"}}`,
		"no settings":            `{"flow":"gcp"}`,
		"null settings":          `{"flow":"gcp","settings":null}`,
		"unknown field":          `{"flow":"gcp","settings":{"role":"r"},"extra":1}`,
		"unknown setting":        `{"flow":"gcp","settings":{"role":"r","extra":1}}`,
		"trailing":               `{"flow":"gcp","settings":{"role":"r"}} {}`,
		"invalid settings":       `{"flow":"gcp","settings":{}}`,
		"plain http":             `{"flow":"gcp","settings":{"role":"r"},"endpoint":"http://sts.example"}`,
		"user in the endpoint":   `{"flow":"gcp","settings":{"role":"r"},"endpoint":"https://u:p@sts.example"}`,
		"query in the endpoint":  `{"flow":"gcp","settings":{"role":"r"},"endpoint":"https://sts.example?x=1"}`,
		"number for a duration":  `{"flow":"gcp","settings":{"role":"r","life":3600}}`,
		"duration out of bounds": `{"flow":"gcp","settings":{"role":"r","life":"2h"}}`,
		"part of a second":       `{"flow":"gcp","settings":{"role":"r","life":"20m0.5s"}}`,
		"large":                  `{"flow":"gcp","settings":{"role":"` + strings.Repeat("r", 64<<10) + `"}}`,
	}
	for name, text := range rows {
		t.Run(name, func(t *testing.T) {
			if got, err := exchangers.ParseWire([]byte(text), &settings{}); err == nil {
				t.Errorf("read %+v", got)
			}
		})
	}
}

func TestWireRefusesWhatDoesNotValidate(t *testing.T) {
	for name, target := range map[string]exchangers.Target{
		"zero": {}, "no settings": {Flow: "gcp"}, "bad settings": {Flow: "gcp", Settings: settings{}},
		"bad endpoint": {Flow: "gcp", Settings: settings{Role: "r"}, Endpoint: "sts.example"},
	} {
		if data, err := target.Wire(); err == nil {
			t.Errorf("%s: wrote %s", name, data)
		}
	}
}

func TestDurationInYAML(t *testing.T) {
	var s settings
	if err := yaml.UnmarshalWithOptions([]byte("role: r\nlife: 45m\n"), &s, yaml.Strict()); err != nil || time.Duration(s.Life) != 45*time.Minute {
		t.Errorf("read %v, %v", s.Life, err)
	}
	if out, err := yaml.Marshal(s); err != nil || string(out) != "role: r\nlife: 45m0s\n" {
		t.Errorf("wrote %q, %v", out, err)
	}
	for _, text := range []string{"life: 3600", "life: soon", "life: " + strings.Repeat("1", 80) + "s"} {
		if err := yaml.UnmarshalWithOptions([]byte(text), &s, yaml.Strict()); err == nil {
			t.Errorf("%s was read as %s", text, s.Life)
		}
	}
}

func FuzzParseWire(f *testing.F) {
	f.Add([]byte(`{"flow":"gcp","settings":{"role":"r","life":"20m"},"endpoint":"https://sts.example","ca_file":"/ca"}`))
	f.Add([]byte(`{"flow":"gcp","settings":{"role":"r"}} x`))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := exchangers.ParseWire(data, &settings{})
		if err != nil {
			return
		}
		again, err := got.Wire()
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		back, err := exchangers.ParseWire(again, &settings{})
		if diff := cmp.Diff(got, back); err != nil || diff != "" {
			t.Errorf("%v (-first +second):\n%s", err, diff)
		}
	})
}
