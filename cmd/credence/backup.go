package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/backup"
	"github.com/credence-id/credence/broker/store"
	"github.com/credence-id/credence/cmd/cli"
)

// Where things are in a data directory, and in a backup.
const (
	denyFileName   = "revoked.jsonl"
	auditDirName   = "audit"
	configName     = "broker.yaml"
	keysInBackup   = "keys/"
	rootInBackup   = "root-keys/"
	factsInBackup  = "audit/facts.key" // of the record of the broker that the manifest names
	maxKeyInBackup = 16 << 10
)

func (p *program) backupCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "backup --to FILE --recipient age1...", Short: "Write an encrypted backup, of a running broker too", Args: cobra.NoArgs,
		Long: `Backup asks a running broker for a backup by its admin socket, which nobody else
may (CREDENCE_ADMIN, --admin, or that of -c broker.yaml); where none runs and
broker.yaml is given, it makes one by itself. FILE is encrypted by age to each
--recipient; --new-identity makes the key for that, to be kept elsewhere.

It holds the database as of one moment, the private keys that are files (as they
lie there: encrypted only if keys.disk.kek_file is set; that file is never in it),
what is revoked, broker.yaml to look at, and the key by which this broker's record
has secret facts. It holds no audit record: that is
kept by credence audit export, and by a copy of DATA/audit. The backup says how
far the record was, and restore reads on from there where it finds one.

Whoever has FILE and an identity has the keys that are in it. Restore can't tell
who made a FILE: keep it where only you write.`,
		Example: `  credence broker backup --new-identity backup.key > backup.pub
  credence broker backup --to monday.age --recipient "$(cat backup.pub)"`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if made, _ := cmd.Flags().GetString("new-identity"); made != "" {
				return p.newIdentity(made)
			}
			return p.backup(cmd)
		},
	}
	cmd.Flags().StringP("config", "c", "", "broker.yaml, for a broker that doesn't run")
	cli.CompleteFiles(cmd, "config", "yaml", "yml")
	cmd.Flags().String("to", "", "the file to make; it must not exist")
	cmd.Flags().StringSlice("recipient", nil, "who can read it: age1...")
	cmd.Flags().String("new-identity", "", "make a key for backups in this file, and print its recipient")
	cmd.Flags().String("admin", "", "the broker's admin socket: a path or unix:///path (default $"+adminVariable+")")
	return cmd
}

func (p *program) newIdentity(path string) error {
	file, recipient, err := backup.NewIdentity()
	if err == nil {
		err = writeNew(path, file)
	}
	if err != nil {
		return cli.BadInput(err)
	}
	_, err = fmt.Fprintln(p.Out, recipient)
	return err
}

func (p *program) backup(cmd *cobra.Command) error {
	to, _ := cmd.Flags().GetString("to")
	recipients, _ := cmd.Flags().GetStringSlice("recipient")
	if to == "" {
		return cli.BadInput(errors.New("--to FILE is wanted: the file to make"))
	}
	if _, err := backup.ParseRecipients(recipients); err != nil {
		return cli.BadInput(fmt.Errorf("--recipient: %w; --new-identity FILE makes a key", err))
	}
	if _, err := os.Lstat(to); !errors.Is(err, os.ErrNotExist) {
		return cli.BadInput(fmt.Errorf("%s is there already: a backup is written into a new file", to))
	}
	make, err := p.backupFrom(cmd, recipients)
	if err != nil {
		return err
	}
	var m backup.Manifest
	err = writeWhole(to, func(w io.Writer) (err error) {
		m, err = make(&counting{w: w, to: p.Err})
		return err
	})
	if err != nil {
		return err
	}
	wrapped := "which are not encrypted besides: no kek_file is set"
	if m.Wrapped {
		wrapped = "encrypted under the key of kek_file, which is not in it"
	}
	if m.Keys == 0 {
		wrapped = "all are elsewhere"
	}
	fmt.Fprintf(p.Out, "%s: %s, broker %s, revision %d, %d private keys in files (%s)\n", to, m.TrustDomain, m.Broker, m.Revision, m.Keys, wrapped)
	if len(m.KeysOutside) > 0 {
		fmt.Fprintf(p.Out, "keys in %s are not in it: they stay where they are\n", strings.Join(m.KeysOutside, " and "))
	}
	fmt.Fprintf(p.Out, "the audit record, up to r-%06d, is not in it: credence audit export, or a copy of DATA/audit, keeps it\n", m.Record)
	return nil
}

