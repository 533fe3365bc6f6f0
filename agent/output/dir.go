package output

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
)

// Generation is the file of a Set that counts up with each version of it.
const Generation = "generation"

// A File is one of a Set.
type File struct {
	Name string
	Data []byte
	Mode os.FileMode // exactly, whatever the umask
}

// Owner is whom written files belong to.
type Owner struct {
	UID uint32
	GID uint32
}

// A Set is a directory whose files are replaced all at once.
//
// The files stand in a directory of their version, which the link "..data"
// leads to; DIR/NAME is a link to ..data/NAME that never changes. Replacing
// ..data is one rename: at no moment is there half a version. A reader that
// must have files of one version (a key and its chain) opens DIR/..data as a
// directory and reads below that descriptor; or it reads the file generation
// before and after, and begins again if the number changed; or it reads one file
// that holds both. The version before stays until the next one comes, for those
// who read it still.
type Set struct {
	path  string
	owner Owner
}

// NewSet returns the set of files in a directory, which is made when it is
// first replaced. It refuses a path that is not absolute and clean.
func NewSet(path string, owner Owner) (*Set, error) {
	if err := CheckPath(path); err != nil {
		return nil, err
	}
	return &Set{path, owner}, nil
}

// CheckPath refuses what is not the one name of a place: a relative path, or
// one with . or .. in it.
func CheckPath(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" {
		return fmt.Errorf("%q: an absolute path without . and .. is wanted", path)
	}
	return nil
}

var fileName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// CheckName refuses what cannot be the name of a file of a Set.
func CheckName(name string) error {
	if !fileName.MatchString(name) || name == Generation {
		return fmt.Errorf("%q: a file's name of letters, digits, '.', '_' and '-' is wanted, which begins with a letter or digit and is not %s", name, Generation)
	}
	return nil
}
