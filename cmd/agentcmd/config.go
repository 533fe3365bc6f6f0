package agentcmd

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/cmd/cli"
	"github.com/credence-id/credence/cmd/tracing"
	"github.com/credence-id/credence/cmd/workloadcmd"
	"github.com/credence-id/credence/federation"
)

// File is agent.yaml.
type File struct {
	TrustDomain string   `yaml:"trust_domain"` // required
	Data        string   `yaml:"data"`         // required, or ephemeral
	Ephemeral   bool     `yaml:"ephemeral"`    // for jobs: nothing is kept. Data is a directory of its own in $TMPDIR, and goes when the agent ends
	Broker      []string `yaml:"broker"`       // required; host:port, tried in order
	Trust       struct {
		CAPin  []string `yaml:"ca_pin"` // credence token create prints it
		Bundle string   `yaml:"bundle"` // or a file: SPIFFE JSON or PEM
	} `yaml:"trust"`
	Join   joinFile `yaml:"join"`   // required
	Socket string   `yaml:"socket"` // of the Workload API; default DATA/run/workload.sock
	Admin  string   `yaml:"admin"`  // default DATA/run/admin.sock

	Seal    string       `yaml:"seal"`    // of what is kept for a restart: tpm, keyring or plain; default auto, the best that is there
	SDS     sdsFile      `yaml:"sds"`     // for Envoy, on the same socket
	Attest  attestFile   `yaml:"attest"`  // workloads, besides by the kernel's facts
	Outputs []outputFile `yaml:"outputs"` // what is written for processes that call nothing
	Spool   spoolFile    `yaml:"spool"`   // what the broker's record is still to be told of

	Health  healthFile       `yaml:"health"`  // for probes
	Metrics metricsFile      `yaml:"metrics"` // for Prometheus
	Traces  tracing.Settings `yaml:"traces"`  // OpenTelemetry: where to, and how many; default: none
	Pprof   bool             `yaml:"pprof"`   // GET /debug/pprof/ on the admin socket, and nowhere else; default off

	handed sockets // that the service manager listens on already
}

// Complete fills defaults in and holds the file's fields against each other.
func (f *File) Complete() error {
	if _, err := federation.ParseTrustDomain(f.TrustDomain); err != nil {
		return fmt.Errorf("trust_domain: %w", err)
	}
	switch {
	case f.Data == "" && !f.Ephemeral:
		return errors.New("data: is required: the directory that keeps the node's SVID; or ephemeral: true, for a job")
	case f.Data != "" && f.Ephemeral:
		return errors.New("ephemeral: is instead of data")
	case f.Ephemeral && f.Join.Method == awsEC2Method:
		return errors.New("ephemeral: an instance that joins by aws_ec2 has to keep the key that holds it")
	}
	if len(f.Broker) == 0 {
		return errors.New("broker: is required: a list of host:port")
	}
	for _, b := range f.Broker {
		if _, _, err := net.SplitHostPort(b); err != nil {
			return fmt.Errorf("broker: %q: host:port is wanted", b)
		}
	}
	if (len(f.Trust.CAPin) == 0) == (f.Trust.Bundle == "") {
		return errors.New("trust: one of ca_pin and bundle is wanted: without it any server could pose as the broker")
	}
	for _, pin := range f.Trust.CAPin {
		if err := agent.CheckPin(pin); err != nil {
			return fmt.Errorf("trust: %w", err)
		}
	}
	if err := f.Join.complete(f.TrustDomain); err != nil {
		return err
	}
	if err := agent.CheckSeal(f.Seal); err != nil {
		return err
	}
	if err := f.Attest.complete(); err != nil {
		return err
	}
	f.sockets()
	if f.Join.Socket != "" && filepath.Clean(f.Join.Socket) == filepath.Clean(f.Socket) {
		return errors.New("join.socket: is this agent's own, which gives nothing before it has joined")
	}
	if _, err := f.Spool.spool(); err != nil {
		return err
	}
	if err := f.Traces.Complete(); err != nil {
		return fmt.Errorf("traces.%w", err)
	}
	if _, _, err := f.places(); err != nil {
		return err
	}
	if err := f.SDS.complete(); err != nil {
		return err
	}
	return f.completeOutputs()
}

// sockets are under data, unless the file says otherwise.
func (f *File) sockets() {
	if f.Data == "" { // ephemeral: there is none yet
		return
	}
	cli.SetDefault(&f.Socket, filepath.Join(f.Data, "run", "workload.sock"))
	cli.SetDefault(&f.Admin, filepath.Join(f.Data, "run", "admin.sock"))
}

// settle makes an ephemeral agent's data directory, which remove takes away.
func (f *File) settle() (remove func() error, err error) {
	if !f.Ephemeral {
		return func() error { return nil }, nil
	}
	dir, err := workloadcmd.NewScratch("credence-ephemeral-agent-") // which removes what a killed one left, its key too
	if err != nil {
		return nil, err
	}
	f.Data = dir.Path
	f.sockets()
	return dir.Remove, nil
}
