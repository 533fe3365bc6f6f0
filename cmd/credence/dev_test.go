package main_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	credence "github.com/credence-id/credence/cmd/credence"
)

// report is the object that dev --json prints, as its readers know it: a key
// that is not here fails.
type report struct {
	TrustDomain string `json:"trust_domain"`
	Workload    struct {
		SPIFFEID string `json:"spiffe_id"`
		X509     struct {
			Serial      string `json:"serial"`
			NotAfter    string `json:"not_after"`
			ChainLength int    `json:"chain_length"`
			KeyType     string `json:"key_type"`
		} `json:"x509"`
		JWT struct {
			Alg string   `json:"alg"`
			Aud []string `json:"aud"`
			Exp int64    `json:"exp"`
		} `json:"jwt"`
	} `json:"workload"`
	Peers []struct {
		TrustDomain string `json:"trust_domain"`
		Verified    bool   `json:"verified"`
		Error       string `json:"error"` // where it was not
	} `json:"peers"`
	Targets []target `json:"targets"`
	Timing  struct {
		FirstSVID int64 `json:"first_svid"`
		Total     int64 `json:"total"`
	} `json:"timing_ms"`
}

type target struct {
	Name     string `json:"name"`
	Provider string `json:"provider"`
	OK       bool   `json:"ok"`
	Whoami   string `json:"whoami"`
	Expires  string `json:"expires"`
	Error    string `json:"error"`
}

func parseReport(t *testing.T, text string) report {
	t.Helper()
	var r report
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		t.Fatalf("reading the report: %v\n%s", err, text)
	}
	if d.More() {
		t.Errorf("more than one object is printed:\n%s", text)
	}
	return r
}

// TestDevOnce is the main job, as a newcomer's CI runs it.
func TestDevOnce(t *testing.T) {
	tmp := tempDir(t)
	cmd := exec.CommandContext(t.Context(), "credence", "dev", "--once", "--json")
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, out.String(), errs.String())
	}
	if errs.Len() > 0 {
		t.Errorf("standard error: %s", errs.String())
	}
	checkReport(t, parseReport(t, out.String()))
	if err := syscall.Kill(-cmd.Process.Pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("a process of it is left: %v", err)
	}
	left, err := os.ReadDir(tmp)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func checkReport(t *testing.T, r report) {
	t.Helper()
	now := time.Now()
	w := r.Workload
	ends, err := time.Parse(time.RFC3339, w.X509.NotAfter)
	if r.TrustDomain != "dev.example" || w.SPIFFEID != "spiffe://dev.example/demo/workload" {
		t.Errorf("it is %s in %s", w.SPIFFEID, r.TrustDomain)
	}
	if len(w.X509.Serial)%2 == 1 || len(w.X509.Serial) < 16 || err != nil || !ends.After(now) || w.X509.ChainLength != 2 || w.X509.KeyType != "EC P-256" {
		t.Errorf("X509-SVID: %+v", w.X509)
	}
	if w.JWT.Alg != "RS256" || !slices.Equal(w.JWT.Aud, []string{"demo"}) || w.JWT.Exp <= now.Unix() {
		t.Errorf("JWT-SVID: %+v", w.JWT)
	}
	if len(r.Peers) != 1 || r.Peers[0].TrustDomain != "partner.example" || !r.Peers[0].Verified {
		t.Errorf("peers: %+v", r.Peers)
	}
	if r.Timing.FirstSVID <= 0 || r.Timing.Total < r.Timing.FirstSVID {
		t.Errorf("timing: %+v", r.Timing)
	}
	who := map[string][2]string{
		"aws-roles-anywhere": {"aws", "arn:aws:sts::123456789012:assumed-role/demo-anywhere/" + w.X509.Serial},
		"aws-web-identity":   {"aws", "arn:aws:sts::123456789012:assumed-role/demo-web-identity/"},
		"gcp":                {"gcp", "demo@credence-sandbox.iam.gserviceaccount.com"},
		"azure":              {"azure", "b3a9c7d5-1e2f-4a6b-8c9d-0e1f2a3b4c5d"},
	}
	for _, got := range r.Targets {
		want, ok := who[got.Name]
		delete(who, got.Name)
		expires, err := time.Parse(time.RFC3339, got.Expires)
		if !ok || !got.OK || got.Error != "" || got.Provider != want[0] || !strings.HasPrefix(got.Whoami, want[1]) || err != nil || !expires.After(now) {
			t.Errorf("target: %+v", got)
		}
	}
	if len(who) > 0 {
		t.Errorf("not in the report: %v", slices.Collect(maps.Keys(who)))
	}
}

// TestDevKeys holds the report's JSON against the list of its keys: what reads
// it must find every one, also where it is empty.
func TestDevKeys(t *testing.T) {
	var out, errs bytes.Buffer
	if code := credence.Run(t.Context(), []string{"dev", "--once", "--json"}, nil, &out, &errs); code != 0 {
		t.Fatalf("exit code %d: %s", code, errs.String())
	}
	goleak.VerifyNone(t)
	var got any
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"peers.trust_domain", "peers.verified",
		"targets.error", "targets.expires", "targets.name", "targets.ok", "targets.provider", "targets.whoami",
		"timing_ms.first_svid", "timing_ms.total", "trust_domain",
		"workload.jwt.alg", "workload.jwt.aud", "workload.jwt.exp", "workload.spiffe_id",
		"workload.x509.chain_length", "workload.x509.key_type", "workload.x509.not_after", "workload.x509.serial",
	}
	if diff := cmp.Diff(want, keysOf(got)); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
}

