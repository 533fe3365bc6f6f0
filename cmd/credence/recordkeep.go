package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/audit/export"
	"github.com/credence-id/credence/cmd/cli"
)

// exportFile is one of audit.export.
type exportFile struct {
	Name string `yaml:"name"` // required; of its cursor in DATA/export
	To   string `yaml:"to"`   // required; a file, or https://...: JSON lines are posted there
	OTLP bool   `yaml:"otlp"` // to takes OpenTelemetry logs (OTLP/HTTP) instead
	// What authenticates us to a collector: a file with a "Name: value" on each
	// line, and a directory of svid x509 --out or an agent's output.
	HeadersFile string `yaml:"headers_file"`
	SVIDDir     string `yaml:"svid_dir"`
	CAFile      string `yaml:"ca_file"` // verifies the collector; default the system's roots
}

var exportName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,39}$`)

// keep is how long records are kept; 0: for ever.
func (f auditFile) keep() (time.Duration, error) {
	if f.Keep == "" {
		return 0, nil
	}
	d, err := parseAge(f.Keep)
	if err != nil || d < 24*time.Hour {
		return 0, fmt.Errorf("keep: %q: at least a day is wanted, such as 400d", f.Keep)
	}
	return d, nil
}

func (f auditFile) checkKeeping() error {
	if _, err := f.keep(); err != nil {
		return fmt.Errorf("audit.%w", err)
	}
	names := make(map[string]bool)
	for i, e := range f.Export {
		if err := e.check(); err != nil {
			return fmt.Errorf("audit.export[%d].%w", i, err)
		}
		if names[e.Name] {
			return fmt.Errorf("audit.export[%d].name: there is another %s", i, e.Name)
		}
		names[e.Name] = true
	}
	return nil
}

func (e exportFile) check() error {
	if !exportName.MatchString(e.Name) {
		return fmt.Errorf("name: %q: lower-case letters, digits, - and _ are wanted", e.Name)
	}
	if isURL(e.To) {
		if _, err := export.CheckURL(e.To); err != nil {
			return fmt.Errorf("to: %w", err)
		}
		return nil
	}
	if !filepath.IsAbs(e.To) {
		return fmt.Errorf("to: %q: a file's whole path or an https URL is wanted", e.To)
	}
	if e.OTLP || e.HeadersFile+e.SVIDDir+e.CAFile != "" {
		return errors.New("to: is a file: otlp, headers_file, svid_dir and ca_file are for a URL")
	}
	return nil
}

func isURL(to string) bool { return strings.Contains(to, "://") }

// sink opens where records go.
func (e exportFile) sink(resource map[string]string) (export.Sink, io.Closer, error) {
	if !isURL(e.To) {
		f, err := export.OpenFile(e.To)
		return f, f, err
	}
	h, err := export.NewHTTP(export.HTTPConfig{
		URL: e.To, OTLP: e.OTLP, HeadersFile: e.HeadersFile, CAFile: e.CAFile, SVIDDir: e.SVIDDir, Resource: resource,
	})
	return h, h, err
}

// keeping is what a broker does with its record besides writing it.
type keeping struct {
	log       *audit.Log
	keep      time.Duration
	exporters []*export.Exporter
	sinks     []io.Closer
	indexed   func(context.Context) (audit.Ref, error)

	mu   sync.Mutex
	last audit.Retention // guarded by mu: why what is too old stays
}

// newKeeping opens the exporters. Close it.
func (p *brokerParts) newKeeping() (k *keeping, err error) {
	k = &keeping{log: p.audit, indexed: func(ctx context.Context) (audit.Ref, error) { return p.store.IndexedUpTo(ctx, p.file.Name) }}
	defer func() {
		if err != nil {
			err = errors.Join(err, k.close())
		}
	}()
	if k.keep, err = p.file.Audit.keep(); err != nil {
		return k, err
	}
	dir := filepath.Join(p.file.Data, "export")
	if len(p.file.Audit.Export) > 0 {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return k, err
		}
	}
	about := map[string]string{
		"service.name": "credence-broker", "service.version": cli.Version(), "service.instance.id": p.file.Name, "credence.trust_domain": p.file.TrustDomain,
	}
	for i, e := range p.file.Audit.Export {
		sink, closer, err := e.sink(about)
		if err != nil {
			return k, fmt.Errorf("audit.export[%d]: %w", i, err)
		}
		k.sinks = append(k.sinks, closer)
		x, err := export.New(export.Config{
			Name: e.Name, Source: p.audit, Sink: sink, Cursor: filepath.Join(dir, e.Name+".cursor"), Log: p.log,
			Head: func(context.Context) (audit.Head, error) { return p.server.SignedHead(), nil }, // it runs beside the server
		})
		if err != nil {
			return k, fmt.Errorf("audit.export[%d]: %w", i, err)
		}
		k.exporters = append(k.exporters, x)
	}
	return k, nil
}

// holds are the readers without whom nothing is removed.
func (k *keeping) holds(ctx context.Context) ([]audit.Hold, error) {
	at, err := k.indexed(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking how far the record is indexed: %w", err)
	}
	all := []audit.Hold{{Name: "the issuance index", Sequence: at.Sequence}}
	for _, x := range k.exporters {
		all = append(all, x.Hold())
	}
	return all, nil
}

// run indexes the record, carries it away and removes what is old, until ctx ends.
func (k *keeping) run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	for _, x := range k.exporters {
		running.Go(func() { _ = x.Run(ctx) }) // it has said what it cannot do
	}
	if k.keep > 0 {
		running.Go(func() {
			_ = k.log.Retain(ctx, audit.RetainConfig{Keep: k.keep, Holds: k.holds}, func(r audit.Retention) {
				k.mu.Lock()
				defer k.mu.Unlock()
				k.last = r
			})
		})
	}
	return k.log.KeepIndex(ctx)
}

// problems are what a person has to see to.
func (k *keeping) problems() (all []string) {
	for _, x := range k.exporters {
		if s := x.State(); s.Problem != "" {
			all = append(all, fmt.Sprintf("audit export %s stands at %s: %s", s.Name, s.At.ID(), s.Problem))
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if held := k.last.Held; held != nil {
		all = append(all, fmt.Sprintf("records older than audit.keep stay: %s has got to %s", held.Name, audit.Ref{Sequence: held.Sequence}.ID()))
	}
	if err := k.last.Problem; err != nil {
		all = append(all, fmt.Sprintf("records older than audit.keep stay: %v", err))
	}
	return all
}

func (k *keeping) close() error {
	var errs []error
	for _, s := range k.sinks {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}
