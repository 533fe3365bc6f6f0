package agentcmd

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/spool"
)

// spoolFile is spool of agent.yaml: how an agent keeps, under data, what the
// broker's record is still to be told of: each exchange, and callers that were
// refused here.
type spoolFile struct {
	Full string `yaml:"full"` // drop (default): what comes beyond is lost, and counted in the record; stop: nothing more is exchanged
	Max  string `yaml:"max"`  // its size; default 64MiB, at least 1MiB
}

func (f spoolFile) spool() (s agent.Spool, err error) {
	switch f.Full {
	case "", "drop":
	case "stop":
		s.Stop = true
	default:
		return agent.Spool{}, fmt.Errorf("spool.full: %q: drop or stop is wanted", f.Full)
	}
	if s.Max, err = sizeField("spool.max", f.Max, spool.MinMax, 64<<30); s.Max == 0 {
		s.Max = spool.DefaultMax
	}
	return s, err
}

// sizeField reads a size of a file, such as 64MiB; empty is zero.
func sizeField(field, text string, least, most int64) (int64, error) {
	if text == "" {
		return 0, nil
	}
	for i, unit := range []string{"KiB", "MiB", "GiB"} {
		digits, ok := strings.CutSuffix(text, unit)
		n, err := strconv.ParseInt(digits, 10, 32)
		if size := n << (10 * (i + 1)); ok && err == nil && size >= least && size <= most {
			return size, nil
		}
	}
	return 0, fmt.Errorf("%s: %q: a size from %dMiB to %dGiB is wanted, such as 64MiB", field, text, least>>20, most>>30)
}
