package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/cmd/cli"
	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/federation/fetch"
)

// What the tests start: the program in a process of its own, or in theirs.
var (
	Main = main
	Run  = run

	RunAt = runAt // by a clock that is off
)

// What they look at by itself.
var (
	SetupText = setupText
	Terraform = terraform
	Script    = script
	Gist      = gist

	DocumentsOf = documentsOf
)

// Commands is the tree of all verbs.
func Commands() *cobra.Command {
	return (&program{Program: &cli.Program{In: strings.NewReader(""), Out: io.Discard, Err: io.Discard}}).root()
}

// KeyAccess is how the services that keep keys are reached.
type KeyAccess = keyAccess

// OpenBroker opens and closes the broker of a broker.yaml. It returns its pin
// and, by use, where its keys are.
func OpenBroker(ctx context.Context, text string, access KeyAccess) (pin string, places map[string]string, err error) {
	var f brokerFile
	if err := cli.ParseFile("broker.yaml", []byte(text), &f); err != nil {
		return "", nil, err
	}
	if err := f.complete(); err != nil {
		return "", nil, err
	}
	o := brokerOptions{keys: access, now: time.Now, log: slog.New(slog.DiscardHandler)}
	if o.listeners.Agents, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return "", nil, err
	}
	if o.listeners.Admin, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return "", nil, errors.Join(err, o.listeners.Agents.Close())
	}
	b, err := newBroker(ctx, f, o)
	if err != nil {
		return "", nil, err
	}
	places = map[string]string{}
	for _, a := range b.authority.List() {
		places[string(a.Use)] = a.KeySource
	}
	return b.authority.Pin(), places, b.close()
}

var (
	Ourselves         = ourselves
	ListenSwitchboard = listenSwitchboard
	ServeSwitchboard  = serveSwitchboard
)

// LookAtIssuer fetches as target check does, and says how that ended.
func LookAtIssuer(ctx context.Context, q exchangers.Question, cfg fetch.Config) []exchangers.Finding {
	w := &exchangers.Walk{Question: q}
	if lookAtIssuer(ctx, w, cfg) == w.Failed() {
		panic("the walk ends otherwise than it says")
	}
	return w.Findings
}

// Unified is the difference of two texts as plan prints it, unindented.
func Unified(before, after string) string {
	var b strings.Builder
	for _, e := range unified(before, after) {
		b.WriteString(string(e.op) + e.line + "\n")
	}
	return b.String()
}

// KeepingProblems is what an operator is told after a look at what is too old.
func KeepingProblems(r audit.Retention) []string { return (&keeping{last: r}).problems() }
