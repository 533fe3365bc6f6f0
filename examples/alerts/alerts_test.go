// Package alerts_test holds the alert rules against the metrics that there are.
package alerts_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

type rules struct {
	Groups []struct {
		Name  string `yaml:"name"`
		Rules []struct {
			Alert       string            `yaml:"alert"`
			Expr        string            `yaml:"expr"`
			For         string            `yaml:"for"`
			Labels      map[string]string `yaml:"labels"`
			Annotations map[string]string `yaml:"annotations"`
		} `yaml:"rules"`
	} `yaml:"groups"`
}

// frozen are the labels of each metric, by the names that Prometheus has of it.
func frozen(t *testing.T) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for _, file := range []string{"../../broker/telemetry/testdata/frozen.txt", "../../agent/telemetry/testdata/frozen.txt"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			head, _, _ := strings.Cut(line, "|")
			fields := strings.Fields(head)
			labels := []string{"instance", "job"} // Prometheus' own
			if len(fields) > 2 {
				labels = append(labels, strings.Split(fields[2], ",")...)
			}
			if fields[1] != "histogram" {
				all[fields[0]] = labels
				continue
			}
			all[fields[0]+"_sum"], all[fields[0]+"_count"] = labels, labels
			all[fields[0]+"_bucket"] = append(slices.Clone(labels), "le")
		}
	}
	return all
}

var (
	token   = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|[a-zA-Z_:][a-zA-Z0-9_:]*|[0-9][0-9a-zA-Z.]*|[=!]~|[=!<>]=|\S`)
	name    = regexp.MustCompile(`^[a-zA-Z_]`)
	labelIn = regexp.MustCompile(`\$labels\.([a-z_]+)`)
)

// words are what PromQL has that is no metric's name.
var words = strings.Fields("time rate increase sum max min by on group_right group_left offset or and unless histogram_quantile predict_linear clamp_min")

// unknown says what an expression names that is not there, and which labels its
// series have.
func unknown(expr string, metrics map[string][]string) (bad []string, labels []string) {
	depth := map[string]int{}
	var braces, grouping bool
	var named []string // labels of a selector's metric
	var grouped [][]string
	for _, tok := range token.FindAllString(expr, -1) {
		switch {
		case tok == "(" || tok == "[" || tok == "{":
			depth[tok]++
			braces = braces || tok == "{"
		case tok == ")" || tok == "]" || tok == "}":
			depth[map[string]string{")": "(", "]": "[", "}": "{"}[tok]]--
			if tok == "}" {
				braces = false
			}
			if tok == ")" {
				grouping = false
			}
		case tok == "by" || tok == "on":
			grouping = true
			grouped = append(grouped, nil)
		case !name.MatchString(tok):
		case braces:
			if !slices.Contains(named, tok) {
				bad = append(bad, "label "+tok)
			}
		case grouping:
			grouped[len(grouped)-1] = append(grouped[len(grouped)-1], tok)
		case slices.Contains(words, tok):
		default:
			has, ok := metrics[tok]
			if !ok {
				bad = append(bad, tok)
			}
			named = has
			for _, l := range slices.Concat(grouped...) {
				if !slices.Contains(has, l) {
					bad = append(bad, "label "+l+" of "+tok)
				}
			}
			if labels == nil {
				labels = has
			}
		}
	}
	for what, n := range depth {
		if n != 0 {
			bad = append(bad, what+" without its other half")
		}
	}
	if len(grouped) > 0 && len(grouped[0]) > 0 {
		labels = grouped[0]
	}
	return bad, labels
}

func TestRulesNameWhatThereIs(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("credence.rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var r rules
	if err := yaml.UnmarshalWithOptions(text, &r, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	metrics, seen := frozen(t), map[string]bool{}
	for _, g := range r.Groups {
		for _, a := range g.Rules {
			bad, labels := unknown(a.Expr, metrics)
			if len(bad) > 0 {
				t.Errorf("%s: %q", a.Alert, bad)
			}
			if seen[a.Alert] || !strings.HasPrefix(a.Alert, "Credence") || !strings.Contains(a.Expr, "credence_") {
				t.Errorf("%s: it is there twice, or is about something else", a.Alert)
			}
			seen[a.Alert] = true
			if s := a.Labels["severity"]; s != "page" && s != "ticket" || a.Annotations["summary"] == "" || a.Annotations["action"] == "" {
				t.Errorf("%s: severity, summary and action are wanted", a.Alert)
			}
			for _, text := range a.Annotations {
				for _, m := range labelIn.FindAllStringSubmatch(text, -1) {
					if !slices.Contains(labels, m[1]) {
						t.Errorf("%s: its series have no label %s", a.Alert, m[1])
					}
				}
			}
		}
	}
	if len(seen) < 20 {
		t.Errorf("%d rules", len(seen))
	}
}

// The check finds what a change of names would break.
func TestUnknown(t *testing.T) {
	t.Parallel()
	metrics := frozen(t)
	for expr, want := range map[string]string{
		`credence_broker_ready == 0`:                                         "",
		`credence_broker_redy == 0`:                                          "credence_broker_redy",
		`credence_broker_denials_total{code="x"} > 1`:                        "",
		`credence_broker_denials_total{cod="x"} > 1`:                         "label cod",
		`sum by (kind) (rate(credence_broker_denials_total[5m])) > 1`:        "",
		`sum by (method) (rate(credence_broker_denials_total[5m])) > 1`:      "label method of credence_broker_denials_total",
		`credence_broker_call_duration_seconds > 1`:                          "credence_broker_call_duration_seconds",
		`rate(credence_broker_call_duration_seconds_bucket{le="1"}[5m]) > 1`: "",
		`(credence_broker_ready == 0`:                                        "( without its other half",
		`deriv(credence_broker_ready) == 0`:                                  "deriv",
	} {
		if bad, _ := unknown(expr, metrics); strings.Join(bad, "; ") != want {
			t.Errorf("%s: %q, want %q", expr, bad, want)
		}
	}
}