// backupFrom is who makes the backup: the broker that runs, or we.
func (p *program) backupFrom(cmd *cobra.Command, recipients []string) (func(io.Writer) (backup.Manifest, error), error) {
	path, _ := cmd.Flags().GetString("config")
	socket, _ := cmd.Flags().GetString("admin")
	var f brokerFile
	if path != "" {
		var err error
		if f, err = brokerConfig(cmd); err != nil {
			return nil, err
		}
		if socket == "" && answers(f.Admin) {
			socket = f.Admin
		}
		if socket == "" {
			return func(w io.Writer) (backup.Manifest, error) {
				return p.backupAlone(cmd.Context(), f, path, w, recipients)
			}, nil
		}
		if err := cmd.Flags().Set("admin", socket); err != nil {
			return nil, err
		}
	}
	return func(w io.Writer) (m backup.Manifest, err error) {
		err = adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
			m, err = receiveBackup(ctx, c, w, recipients)
			return err
		})
		return m, err
	}, nil
}

// answers says whether somebody listens at a socket.
func answers(socket string) bool {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return false
	}
	return conn.Close() == nil
}

func receiveBackup(ctx context.Context, c api.AdminClient, w io.Writer, recipients []string) (m backup.Manifest, err error) {
	stream, err := c.Backup(ctx, &api.BackupRequest{Recipients: recipients})
	if err != nil {
		return m, err
	}
	for {
		part, err := stream.Recv()
		if err == io.EOF {
			err = status.Error(codes.DataLoss, "the broker ended the backup before its end")
		}
		if err != nil {
			return m, err
		}
		if _, err := w.Write(part.GetData()); err != nil {
			return m, err
		}
		if text := part.GetManifest(); len(text) > 0 {
			return m, json.Unmarshal(text, &m)
		}
	}
}

