package local_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/credence-id/credence/agent/local"
)

// bySystemd is a value as systemd.exec(5) says that EnvironmentFile= reads it,
// if it's whole.
func bySystemd(text string) (string, error) {
	var out strings.Builder
	quoted := strings.HasPrefix(text, `"`)
	if quoted {
		rest, ok := strings.CutSuffix(text[1:], `"`)
		if !ok {
			return "", errors.New("the quote is open")
		}
		text = rest
	} else if strings.HasPrefix(text, "'") || text != strings.TrimSpace(text) {
		return "", errors.New("it is no plain value")
	}
	for n := 0; n < len(text); n++ {
		switch {
		case text[n] == '"' && quoted:
			return "", errors.New("a quote within")
		case text[n] == '\\' && !quoted:
			return "", errors.New("a backslash without quotes")
		case text[n] == '\\' && n+1 < len(text) && strings.IndexByte("\"\\`$", text[n+1]) >= 0:
			n++
		}
		out.WriteByte(text[n])
	}
	return out.String(), nil
}

var values = []string{
	"", "plain", "/run/web/env", "a b", " a ", "#x", "a#b", "~", "~/x", "a:~/x", "it's", `"`, `"a"`, `\`, `\\`, `a\"b`, "$HOME", "${X}", "$(id)", "`id`",
	"a;b", "a&b", "*", "!x", "http://127.0.0.1:1/x?y=z&w", "ü", "a=b", "'", `\$`, `x\`, "(x)", "<x>",
}

// Shells and systemd read one and the same.
func TestAnEnvironmentFileIsReadAlike(t *testing.T) {
	t.Parallel()
	for _, want := range values {
		quoted, err := local.QuoteEnv(want)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := bySystemd(quoted); err != nil || got != want {
			t.Errorf("systemd reads %q as %q: %v", quoted, got, err)
		}
	}
	for _, shell := range []string{"sh", "bash"} {
		path, err := exec.LookPath(shell)
		if err != nil {
			continue
		}
		var text, want strings.Builder
		for _, v := range values {
			quoted, err := local.QuoteEnv(v)
			if err != nil {
				t.Fatal(err)
			}
			text.WriteString("V=" + quoted + "\nprintf '%s\\n' \"$V\"\n")
			want.WriteString(v + "\n")
		}
		file := filepath.Join(t.TempDir(), "env")
		if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := exec.Command(path, "-ec", ". "+file).Output()
		if err != nil || string(got) != want.String() {
			t.Errorf("%s reads %s: %v, want %s", shell, got, err, want.String())
		}
	}
	for _, bad := range []string{"a\nb", "a\x00b", "\x7f", "\xff", "a\rb", "\u0085"} {
		if got, err := local.QuoteEnv(bad); err == nil {
			t.Errorf("%q becomes %s", bad, got)
		}
	}
}

func FuzzQuoteEnv(f *testing.F) {
	for _, v := range values {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, value string) {
		quoted, err := local.QuoteEnv(value)
		if err != nil {
			return
		}
		if got, err := bySystemd(quoted); err != nil || got != value {
			t.Errorf("%q: %q, %v", quoted, got, err)
		}
	})
}

// A Vault token ends, and who read the file reads it no more.
func TestTheEnvironmentFileHasNoCredential(t *testing.T) {
	from := clouds()
	vault := bearerAnswer("oauth", "{}", "")
	vault.GetBearer().VaultAddress = "https://vault.example"
	from.put("vault", vault)
	s := opened(t, from, []string{"web", "anywhere", "azure", "vault"}, func(c *local.Config) { c.EnvFile = "env" })
	text := s.read("env")
	if strings.Contains(text, "secret-token") || strings.Contains(text, "secret-key") || !strings.Contains(text, "VAULT_ADDR=https://vault.example\n") {
		t.Error(text)
	}
	if got := s.read("anywhere.env"); !strings.Contains(got, "AWS_CONTAINER_CREDENTIALS_FULL_URI="+s.env("anywhere", "AWS_CONTAINER_CREDENTIALS_FULL_URI")+"\n") {
		t.Error(got)
	}
}
