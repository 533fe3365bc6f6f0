package caller_test

import (
	"io"
	"net"
	"os"
	"sync"
	"testing"

	"github.com/credence-id/credence/agent/caller"
)

// Two thousand callers, some of whom answer and some of whom don't, leave no
// descriptor behind.
//
// Regression: SPIRE 0.12.1 descriptors
func TestManyConnectionsLeaveNothing(t *testing.T) {
	l, path := listen(t)
	count := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(fds)
	}
	words := []string{"", "GET / HTTP/1.1\r\n\r\n", hello, hello + "\x00\x00\x08\x06\x01\x00\x00\x00\x0012345678"}
	round := func(n int) {
		t.Helper()
		c, err := net.Dial("unix", path)
		must(t, err)
		s, err := l.Accept()
		must(t, err)
		var talking sync.WaitGroup
		talking.Go(func() {
			_, _ = io.WriteString(c, words[n%len(words)]) // the server may have hung up
			_ = c.Close()
		})
		if _, _, err := caller.Credentials().ServerHandshake(s); err == nil {
			t.Error("took a caller that did not answer")
		}
		s.Close()
		talking.Wait()
		if n%4 == 0 { // and callers that are held and let go
			p, err := caller.Open(os.Getpid())
			must(t, err)
			must(t, p.Close())
		}
	}
	for n := range 20 {
		round(n)
	}
	before := count()
	for n := range 2000 {
		round(n)
	}
	if after := count(); after > before+2 {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}
