package audit

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// DefaultOrigin is the name of a broker that has been given none: the only one
// of its trust domain.
const DefaultOrigin = "broker"

// maxOrigin bounds a broker's name.
const maxOrigin = 63

// IDAt is what a caller quotes to the operator of a record in the files of one
// broker, such as "r-000123@b2"; of one with the default name, "r-000123".
func (r Ref) IDAt(origin string) string {
	if origin == "" || origin == DefaultOrigin {
		return r.ID()
	}
	return r.ID() + "@" + origin
}

// ParseID reads what IDAt wrote, or a sequence number alone. The origin is empty
// where none is named.
func ParseID(id string) (sequence uint64, origin string, err error) {
	digits, origin, named := strings.Cut(id, "@")
	sequence, err = strconv.ParseUint(strings.TrimPrefix(digits, "r-"), 10, 64)
	switch {
	case err == nil && sequence == 0, err != nil:
		err = fmt.Errorf("record %.80q: r-NUMBER, or r-NUMBER@BROKER is wanted", id)
	case named:
		err = checkOrigin(origin)
	}
	if err != nil {
		return 0, "", err
	}
	return sequence, origin, nil
}

// checkOrigin refuses what is no broker's name.
func checkOrigin(origin string) error {
	if origin == "" || len(origin) > maxOrigin {
		return fmt.Errorf("a broker's name of %d bytes: 1 to %d are taken", len(origin), maxOrigin)
	}
	if strings.ContainsFunc(origin, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`@"\<>&`, r) }) {
		return errors.New("a broker's name is printable ASCII, without spaces and @")
	}
	return nil
}
