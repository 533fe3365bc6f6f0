package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/credence-id/credence/broker/resource/strict"
)

// ReadSmall reads a file of at most a megabyte.
func ReadSmall(path string) ([]byte, error) {
	text, err := ReadUpTo(path, MaxConfig+1)
	if err == nil && len(text) > MaxConfig {
		err = fmt.Errorf("%s: more than %d bytes", path, MaxConfig)
	}
	return text, err
}

// ReadUpTo reads the beginning of a file.
func ReadUpTo(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}

// MaxConfig bounds broker.yaml and agent.yaml.
const MaxConfig = 1 << 20

// LoadFile reads a YAML file strictly into a pointer.
func LoadFile(path string, into any) error {
	f, err := os.Open(path)
	if err != nil {
		return BadInput(err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, MaxConfig+1))
	if err != nil {
		return BadInput(fmt.Errorf("%s: %w", path, err))
	}
	return BadInput(ParseFile(path, text, into))
}

// ParseFile reads a text of such a file; path names it in errors.
func ParseFile(path string, text []byte, into any) error {
	if len(text) > MaxConfig {
		return fmt.Errorf("%s: more than %d bytes: not a configuration", path, MaxConfig)
	}
	return strict.Decode(path, text, into)
}

// InFile puts the place in a configuration before an error that begins with
// the name of its field: the field's, or of what it stands in, or the file's
// beginning.
func InFile(file string, err error) error {
	if err == nil {
		return nil
	}
	line, column := 1, 1
	field, _, _ := strings.Cut(err.Error(), ": ")
	if text, e := ReadSmall(file); e == nil {
		line, column = placeOf(text, field)
	}
	return fmt.Errorf("%s:%d:%d: %w", file, line, column, err)
}

var fieldPattern = regexp.MustCompile(`^[a-z0-9_]+(\[[0-9]+\])?(\.[a-z0-9_]+(\[[0-9]+\])?)*$`)

func placeOf(text []byte, field string) (line, column int) {
	for fieldPattern.MatchString(field) {
		if path, err := yaml.PathString("$." + field); err == nil {
			if node, err := path.ReadNode(bytes.NewReader(text)); err == nil {
				at := node.GetToken().Position
				return at.Line, at.Column
			}
		}
		field = field[:max(0, strings.LastIndexByte(field, '.'))]
	}
	return 1, 1
}

// SetDefault gives an empty string a value.
func SetDefault(s *string, value string) {
	if *s == "" {
		*s = value
	}
}

// LifeField reads a duration of a file; empty is zero.
func LifeField(field, text string, least, most time.Duration) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < least || d > most {
		return 0, fmt.Errorf("%s: %q: a life from %s to %s is wanted, such as %s", field, text, least, most, least)
	}
	return d, nil
}

// Inside says whether file lies in dir, by their names.
func Inside(file, dir string) bool {
	rel, err := filepath.Rel(Absolute(dir), Absolute(file))
	return err != nil || rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator))
}