// backupAlone makes a backup of a broker that doesn't run.
func (p *program) backupAlone(ctx context.Context, f brokerFile, path string, w io.Writer, recipients []string) (m backup.Manifest, err error) {
	if _, err := os.Stat(filepath.Join(f.Data, "credence.db")); err != nil && !f.shared() {
		return m, cli.BadInput(fmt.Errorf("there is no broker to back up: none answers at %s, and %s holds no database: %w", f.Admin, f.Data, err))
	}
	if err := checkRestored(f.Data); err != nil {
		return m, cli.BadInput(err)
	}
	s, err := store.Open(ctx, f.storeConfig(p.Now))
	if err != nil {
		return m, cli.BadInput(err)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	var head audit.Ref
	for r, e := range audit.Tail(ctx, filepath.Join(f.Data, auditDirName), 1) {
		if e != nil && !errors.Is(e, os.ErrNotExist) {
			return m, cli.BadInput(e)
		}
		head = r.Ref()
	}
	return backupSource{file: f, path: path, store: s, head: head, now: p.Now()}.write(ctx, w, recipients)
}

// A backupSource is what a backup is made of.
type backupSource struct {
	file  brokerFile
	path  string // of broker.yaml; empty: there is none
	store *store.Store
	head  audit.Ref
	now   time.Time
}

func (s backupSource) write(ctx context.Context, w io.Writer, recipients []string) (backup.Manifest, error) {
	m := backup.Manifest{
		TrustDomain: s.file.TrustDomain, Broker: s.file.Name, Version: cli.Version(), MadeAt: s.now.UTC(),
		Record: s.head.Sequence, RecordHash: hex.EncodeToString(s.head.Hash[:]),
	}
	to, err := backup.ParseRecipients(recipients)
	if err != nil {
		return m, fmt.Errorf("making a backup: %w", err)
	}
	if absence, away := s.store.Away(); away { // what stands in for it is a part of it
		return m, fmt.Errorf("making a backup: %w: %s; try again when it is back", store.ErrAway, absence.Reason)
	}
	if m.Revision, err = s.store.Revision(ctx); err != nil {
		return m, err
	}
	_, publication, err := s.store.Authorities(ctx)
	if err != nil {
		return m, err
	}
	m.Sequence = publication.Sequence
	if _, err := s.files(&m); err != nil { // to be counted
		return m, err
	}
	b, err := backup.Create(w, to, m)
	if err != nil {
		return m, err
	}
	err = b.Database(func(w io.Writer) error {
		_, err := s.store.Dump(ctx, w, store.Selection{})
		return err
	})
	if err != nil {
		return m, err
	}
	// A key is in its file before the database knows it, and stays there: those that
	// were made meanwhile are wanted too.
	files, err := s.files(&m)
	if err != nil {
		return m, err
	}
	for name, data := range files {
		if err := b.Add(name, data); err != nil {
			return m, err
		}
	}
	return m, b.Close()
}

// files are the small files of a backup. They are counted in its manifest.
func (s backupSource) files(m *backup.Manifest) (map[string][]byte, error) {
	files := map[string][]byte{}
	m.Keys, m.Wrapped, m.KeysOutside = 0, true, nil
	for prefix, source := range s.file.keyDirs() {
		if source.Disk == nil {
			m.KeysOutside = append(m.KeysOutside, source.kinds()...)
			continue
		}
		names, err := filepath.Glob(filepath.Join(source.Disk.Dir, "*.pem"))
		if err != nil {
			return nil, err
		}
		for _, path := range names {
			text, err := readWhole(path, maxKeyInBackup)
			if err != nil {
				return nil, fmt.Errorf("a private key: %w", err)
			}
			files[prefix+filepath.Base(path)] = text
			m.Keys++
		}
		m.Wrapped = m.Wrapped && source.Disk.KEKFile != ""
	}
	m.Wrapped = m.Wrapped && m.Keys > 0
	text, err := readWhole(filepath.Join(s.file.Data, denyFileName), backup.MaxFile)
	if err == nil {
		files[denyFileName] = text
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if key, err := audit.FactsKey(filepath.Join(s.file.Data, auditDirName)); err == nil {
		files[factsInBackup] = key
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if s.path != "" {
		if files[configName], err = readWhole(s.path, cli.MaxConfig); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// readWhole reads a file, which must not be longer.
func readWhole(path string, most int64) ([]byte, error) {
	text, err := cli.ReadUpTo(path, most+1)
	if err == nil && int64(len(text)) > most {
		err = fmt.Errorf("%s has more than %d bytes", path, most)
	}
	return text, err
}

// keyDirs are the sources of keys, by where a backup has those that are files.
func (f *brokerFile) keyDirs() map[string]*keySource {
	all := map[string]*keySource{keysInBackup: f.Keys}
	if f.RootKeys != nil {
		all[rootInBackup] = f.RootKeys
	}
	return all
}

// backupTo makes a backup of the broker while it runs.
func (p *brokerParts) backupTo(path string, now func() time.Time) func(context.Context, io.Writer, []string) ([]byte, error) {
	return func(ctx context.Context, w io.Writer, recipients []string) ([]byte, error) {
		m, err := backupSource{file: p.file, path: path, store: p.store, head: p.audit.Head(), now: now()}.write(ctx, w, recipients)
		if err != nil {
			return nil, err
		}
		return json.Marshal(m)
	}
}

// counting tells how much was written.
type counting struct {
	w    io.Writer
	to   io.Writer
	n    int64
	told int64
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	if c.n += int64(n); c.n-c.told >= 64<<20 {
		c.told = c.n
		fmt.Fprintf(c.to, "%d MiB\n", c.n>>20)
	}
	return n, err
}

// writeWhole makes a new file that only its owner can read: all of it, or none.
func writeWhole(path string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return cli.BadInput(err)
	}
	defer os.Remove(f.Name())
	if err := write(f); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil { // unlike a rename, it replaces nothing
		return cli.BadInput(err)
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
