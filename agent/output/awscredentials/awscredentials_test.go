//go:build linux

package awscredentials_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/output"
	"github.com/credence-id/credence/agent/output/awscredentials"
	"github.com/credence-id/credence/exchangers"
)

// A cloud gives credentials as the test says.
type cloud struct {
	key     string
	expires time.Time
	err     error
}

func (c *cloud) JWT(context.Context, []string, spiffeid.ID) (agent.JWTSVID, error) {
	return agent.JWTSVID{}, errors.ErrUnsupported
}

func (c *cloud) TargetToken(context.Context, string, bool) (agent.JWTSVID, agent.Target, error) {
	return agent.JWTSVID{}, agent.Target{}, errors.ErrUnsupported
}

func (c *cloud) Exchange(context.Context, string, string) (agent.Exchanged, error) {
	if c.err != nil {
		return agent.Exchanged{}, c.err
	}
	return agent.Exchanged{Credential: exchangers.Credential{Expires: c.expires, AWS: &exchangers.AWS{
		AccessKeyID: c.key, SecretAccessKey: exchangers.NewSecret("secret-" + c.key), SessionToken: exchangers.NewSecret("session"),
	}}}, nil
}

func open(t *testing.T, text string) (string, awscredentials.Config) {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "credentials")
	if text != "" {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return file, awscredentials.Config{
		File: file, Owner: output.Owner{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}, Profile: "web", Target: "aws", Output: "web",
	}
}

func newWriter(t *testing.T, cfg awscredentials.Config) *awscredentials.Writer {
	t.Helper()
	w, err := awscredentials.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func write(t *testing.T, w *awscredentials.Writer, from *cloud) output.Written {
	t.Helper()
	got, err := w.Write(t.Context(), from, agent.Update{})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The AWS SDK reads what is written; the user's own profile, and its mode
// apart, nothing changes.
func TestTheSDKReadsIt(t *testing.T) {
	const own = "[default]\naws_access_key_id = AKIAOWN\naws_secret_access_key = own\n"
	file, cfg := open(t, own)
	w := newWriter(t, cfg)
	now := time.Now()
	got := write(t, w, &cloud{key: "ASIA1", expires: now.Add(time.Hour)})
	if half := got.Again.Sub(now); !got.Changed || half < 30*time.Minute || half > 34*time.Minute {
		t.Errorf("%+v: due after %s", got, half)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	t.Setenv("AWS_CONFIG_FILE", os.DevNull)
	for profile, want := range map[string]string{"web": "ASIA1 secret-ASIA1 session", "default": "AKIAOWN own "} {
		sdk, err := config.LoadDefaultConfig(t.Context(), config.WithSharedCredentialsFiles([]string{file}), config.WithSharedConfigProfile(profile), config.WithRegion("eu-west-1"))
		if err != nil {
			t.Fatal(err)
		}
		c, err := sdk.Credentials.Retrieve(t.Context())
		if got := fmt.Sprint(c.AccessKeyID, " ", c.SecretAccessKey, " ", c.SessionToken); err != nil || got != want {
			t.Errorf("%s: %q %v", profile, got, err)
		}
	}
	// While the cloud gives the same one, it is asked every minute.
	if again := write(t, w, &cloud{key: "ASIA1", expires: now.Add(time.Hour)}); again.Changed || time.Until(again.Again) > time.Minute {
		t.Errorf("%+v", again)
	}
	if err := w.Erase(t.Context()); err != nil || read(t, file) != own {
		t.Errorf("after the erasure: %q %v", read(t, file), err)
	}
}

func TestFailuresWriteNothing(t *testing.T) {
	t.Parallel()
	file, cfg := open(t, "")
	w := newWriter(t, cfg)
	write(t, w, &cloud{key: "ASIA1", expires: time.Now().Add(time.Hour)})
	before := read(t, file)
	if _, err := w.Write(t.Context(), &cloud{err: agent.ErrUnavailable}, agent.Update{}); err == nil || read(t, file) != before {
		t.Errorf("the cloud is away: %v", err)
	}
	if _, err := w.Write(t.Context(), &cloud{key: "ASIA\n[default]", expires: time.Now().Add(time.Hour)}, agent.Update{}); err == nil || read(t, file) != before {
		t.Errorf("a key of two lines: %v", err)
	}
	// Refused, it goes at once.
	if _, err := w.Write(t.Context(), &cloud{err: agent.ErrDenied}, agent.Update{}); !errors.Is(err, agent.ErrDenied) || strings.Contains(read(t, file), "ASIA1") {
		t.Errorf("no longer listed: %v", err)
	}
}

// What others could have placed is neither read nor replaced.
func TestItsOwnersFileOnly(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(t *testing.T, file string){
		"a link": func(t *testing.T, file string) {
			rename(t, file, file+".real")
			if err := os.Symlink(file+".real", file); err != nil {
				t.Fatal(err)
			}
		},
		"a second name": func(t *testing.T, file string) {
			if err := os.Link(file, file+".too"); err != nil {
				t.Fatal(err)
			}
		},
		"a directory": func(t *testing.T, file string) {
			rename(t, file, file+".real")
			if err := os.Mkdir(file, 0o755); err != nil {
				t.Fatal(err)
			}
		},
		"another's": func(t *testing.T, file string) {
			if os.Geteuid() != 0 {
				t.Skip("only root gives files away")
			}
			if err := os.Chown(file, 4242, 4242); err != nil {
				t.Fatal(err)
			}
		},
		"where others write": func(t *testing.T, file string) {
			if err := os.Chmod(filepath.Dir(file), 0o777); err != nil {
				t.Fatal(err)
			}
		},
		"no directory": func(t *testing.T, file string) { rename(t, filepath.Dir(file), filepath.Dir(file)+".gone") },
	} {
		t.Run(name, func(t *testing.T) {
			file, cfg := open(t, "[a]\nx = 1\n")
			spoil(t, file)
			w := newWriter(t, cfg)
			if _, err := w.Write(t.Context(), &cloud{key: "ASIA1", expires: time.Now().Add(time.Hour)}, agent.Update{}); err == nil {
				t.Error("written")
			}
			if w.Check() == nil {
				t.Error("it is said to be fine")
			}
		})
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// Many who write to one file lose nothing of each other's.
func TestWritersSideBySide(t *testing.T) {
	t.Parallel()
	file, cfg := open(t, "")
	var writing sync.WaitGroup
	for n := range 8 {
		c := cfg
		c.Profile, c.Output = fmt.Sprintf("p%d", n), fmt.Sprintf("o%d", n)
		w := newWriter(t, c)
		writing.Go(func() {
			for m := range 5 {
				if _, err := w.Write(t.Context(), &cloud{key: fmt.Sprintf("K%d-%d", n, m), expires: time.Now().Add(time.Hour)}, agent.Update{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writing.Wait()
	text := read(t, file)
	for n := range 8 {
		if !strings.Contains(text, fmt.Sprintf("[p%d]\n# written by credence, output o%d\naws_access_key_id = K%d-4\n", n, n, n)) {
			t.Errorf("of p%d is there: %s", n, text)
		}
	}
}

func TestComplete(t *testing.T) {
	t.Parallel()
	for want, cfg := range map[string]awscredentials.Config{
		"":          {File: "/home/a/.aws/credentials", Target: "t"},
		"file: ":    {File: "~/.aws/credentials", Target: "t"},
		"profile: ": {File: "/a/c", Target: "t", Profile: "a]"},
		"target: ":  {File: "/a/c"},
	} {
		if err := cfg.Complete(); (err == nil) != (want == "") || err != nil && !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		}
	}
}
