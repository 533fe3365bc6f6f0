//go:build unix

package keys_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/credence-id/credence/broker/keys"
)

// info is a file's, whoever runs the test.
type info struct {
	mode     fs.FileMode
	uid, gid int
}

func (i info) Name() string       { return "secret" }
func (i info) Size() int64        { return 32 }
func (i info) Mode() fs.FileMode  { return i.mode }
func (i info) ModTime() time.Time { return time.Time{} }
func (i info) IsDir() bool        { return false }
func (i info) Sys() any           { return &syscall.Stat_t{Uid: uint32(i.uid), Gid: uint32(i.gid)} }

func TestCheckSecret(t *testing.T) {
	us := os.Geteuid()
	for name, row := range map[string]struct {
		info
		taken bool
	}{
		"ours":                          {info{0o600, us, 5}, true},
		"ours, to read":                 {info{0o400, us, 5}, true},
		"root's":                        {info{0o400, 0, 5}, true},
		"root's, for a group of ours":   {info{0o440, 0, 65532}, true},
		"root's, for another group":     {info{0o440, 0, 5}, false},
		"somebody's, for our group":     {info{0o440, us + 1, 65532}, false},
		"root's, that our group writes": {info{0o460, 0, 65532}, false},
		"root's, that it writes itself": {info{0o640, 0, 65532}, false},
		"root's, for all":               {info{0o444, 0, 65532}, false},
		"root's, for all but us":        {info{0o404, 0, 65532}, false},
		"somebody's":                    {info{0o400, us + 1, 5}, false},
	} {
		if err := keys.CheckSecret(row.info, 100, 65532); (err == nil) != row.taken {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What is opened is what was checked.
func TestOpenSecret(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kek")
	if err := os.WriteFile(file, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	open := func() error {
		f, err := keys.OpenSecret(file)
		if err == nil {
			err = f.Close()
		}
		return err
	}
	if err := open(); err != nil {
		t.Error(err)
	}
	if err := os.Chmod(file, 0o444); err != nil {
		t.Fatal(err)
	}
	if err := open(); err == nil {
		t.Error("what all may read is opened")
	}
	if err := os.Chmod(file, 0o440); err != nil {
		t.Fatal(err)
	}
	if err := open(); (err == nil) != (os.Geteuid() == 0) { // in a group of ours
		t.Errorf("for the group, as uid %d: %v", os.Geteuid(), err)
	}
}
