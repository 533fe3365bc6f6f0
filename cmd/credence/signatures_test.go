package main_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// sources parses every Go file of ours that is no test.
func sources(t *testing.T, visit func(file string, f *ast.File)) {
	t.Helper()
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err == nil {
			visit(filepath.ToSlash(name), f)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// inFunctions yields each node with the function that it stands in.
func inFunctions(f *ast.File, visit func(function string, n ast.Node)) {
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Body != nil {
			ast.Inspect(fn.Body, func(n ast.Node) bool {
				visit(fn.Name.Name, n)
				return true
			})
		}
	}
}

// TestOnlyWaysToASignature lists who makes Grants and who calls the two
// signing functions. A new one belongs here only after somebody has thought
// about what it may sign.
func TestOnlyWaysToASignature(t *testing.T) {
	var makers, callers []string
	sources(t, func(file string, f *ast.File) {
		inFunctions(f, func(function string, n ast.Node) {
			switch n := n.(type) {
			case *ast.CompositeLit:
				name, ok := n.Type.(*ast.Ident)
				if ok && name.Name == "Grant" && len(n.Elts) > 0 && strings.HasPrefix(file, "broker/identity/") {
					makers = append(makers, function)
				}
			case *ast.CallExpr:
				s, ok := n.Fun.(*ast.SelectorExpr)
				if ok && (s.Sel.Name == "SignX509" || s.Sel.Name == "SignJWT") {
					callers = append(callers, file+" "+function+" "+s.Sel.Name)
				}
			}
		})
	})
	slices.Sort(makers)
	slices.Sort(callers)
	if d := cmp.Diff(wantMakers, makers); d != "" {
		t.Errorf("makers of Grants: %s", d)
	}
	if d := cmp.Diff(wantCallers, callers); d != "" {
		t.Errorf("callers of the signing functions: %s", d)
	}
}

var wantCallers = []string{
	"broker/exchange.go signJWT SignJWT", // of what Exchange and jwt decided
	"broker/exchange.go x509 SignX509",
	"broker/issue.go issueItem SignX509",
	"broker/issue.go issueJWT SignJWT",
	"broker/join.go admit SignX509",
	"broker/login.go login SignX509",
	"broker/server/svid.go renewOwn SignX509",
}

var wantMakers = []string{"decide", "forReserved"}
