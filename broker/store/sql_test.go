package store_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// oneEngine is what only one of SQLite and PostgreSQL takes, or what they take
// to mean two things.
var oneEngine = map[string]*regexp.Regexp{
	"a ? placeholder":             regexp.MustCompile(`\?`),
	"AUTOINCREMENT or SERIAL":     regexp.MustCompile(`(?i)\b(autoincrement|(big|small)serial|serial\s+primary|auto_increment)\b`),
	"INSERT OR, or REPLACE INTO":  regexp.MustCompile(`(?i)\b(insert\s+or|update\s+or|replace\s+into)\b`),
	"ROWID":                       regexp.MustCompile(`(?i)\b(_?rowid_?|oid|without\s+rowid|strict)\b`),
	"PRAGMA, ATTACH or VACUUM":    regexp.MustCompile(`(?i)\b(pragma|attach|detach|vacuum|glob|collate|indexed)\b`),
	"a function of one engine":    regexp.MustCompile(`(?i)\b(datetime|julianday|strftime|unixepoch|ifnull|iif|hex|unhex|randomblob|zeroblob|last_insert_rowid|changes|total_changes|group_concat|json\w*|instr|printf|typeof|now|to_timestamp|string_agg|nextval|gen_random_uuid|char_length)\s*\(`),
	"a type of one engine":        regexp.MustCompile(`(?i)\b(blob|datetime|timestamptz?|jsonb?|uuid|boolean|bool|varchar|real|double|int8|numeric)\b`),
	"a backquote, or a bracket":   regexp.MustCompile("[`\\[\\]]"),
	"a double quote":              regexp.MustCompile(`"`),
	"a hex literal of one engine": regexp.MustCompile(`(?i)\b[xe]'`),
	"IS with a value":             regexp.MustCompile(`(?i)\bis\s+(not\s+)?[$0-9'a-mo-z]`),
	"a boolean as a number":       regexp.MustCompile(`(?i)\b(true|false)\b`),
	"LIMIT with two numbers":      regexp.MustCompile(`(?i)\blimit\s+\S+\s*,`),
	"FOR UPDATE or LISTEN":        regexp.MustCompile(`(?i)\b(for\s+update|listen|notify|ilike|lateral)\b|::`),
}

// statement finds the texts in Go sources that are SQL.
var statement = regexp.MustCompile(`(?i)^\s*(select|insert|update|delete|create|drop|alter|with|pragma|begin|commit|replace)\b`)

func complaints(text string) (all []string) {
	for what, pattern := range oneEngine {
		if m := pattern.FindString(text); m != "" {
			all = append(all, what+": "+m)
		}
	}
	return all
}

func TestOneSQL(t *testing.T) {
	texts := map[string]string{}
	schemas, err := filepath.Glob("schema/*.sql")
	if err != nil || len(schemas) == 0 {
		t.Fatalf("%d schemas (%v)", len(schemas), err)
	}
	comment := regexp.MustCompile(`--.*`)
	for _, path := range schemas {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		texts[path] = comment.ReplaceAllString(string(data), "")
	}
	sources, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	files := token.NewFileSet()
	for _, path := range sources {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(files, path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return true
			}
			if text, err := strconv.Unquote(lit.Value); err == nil && statement.MatchString(text) {
				texts[files.Position(lit.Pos()).String()] = text
			}
			return true
		})
	}
	if len(texts) < 20 {
		t.Fatalf("only %d texts are found", len(texts))
	}
	for at, text := range texts {
		for _, c := range complaints(text) {
			t.Errorf("%s: PostgreSQL or SQLite takes no %s", at, c)
		}
	}
}

func TestOneSQLFinds(t *testing.T) {
	for _, text := range []string{
		"SELECT a FROM b WHERE c = ?", "CREATE TABLE a (b INTEGER PRIMARY KEY AUTOINCREMENT)", "INSERT OR REPLACE INTO a VALUES ($1)",
		"SELECT rowid FROM a", "SELECT ifnull(a, 1) FROM b", "CREATE TABLE a (b BLOB)", "SELECT a FROM b WHERE c IS $1", "SELECT a FROM b LIMIT 1, 2",
		"SELECT a::text FROM b", `SELECT "a" FROM b`, "SELECT x'00'",
	} {
		if len(complaints(text)) == 0 {
			t.Errorf("nothing is found in %s", text)
		}
	}
	if got := complaints("SELECT a IS NULL, b IS NOT NULL FROM c WHERE d = $1 ORDER BY e LIMIT 1"); len(got) > 0 {
		t.Error(got)
	}
}
