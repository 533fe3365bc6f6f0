package local

import (
	"bytes"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// envFiles writes the environment to files.
func (s *Surfaces) envFiles() error {
	if s.cfg.EnvFile == "" {
		return nil
	}
	if err := s.envFile(s.cfg.EnvFile, s.Env()); err != nil {
		return err
	}
	for _, t := range s.targets {
		if t.cloud == "" {
			continue
		}
		if err := s.envFile(t.name+".env", s.EnvOf(t.name)); err != nil {
			return fmt.Errorf("target %s: %w", t.name, err)
		}
	}
	return nil
}

func (s *Surfaces) envFile(name string, env []string) error {
	var text bytes.Buffer
	for _, v := range env {
		name, value, _ := strings.Cut(v, "=")
		if name == "VAULT_TOKEN" { // it ends, and nobody reads the file again
			continue
		}
		quoted, err := quoteEnv(value)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		text.WriteString(name + "=" + quoted + "\n")
	}
	return s.dir.write(name, text.Bytes())
}

// quoteEnv is a value as POSIX shells (Shell Command Language §2.2) and
// systemd (systemd.exec(5), EnvironmentFile=) read it alike: as it is where
// nothing in it means anything to them, so that those who know no quotes read it
// too; else in double quotes, with a backslash before each of the four that
// mean something there.
func quoteEnv(value string) (string, error) {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-:,@%+="
	switch {
	case !utf8.ValidString(value) || strings.ContainsFunc(value, unicode.IsControl):
		return "", fmt.Errorf("%.200q: control characters, and what is not UTF-8, cannot be in an environment file", value)
	case value != "" && strings.Trim(value, plain) == "":
		return value, nil
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "$", `\$`, "`", "\\`").Replace(value) + `"`, nil
}