// keysOf lists the paths to all scalars, sorted; a list's elements count as one.
func keysOf(v any) []string {
	all := map[string]bool{}
	var walk func(path string, v any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for name, member := range v {
				walk(path+"."+name, member)
			}
		case []any:
			for _, e := range v {
				walk(path, e)
			}
		default:
			all[strings.TrimPrefix(path, ".")] = true
		}
	}
	walk("", v)
	return slices.Sorted(maps.Keys(all))
}

// TestDevTellsAPerson shows that each step is printed.
func TestDevTellsAPerson(t *testing.T) {
	code, out, errs := credenceCmd(t, "", "dev", "--once")
	if code != 0 || errs != "" {
		t.Errorf("exit code %d: %s", code, errs)
	}
	for _, step := range []string{
		"root sha256:", "lenient_loopback_issuer", "federate", "joined with a single-use token", "X509-SVID until", "JWT-SVID (RS256)",
		"aws-roles-anywhere: a credential until", "aws-web-identity: a credential until", "gcp: a credential until", "azure: a credential until",
		"mTLS both ways", "every step held: 4 of 4",
	} {
		if !strings.Contains(out, step) {
			t.Errorf("not told: %q\n%s", step, out)
		}
	}
	if strings.Contains(out, "Ctrl-C") {
		t.Errorf("--once invites to stay:\n%s", out)
	}
}

const denyAll = "kind: Deny\nname: broken\nmatch: [{node.name: dev}]\n"

// TestDevOnceTellsWhatFails breaks a step beforehand.
func TestDevOnceTellsWhatFails(t *testing.T) {
	t.Run("the demo workload is denied", func(t *testing.T) {
		d := startDev(t, tempDir(t))
		d.apply(t, denyAll)
		d.finish(t)
		code, out, errs := credenceCmd(t, "", "dev", "--once", "--json", "--data", d.data)
		r := parseReport(t, out)
		if code != 1 || !strings.Contains(errs, "the demo workload got no SVID") {
			t.Errorf("exit code %d: %s", code, errs)
		}
		for _, got := range r.Targets {
			if got.OK || got.Error == "" || got.Whoami != "" {
				t.Errorf("target: %+v", got)
			}
		}
		if len(r.Targets) != 4 || len(r.Peers) != 1 || r.Peers[0].Verified || r.Peers[0].Error == "" {
			t.Errorf("report: %+v", r)
		}
		if strings.Contains(strings.ReplaceAll(out, " ", ""), `"ok":true`) {
			t.Errorf("it says ok:\n%s", out)
		}
		_, out, _ = credenceCmd(t, "", "dev", "--once", "--data", d.data)
		if !strings.Contains(out, "NOT every step held: 0 of 4") || strings.Contains(out, "a credential until") {
			t.Errorf("a person is told:\n%s", out)
		}
	})
	t.Run("the peer's workload is denied", func(t *testing.T) {
		d := startDev(t, tempDir(t))
		if code, _, errs := credenceCmd(t, denyAll, "apply", "-f", "-", "--admin", d.json.Peer.AdminSocket); code != 0 {
			t.Fatal(errs)
		}
		d.finish(t)
		code, out, _ := credenceCmd(t, "", "dev", "--once", "--json", "--data", d.data)
		r := parseReport(t, out)
		if code != 1 || len(r.Peers) != 1 || r.Peers[0].Verified || r.Peers[0].Error == "" {
			t.Errorf("exit code %d: %+v", code, r.Peers)
		}
		for _, got := range r.Targets {
			if !got.OK {
				t.Errorf("target: %+v", got)
			}
		}
	})
}

// TestDevPort fixes the ports, and refuses one in use.
func TestDevPort(t *testing.T) {
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	data := tempDir(t)
	code, out, errs := credenceCmd(t, "", "dev", "--once", "--port", port, "--data", data)
	if code != 0 || !strings.Contains(out, "agents on 127.0.0.1:"+port+"\n") {
		t.Errorf("exit code %d: %s%s", code, out, errs)
	}
	l, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	code, out, errs = credenceCmd(t, "", "dev", "--once", "--json", "--port", port, "--data", data)
	if code != 2 || out != "" || strings.Count(errs, "\n") != 1 || !strings.Contains(errs, port) {
		t.Errorf("exit code %d: %s%s", code, out, errs)
	}
	left, err := filepath.Glob(filepath.Join(data, "run", "*.sock"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

// TestDevTwice shows that a second dev on the same data is refused without
// harm to the first, also where the sockets lie beside the data.
func TestDevTwice(t *testing.T) {
	d := startDev(t, tempDir(t))
	d.second(t)
	d.finish(t)
}
