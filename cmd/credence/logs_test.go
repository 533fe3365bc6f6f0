package main_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// logMethods are those of slog, and where the message stands among the arguments.
var logMethods = map[string]int{
	"Debug": 0, "Info": 0, "Warn": 0, "Error": 0, "DebugContext": 1, "InfoContext": 1, "WarnContext": 1, "ErrorContext": 1, "Log": 2, "LogAttrs": 2,
}

var logKey = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)

// logCall says what is wrong with a call, if it is one of slog's: its message and
// keys must be constants, so that who searches or counts log lines finds them, and
// nothing that somebody else chose stands where we speak.
func logCall(c *ast.CallExpr, consts map[string]bool) string {
	f, ok := c.Fun.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	at, ok := logMethods[f.Sel.Name]
	if !ok || !isLogger(f.X) || len(c.Args) <= at {
		return ""
	}
	if !constant(c.Args[at], consts) {
		return "its message is no constant"
	}
	rest := c.Args[at+1:]
	if c.Ellipsis != token.NoPos {
		rest = rest[:len(rest)-1] // a slice, made where its keys are looked at
	}
	for i := 0; i < len(rest); i++ {
		if call, ok := rest[i].(*ast.CallExpr); ok { // slog.String("key", ..)
			if len(call.Args) == 0 || !key(call.Args[0], consts) {
				return "an attribute's key is no constant"
			}
			continue
		}
		if !key(rest[i], consts) {
			return "a key is no constant, or in other words than small_letters"
		}
		i++ // its value
	}
	return ""
}

// isLogger says whether an expression is one of the names that loggers have here.
func isLogger(x ast.Expr) bool {
	name := ""
	switch x := x.(type) {
	case *ast.Ident:
		name = x.Name
	case *ast.SelectorExpr:
		name = x.Sel.Name
	case *ast.CallExpr: // p.Logger().Warn(..), log.With(..).Warn(..)
		if f, ok := x.Fun.(*ast.SelectorExpr); ok {
			return f.Sel.Name == "Logger" || f.Sel.Name == "With" && isLogger(f.X)
		}
	}
	return slices.Contains([]string{"log", "Log", "logger", "Logger", "slog"}, name)
}

func constant(x ast.Expr, consts map[string]bool) bool {
	switch x := x.(type) {
	case *ast.BasicLit:
		return x.Kind == token.STRING
	case *ast.Ident:
		return consts[x.Name]
	case *ast.BinaryExpr:
		return constant(x.X, consts) && constant(x.Y, consts)
	}
	return false
}

func key(x ast.Expr, consts map[string]bool) bool {
	if lit, ok := x.(*ast.BasicLit); ok {
		text, err := strconv.Unquote(lit.Value)
		return err == nil && logKey.MatchString(text)
	}
	return constant(x, consts)
}

// constants are the names of a file's constants.
func constants(f *ast.File) map[string]bool {
	all := map[string]bool{}
	ast.Inspect(f, func(n ast.Node) bool {
		if d, ok := n.(*ast.GenDecl); ok && d.Tok == token.CONST {
			for _, s := range d.Specs {
				for _, name := range s.(*ast.ValueSpec).Names {
					all[name.Name] = true
				}
			}
		}
		return true
	})
	return all
}

// TestLogsAreConstant holds every line of log that we write against that.
func TestLogsAreConstant(t *testing.T) {
	t.Parallel()
	calls := 0
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		consts := constants(f)
		ast.Inspect(f, func(n ast.Node) bool {
			c, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if f, ok := c.Fun.(*ast.SelectorExpr); ok && isLogger(f.X) {
				calls++
			}
			if wrong := logCall(c, consts); wrong != "" {
				t.Errorf("%s: %s", set.Position(c.Pos()), wrong)
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if calls < 200 {
		t.Errorf("%d calls were looked at", calls)
	}
}

// The check sees what it is for.
func TestLogCall(t *testing.T) {
	t.Parallel()
	for text, good := range map[string]bool{
		`log.Info("made", "name", n)`:                       true,
		`s.cfg.Log.WarnContext(ctx, "made", "name", n)`:     true,
		`log.Info("made " + n)`:                             false,
		`log.Info(n)`:                                       false,
		`log.Info("made", n, 1)`:                            false,
		`log.Info("made", "Name", n)`:                       false,
		`log.With("a", 1).Error(n)`:                         false,
		`p.Logger().Warn("made", slog.String("name", n))`:   true,
		`p.Logger().Warn("made", slog.String(n, "name"))`:   false,
		`log.LogAttrs(ctx, level, "made", attrs...)`:        true,
		`log.Log(ctx, level, fmt.Sprintf("made %s", n), 1)`: false,
		`t.Log(n)`: true,
	} {
		x, err := parser.ParseExpr(text)
		if err != nil {
			t.Fatal(err)
		}
		if wrong := logCall(x.(*ast.CallExpr), nil); (wrong == "") != good {
			t.Errorf("%s: %q", text, wrong)
		}
	}
}
