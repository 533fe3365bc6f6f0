package store_test

import (
	"os"
	"slices"
	"testing"

	"github.com/credence-id/credence/broker/store/postgrestest"
)

// shared is the server of all tests here, which take turns; each leaves it
// running.
var shared struct {
	server *postgrestest.Server
	end    []func()
}

func TestMain(m *testing.M) {
	code := m.Run()
	for _, end := range slices.Backward(shared.end) {
		end()
	}
	os.Exit(code)
}

// postgres returns the server that all tests here share.
func postgres(t *testing.T) *postgrestest.Server {
	t.Helper()
	if shared.server == nil {
		shared.server = postgrestest.Start(lasting{t})
	}
	return shared.server
}

// lasting is a test after whose end others need what it started.
type lasting struct{ testing.TB }

func (lasting) Cleanup(f func()) { shared.end = append(shared.end, f) }
