package agentcmd_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/credence-id/credence/agent/output"
	"github.com/credence-id/credence/cmd/agentcmd"
	"github.com/credence-id/credence/cmd/cli"
)

// An estate is a machine on which outputs were written.
type estate struct {
	*testing.T
	dir string
	log bytes.Buffer
}

func newEstate(t *testing.T) *estate {
	t.Helper()
	e := &estate{T: t, dir: t.TempDir()}
	for _, d := range []string{e.dir, filepath.Dir(e.dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"data/node", "home", "sdk", "open"} {
		if err := os.MkdirAll(filepath.Join(e.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return e
}

// start is what an agent with these outputs does first.
func (e *estate) start(outputs string) error {
	e.Helper()
	text := fmt.Sprintf("trust_domain: example.org\ndata: %s/data\nbroker: [\"127.0.0.1:1\"]\ntrust: {ca_pin: [\"sha256:%s\"]}\njoin: {method: token, token_file: t}\noutputs: [%s]\n",
		e.dir, strings.Repeat("ab", 32), strings.NewReplacer("DIR", e.dir, "UID", fmt.Sprint(os.Geteuid())).Replace(outputs))
	var f agentcmd.File
	err := cli.ParseFile("agent.yaml", []byte(text), &f)
	if err == nil {
		err = f.Complete()
	}
	if err != nil {
		e.Fatal(err)
	}
	e.log.Reset()
	return agentcmd.EraseLeftovers(&f, e.Context(), slog.New(slog.NewTextHandler(&e.log, nil)))
}

func (e *estate) must(err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

func (e *estate) path(name string) string { return filepath.Join(e.dir, name) }

// set writes a directory of an output's files.
func (e *estate) set(dir string) {
	e.Helper()
	s, err := output.NewSet(e.path(dir), output.Owner{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())})
	e.must(err)
	_, err = s.Replace([]output.File{{Name: "svid_key.pem", Data: []byte("key"), Mode: 0o600}})
	e.must(err)
}

func (e *estate) put(name, text string) {
	e.Helper()
	e.must(os.WriteFile(e.path(name), []byte(text), 0o600))
}

// sdk writes what the SDKs' directory holds.
func (e *estate) sdk(dir string) {
	e.Helper()
	e.must(os.MkdirAll(e.path(dir), 0o700))
	e.put(dir+"/.credence", "")
	e.put(dir+"/env", "AWS_CONTAINER_AUTHORIZATION_TOKEN=secret")
	e.put("data/node/sdk-web.json", `{"seed": "secret"}`)
}

func (e *estate) gone(name string) bool {
	_, err := os.Lstat(e.path(name))
	return errors.Is(err, fs.ErrNotExist)
}

func (e *estate) read(name string) string {
	e.Helper()
	text, err := os.ReadFile(e.path(name))
	e.must(err)
	return string(text)
}

const (
	filesOutput = "{name: web, uid: UID, files: {dir: DIR/tls}}"
	awsOutput   = "{name: web, uid: UID, aws_credentials: {file: DIR/home/credentials, profile: web, target: a}}"
	sdkOutput   = "{name: web, uid: UID, sdk: {dir: DIR/sdk/web, targets: [a]}}"
	theirs      = "[own]\naws_access_key_id = AKIAOWN\n"
	profile     = theirs + "[web]\n# written by credence, output web\naws_access_key_id = ASIA1\naws_secret_access_key = s\naws_session_token = t\n"
)

// What an output that agent.yaml names no more wrote is erased, and nothing else.
func TestLeftovers(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		output string
		write  func(*estate)
		stands func(*estate) bool // what was written
		others func(*estate) bool // and what somebody else did
	}{
		"files": {filesOutput, func(e *estate) { e.set("tls"); e.put("tls/theirs", "x") },
			func(e *estate) bool { return !e.gone("tls/svid_key.pem") && e.read("tls/svid_key.pem") == "key" },
			func(e *estate) bool { return e.read("tls/theirs") == "x" }},
		"aws_credentials": {awsOutput, func(e *estate) { e.put("home/credentials", profile) },
			func(e *estate) bool { return strings.Contains(e.read("home/credentials"), "ASIA1") },
			func(e *estate) bool { return strings.HasPrefix(e.read("home/credentials"), theirs) }},
		"sdk": {sdkOutput, func(e *estate) { e.sdk("sdk/web"); e.sdk("sdk/other") },
			func(e *estate) bool { return !e.gone("sdk/web/env") && !e.gone("data/node/sdk-web.json") },
			func(e *estate) bool { return !e.gone("sdk/other/env") }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEstate(t)
			e.must(e.start(row.output)) // the place is noted before anything is written
			row.write(e)
			if list := e.read("data/node/outputs.json"); strings.Contains(list, "secret") {
				t.Errorf("a secret is on the list: %s", list)
			}
			e.must(e.start(row.output))
			if !row.stands(e) || e.log.Len() > 0 {
				t.Fatalf("an output that stands is erased: %s", e.log.String())
			}
			e.must(e.start("{name: another, uid: UID, files: {dir: DIR/another}}"))
			if row.stands(e) || !row.others(e) || !strings.Contains(e.log.String(), "is erased") || !strings.Contains(e.log.String(), "kind="+name) {
				t.Errorf("ours stands: %t, theirs: %t, %s", row.stands(e), row.others(e), e.log.String())
			}
			e.must(e.start(""))
			e.must(e.start(""))
			if list := e.read("data/node/outputs.json"); strings.Contains(list, "tls") || e.log.Len() > 0 {
				t.Errorf("the list is %s, %s", list, e.log.String())
			}
		})
	}
}

// Another output's files are not this one's, though they stand at the same place.
func TestLeftoversOfARename(t *testing.T) {
	t.Parallel()
	e := newEstate(t)
	e.must(e.start(filesOutput))
	e.set("tls")
	e.must(e.start(strings.Replace(filesOutput, "web", "shop", 1)))
	if !e.gone("tls/svid_key.pem") {
		t.Error("the one before's key is left for the other")
	}
}

// What was never written, or is gone, is no trouble.
func TestLeftoversThatAreNone(t *testing.T) {
	t.Parallel()
	e := newEstate(t)
	e.must(e.start(""))
	if !e.gone("data/node/outputs.json") {
		t.Error("a list of nothing")
	}
	e.must(e.start(filesOutput + ", " + strings.Replace(strings.Replace(awsOutput, "web", "b", 1), "DIR/home", "DIR/none", 1) + ", " + strings.Replace(sdkOutput, "web", "c", 1)))
	e.must(e.start(""))
	if strings.Contains(e.log.String(), "level=WARN") {
		t.Error(e.log.String())
	}
	// One that somebody else made at the place is theirs.
	e.must(e.start(filesOutput))
	e.must(os.Mkdir(e.path("tls"), 0o755))
	e.put("tls/svid_key.pem", "theirs")
	e.must(os.Symlink("..2026_theirs", e.path("tls/..data")))
	e.must(e.start(""))
	if e.read("tls/svid_key.pem") != "theirs" || e.gone("tls/..data") {
		t.Error("another's file is erased")
	}
}

// What cannot be erased safely is not, and is not forgotten.
func TestLeftoversThatAreNotOurs(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		output string
		write  func(*estate)
		stands string
	}{
		"a link among files of others": {"{name: web, uid: UID, files: {dir: DIR/open/tls}}", func(e *estate) {
			e.set("victim")
			e.must(os.Chmod(e.path("open"), 0o777|os.ModeSticky))
			e.must(os.Symlink(e.path("victim"), e.path("open/tls")))
		}, "victim/svid_key.pem"},
		"a link to a credentials file": {awsOutput, func(e *estate) {
			e.put("victim", profile)
			e.must(os.Symlink(e.path("victim"), e.path("home/credentials")))
		}, "victim"},
		"a link to a directory of SDKs": {sdkOutput, func(e *estate) {
			e.sdk("victim")
			e.must(os.Symlink(e.path("victim"), e.path("sdk/web")))
		}, "victim/env"},
		"a directory of somebody else's": {filesOutput, func(e *estate) {
			if os.Geteuid() != 0 {
				e.Skip("only root gives directories away")
			}
			e.set("tls")
			e.must(os.Chown(e.path("tls"), 4242, 4242))
		}, "tls/svid_key.pem"},
		"a Secret of a cluster that is away": {
			"{name: web, uid: UID, kubernetes_secret: {namespace: a, name: b, api: \"https://127.0.0.1:1\", ca_file: DIR/ca, token_file: DIR/token}}",
			func(e *estate) { e.put("token", "t"); e.put("ca", "none") }, "token",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEstate(t)
			e.must(e.start(row.output))
			row.write(e)
			before := e.read(row.stands)
			for range 2 {
				e.must(e.start(""))
				if e.gone(row.stands) || e.read(row.stands) != before || !strings.Contains(e.log.String(), "is not erased") {
					t.Errorf("%s", e.log.String())
				}
			}
		})
	}
}

// A list that cannot be read says nothing of what was left: a person must look.
func TestLeftoversUnreadable(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"{", strings.Repeat("x", 2<<20)} {
		e := newEstate(t)
		e.put("data/node/outputs.json", text)
		if err := e.start(filesOutput); err == nil {
			t.Errorf("a list of %d bytes is passed over", len(text))
		}
	}
}
