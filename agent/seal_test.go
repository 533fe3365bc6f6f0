package agent_test

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/agent/tpmseal/tpmtest"
)

func TestSealedByTheTPM(t *testing.T) {
	t.Parallel()
	device := tpmtest.Start(t)
	s := ended(t, grant("/a"))
	s.cfg.TPM = device
	// What another kind sealed is dropped, and said.
	var log bytes.Buffer
	cfg := s.cfg
	cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	a, err := agent.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if got := a.Status(); got.Seal != agent.SealTPM || len(got.Held) != 0 {
		t.Fatalf("%+v", got)
	}
	if !strings.Contains(log.String(), "not taken up") || !strings.Contains(log.String(), "seal=tpm") {
		t.Errorf("it says %q", &log)
	}
	if _, err := os.Stat(filepath.Join(s.cfg.Data, sealedFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what is of no use is still there: %v", err)
	}
	// And what the TPM sealed comes back.
	s.Start()
	r := run(t, s.cfg).ready()
	s.had = r.view(t).next()
	r.end()
	s.Stop()
	if u, err := s.again(t, uid("1000")); err != nil || !u.SVIDs[0].Certificates[0].Equal(s.had.SVIDs[0].Certificates[0]) {
		t.Fatalf("by the same TPM: %v %v", paths(u), err)
	}
	s.cfg.TPM = tpmtest.Start(t)
	if u, err := s.again(t, uid("1000")); !errors.Is(err, agent.ErrUnavailable) {
		t.Errorf("by another: %v %v", paths(u), err)
	}
}

// A seal that is named is that one, or the agent doesn't start.
func TestNamedSeals(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain).Start()
	none := filepath.Join(t.TempDir(), "tpmrm0")
	for _, test := range []struct{ seal, tpm, is, says string }{
		{seal: agent.SealPlain, tpm: none, is: agent.SealPlain},
		{seal: agent.SealTPM, tpm: none, says: "seal: tpm is named, but is not to be had: this machine has no TPM: " + none},
		{seal: agent.SealTPM, tpm: os.DevNull, says: "seal: tpm is named, but is not to be had"},
		{seal: "hsm", tpm: none, says: `seal: "hsm": auto, tpm, keyring or plain are wanted`},
	} {
		cfg := config(t, b)
		cfg.Seal, cfg.TPM = test.seal, test.tpm
		a, err := agent.New(cfg)
		if test.says != "" {
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("%s: %v, want %q", test.seal, err, test.says)
			}
			continue
		}
		if err != nil || a.Status().Seal != test.is {
			t.Errorf("%s: %v", test.seal, err)
		}
	}
	// A TPM that is out of order is no reason not to start where none is named.
	cfg := config(t, b)
	cfg.TPM = os.DevNull
	if a, err := agent.New(cfg); err != nil || a.Status().Seal == agent.SealTPM {
		t.Errorf("auto: %v", err)
	}
}
