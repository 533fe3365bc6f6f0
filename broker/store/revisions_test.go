package store_test

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/store"
)

// write applies "name=text" pairs, or "name" to delete, under one revision.
func write(t *testing.T, s *store.Store, all ...[2]string) uint64 {
	t.Helper()
	_, last, err := s.Resources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var changes []store.Change
	for _, one := range all {
		c := store.Change{Kind: "Identity", Name: one[0], Owner: "team"}
		if one[1] != "" {
			c.Body = []byte(one[1])
		}
		changes = append(changes, c)
	}
	written, err := s.Apply(t.Context(), last, store.Act{Actor: "uid:0", What: "apply"}, changes)
	if err != nil {
		t.Fatal(err)
	}
	return written[0].Revision
}

func texts(all []store.Resource) (texts []string) {
	for _, r := range all {
		texts = append(texts, r.Name+"="+string(r.Body))
	}
	return texts
}

func wantAt(t *testing.T, s *store.Store, revision uint64, want ...string) {
	t.Helper()
	all, _, err := s.ResourcesAt(t.Context(), revision)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, texts(all)); d != "" {
		t.Errorf("revision %d: want -, got +:\n%s", revision, d)
	}
}

func wantKept(t *testing.T, s *store.Store, oldest uint64, revisions int) {
	t.Helper()
	all, got, err := s.Revisions(t.Context(), 0, "", "", 1000)
	if err != nil || got != oldest || len(all) != revisions {
		t.Fatalf("%d revisions from %d on are kept (%v), want %d from %d on", len(all), got, err, revisions, oldest)
	}
	if oldest > 1 {
		if _, _, err := s.ResourcesAt(t.Context(), oldest-1); !errors.Is(err, broker.ErrNotFound) {
			t.Fatalf("revision %d: %v", oldest-1, err)
		}
	}
}

func TestPolicyOfLongAgoIsForgotten(t *testing.T) {
	s := open(t, t.TempDir())
	s.Keep(10, 1000, 2)
	write(t, s, [2]string{"still", "1"}, [2]string{"gone", "1"}, [2]string{"b", "1"}, [2]string{"later", "1"})
	write(t, s, [2]string{"gone"}, [2]string{"b", "2"})
	for i := range 9 { // revisions 3 to 11
		write(t, s, [2]string{"a", fmt.Sprint(i + 3)})
	}
	wantKept(t, s, 1, 11) // a tenth more
	wantAt(t, s, 1, "b=1", "gone=1", "later=1", "still=1")
	write(t, s, [2]string{"later"})
	wantKept(t, s, 3, 10)
	wantAt(t, s, 3, "a=3", "b=2", "later=1", "still=1")
	wantAt(t, s, 11, "a=11", "b=2", "later=1", "still=1")
	wantAt(t, s, 12, "a=11", "b=2", "still=1")
	for revision, want := range map[uint64][]string{1: {"later=1", "still=1"}, 2: {"b=2"}} { // what stands to this day
		written, err := s.Written(t.Context(), revision)
		var got []string
		for _, r := range written {
			got = append(got, r.Name+"="+string(r.Body))
		}
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Errorf("kept of revision %d: %v; want -, got +:\n%s", revision, err, d)
		}
	}
	for range 30 { // deletions, too, are forgotten once nothing is before them
		write(t, s, [2]string{"a", "x"}, [2]string{"later", "1"})
		write(t, s, [2]string{"later"})
	}
	if _, last, err := s.Resources(t.Context()); err != nil || last != 72 {
		t.Errorf("the last revision is %d (%v)", last, err)
	}
	written, err := s.Written(t.Context(), 12)
	if err != nil || len(written) > 0 {
		t.Errorf("of revision 12 %v is kept (%v)", written, err)
	}
}

func TestManyResourcesAreForgottenSooner(t *testing.T) {
	s := open(t, t.TempDir())
	s.Keep(10, 20, 2)
	five := [][2]string{{"a", "1"}, {"b", "1"}, {"c", "1"}, {"d", "1"}, {"e", "1"}}
	for range 4 {
		write(t, s, five...)
	}
	wantKept(t, s, 1, 4)
	write(t, s, five...)
	wantKept(t, s, 2, 4)
	many := make([][2]string, 40)
	for i := range many {
		many[i] = [2]string{fmt.Sprint("m", i), "1"}
	}
	write(t, s, many...)
	wantKept(t, s, 5, 2) // the last few, however much they wrote
	wantAt(t, s, 5, "a=1", "b=1", "c=1", "d=1", "e=1")
}

// What a program wrote that knew no revisions of policy is listed as it wrote it,
// each resource by itself.
func TestRevisionsOfAnOlderProgram(t *testing.T) {
	dir := t.TempDir()
	old := `CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), schema_version BIGINT NOT NULL, revision BIGINT NOT NULL);
		INSERT INTO head VALUES (1, 8, 7);`
	for v := range 8 {
		text, err := os.ReadFile(fmt.Sprintf("schema/%03d.sql", v+1))
		if err != nil {
			t.Fatal(err)
		}
		old += string(text)
	}
	alter(t, dir, old+`
		INSERT INTO resource VALUES ('Identity', 'a', 1, 'team', '1', 'uid:0', 1000), ('Identity', 'b', 2, 'team', '1', 'uid:0', 1000),
			('Identity', 'a', 3, 'team', '2', 'uid:1', 2000), ('Identity', 'b', 5, 'team', NULL, 'uid:0', 3000), ('Identity', 'b', 7, 'team', '3', 'uid:0', 4000)`)
	s := open(t, dir)
	all, oldest, err := s.Revisions(t.Context(), 0, "", "", 10)
	if err != nil || oldest != 1 {
		t.Fatalf("from %d on (%v)", oldest, err)
	}
	var got []string
	for _, r := range all {
		got = append(got, fmt.Sprintln(r.Revision, r.What, r.Owner, r.Actor, r.Created, r.Changed, r.Deleted, r.WrittenAt.Unix()))
	}
	want := []string{"7 apply team uid:0 1 0 0 4\n", "5 delete team uid:0 0 0 1 3\n", "3 apply team uid:1 0 1 0 2\n", "2 apply team uid:0 1 0 0 1\n", "1 apply team uid:0 1 0 0 1\n"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("want -, got +:\n%s", d)
	}
	wantAt(t, s, 4, "a=2", "b=1")
	wantAt(t, s, 6, "a=2")
	wantAt(t, s, 7, "a=2", "b=3")
}
