package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/backup"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/store"
	"github.com/credence-id/credence/cmd/cli"
)

// What lies in a data directory while a restore is under way, and after it until
// a broker has recorded it.
const (
	restoringName = "restoring.json"
	restoredName  = "restored.json"
)

// clockSkew is by how much the clocks may differ of brokers that made a backup and a
// revocation.
const clockSkew = time.Minute

// A restoreMark is what these files say.
type restoreMark struct {
	Backup   string    `json:"backup"` // hex SHA-256 of its file
	MadeAt   time.Time `json:"made_at"`
	Revision uint64    `json:"revision"` // that the database has at least, once it is restored
	At       time.Time `json:"at"`
	Actor    string    `json:"actor"`
}

func (p *program) restoreCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "restore -c broker.yaml --from FILE --identity KEY", Short: "Make a broker's data anew from a backup", Args: cobra.NoArgs,
		Long: `Restore fills the data directory and the database that broker.yaml names, SQLite
or PostgreSQL, from a backup; run it as the broker's user. The database must be
empty. The directory may be too, or hold what outlived the database: keys that
stand stay, and what revoked.jsonl and the audit record say of evictions and
revocations after the backup is done again. Of replicas one is restored; the
others keep their directories, and start after it.

Nothing that others have seen goes back: revisions and the bundle's sequence jump
ahead, serial numbers are random, CRLs are made anew, and so is the JWT key that
signs next. Open join tokens are void. At the end it lists what could not be
recovered, with what to type. A broker doesn't start from half a restore: run it
again. The first that starts puts the restore into its record.

Exit code 2: nothing was restored (another trust domain, the wrong key, a damaged
file, a database that is in use).`,
		Example: `  credence broker backup --new-identity restore.key > restore.pub
  credence broker backup --to today.age --recipient "$(cat restore.pub)"
  credence broker init --trust-domain dev.example --data ./restored > restored.yaml
  credence broker restore -c restored.yaml --from today.age --identity restore.key`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := brokerConfig(cmd)
			if err != nil {
				return err
			}
			from, _ := cmd.Flags().GetString("from")
			key, _ := cmd.Flags().GetString("identity")
			if from == "" || key == "" {
				return cli.BadInput(errors.New("--from FILE and --identity KEY are wanted: a backup, and the file of a key that opens it"))
			}
			return cli.BadInput(p.restore(cmd.Context(), f, from, key))
		},
	}
	cmd.Flags().StringP("config", "c", "broker.yaml", "configuration")
	cmd.Flags().String("from", "", "the backup")
	cmd.Flags().String("identity", "", "file with an age identity that opens it")
	cli.CompleteFiles(cmd, "config", "yaml", "yml")
	return cmd
}

// checkRestored refuses the data of half a restore.
func checkRestored(data string) error {
	if _, err := os.Lstat(filepath.Join(data, restoringName)); err == nil {
		return fmt.Errorf("a restore into %s has not come to its end: run credence broker restore again, with the same backup", data)
	}
	return nil
}

// recordRestore puts into the record that this data is a backup's, at the first
// start from it.
func (p *brokerParts) recordRestore(ctx context.Context) error {
	path := filepath.Join(p.file.Data, restoredName)
	var m restoreMark
	if found, err := readMark(path, &m); err != nil || !found {
		return err
	}
	_, err := p.audit.Append(ctx, audit.Event{Kind: "restore", OK: true, Actor: m.Actor, Digest: m.Backup, Revision: m.Revision, Issued: m.At, Detail: map[string]string{"made_at": m.MadeAt.UTC().Format(time.RFC3339Nano)}})
	if err == nil {
		err = os.Remove(path)
	}
	if err != nil {
		return fmt.Errorf("recording that this is restored: %w", err)
	}
	return nil
}

func readMark(path string, m *restoreMark) (found bool, err error) {
	text, err := readWhole(path, 64<<10)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = json.Unmarshal(text, m)
	}
	if err != nil {
		return false, fmt.Errorf("reading %s: %w", path, err)
	}
	return true, nil
}

func writeMark(path string, m restoreMark) error {
	text, err := json.Marshal(m)
	if err == nil {
		err = renameio.WriteFile(path, text, 0o600, renameio.WithStaticPermissions(0o600))
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	return err
}

// A restoring is one under way.
type restoring struct {
	*program
	file   brokerFile
	td     spiffeid.TrustDomain
	backup *backup.Backup
	mark   restoreMark
	since  happened
	result store.Restored
	again  bool // one like it was cut short here
	keys   int  // that were written
	facts  bool // the key of secret facts was too
}

func (p *program) restore(ctx context.Context, f brokerFile, from, keyFile string) error {
	td, err := identity.ParseTrustDomain(f.TrustDomain)
	if err != nil {
		return err
	}
	text, err := readWhole(keyFile, 64<<10)
	if err != nil {
		return err
	}
	ids, err := backup.ParseIdentities(text)
	if err != nil {
		return fmt.Errorf("%s: %w", keyFile, err)
	}
	file, err := os.Open(from)
	if err != nil {
		return err
	}
	defer file.Close()
	fmt.Fprintln(p.Err, "reading the whole backup")
	b, err := backup.Read(file, ids, nil)
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	r := &restoring{program: p, file: f, td: td, backup: b}
	if err := r.check(ctx); err != nil {
		return err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if err := r.do(ctx, file, ids); err != nil {
		return err
	}
	r.tell()
	return nil
}

// check refuses before anything is written.
func (r *restoring) check(ctx context.Context) error {
	m := r.backup.Manifest
	if m.TrustDomain != r.td.Name() {
		return fmt.Errorf("the backup is of trust domain %.255q, broker.yaml is of %s", m.TrustDomain, r.td.Name())
	}
	for prefix, source := range r.file.keyDirs() {
		if source.Disk == nil && slices.ContainsFunc(r.backup.Names(), func(n string) bool { return strings.HasPrefix(n, prefix) }) {
			return fmt.Errorf("the backup has private keys as files, broker.yaml has them in %s: restore with the keys of the broker.yaml that is in the backup, then go on", strings.Join(source.kinds(), ""))
		}
	}
	if _, ok := r.file.keyDirs()[rootInBackup]; !ok && slices.ContainsFunc(r.backup.Names(), func(n string) bool { return strings.HasPrefix(n, rootInBackup) }) {
		return errors.New("the backup has the root's key by itself, broker.yaml has no root_keys: say there where it is to be")
	}
	r.mark = restoreMark{Backup: hex.EncodeToString(r.backup.Digest[:]), MadeAt: m.MadeAt, Revision: m.Revision + store.Ahead, At: r.Now().UTC(), Actor: fmt.Sprintf("uid:%d", os.Getuid())}
	var begun restoreMark
	again, err := readMark(filepath.Join(r.file.Data, restoringName), &begun)
	switch {
	case err != nil:
		return err
	case again && begun.Backup != r.mark.Backup:
		return fmt.Errorf("a restore of another backup, of %s, was begun in %s: end that one, or empty the directory and the database", begun.MadeAt.Format(time.RFC3339), r.file.Data)
	case again: // the database may be loaded
		r.again = true
	default:
		if err := r.emptyDatabase(ctx); err != nil {
			return err
		}
	}
	r.since, err = happenedSince(ctx, filepath.Join(r.file.Data, auditDirName), m)
	return err
}

func (r *restoring) emptyDatabase(ctx context.Context) error {
	if r.file.shared() {
		empty, err := store.Empty(ctx, r.file.storeConfig(r.Now))
		if err == nil && !empty {
			err = fmt.Errorf("%w: broker.yaml's store must be an empty database", store.ErrNotEmpty)
		}
		return err
	}
	if _, err := os.Lstat(filepath.Join(r.file.Data, "credence.db")); err == nil {
		return fmt.Errorf("%w: %s has credence.db: take that and what begins with its name away, if it is lost", store.ErrNotEmpty, r.file.Data)
	}
	return nil
}

// do writes. What outlives a kill says what to do: with the mark, no broker
// starts, and the same restore goes on.
func (r *restoring) do(ctx context.Context, file io.Reader, ids []age.Identity) error {
	if err := os.MkdirAll(r.file.Data, 0o700); err != nil {
		return err
	}
	marked := filepath.Join(r.file.Data, restoringName)
	if err := writeMark(marked, r.mark); err != nil {
		return err
	}
	if err := r.writeKeys(); err != nil {
		return err
	}
	cuts, err := broker.MergeDenyFile(filepath.Join(r.file.Data, denyFileName), r.td, r.backup.Files[denyFileName], r.since.cuts)
	if err != nil {
		return err
	}
	// Whom another broker evicted, or one without a record, is known from what is
	// revoked alone.
	for _, c := range cuts {
		if c.Kind == broker.CutNode && c.MadeAt.After(r.backup.Manifest.MadeAt.Add(-clockSkew)) && c.MadeAt.After(r.since.told[c.Value]) {
			r.since.evicted = append(r.since.evicted, c.Value)
			r.since.perhaps = append(r.since.perhaps, c.Value)
		}
	}
	// A snapshot of the lost database must not stand in for the new one.
	if err := os.Remove(filepath.Join(r.file.Data, snapshotName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	fmt.Fprintln(r.Err, "loading the database")
	if err := r.load(ctx, file, ids); err != nil {
		return err
	}
	if key := r.backup.Files[factsInBackup]; key != nil {
		var err error
		if r.facts, err = audit.RestoreFactsKey(filepath.Join(r.file.Data, auditDirName), key); err != nil {
			return err
		}
	}
	if err := writeMark(filepath.Join(r.file.Data, restoredName), r.mark); err != nil {
		return err
	}
	return errors.Join(os.Remove(marked), syncDir(r.file.Data))
}

func (r *restoring) writeKeys() error {
	for prefix, source := range r.file.keyDirs() {
		if source.Disk == nil {
			continue
		}
		if err := os.MkdirAll(source.Disk.Dir, 0o700); err != nil {
			return err
		}
		for name, text := range r.backup.Files {
			base, ok := strings.CutPrefix(name, prefix)
			if !ok {
				continue
			}
			if base != filepath.Base(base) || !strings.HasSuffix(base, ".pem") || strings.HasPrefix(base, ".") {
				return fmt.Errorf("the backup has a key of the name %.80q", name)
			}
			path := filepath.Join(source.Disk.Dir, base)
			if _, err := os.Lstat(path); err == nil {
				continue // it may be encrypted under a newer key by now
			}
			if err := renameio.WriteFile(path, text, 0o600, renameio.WithStaticPermissions(0o600)); err != nil {
				return err
			}
			r.keys++
		}
		if err := syncDir(source.Disk.Dir); err != nil {
			return err
		}
	}
	return nil
}

// load loads the database, or finds that a restore which was cut short had.
func (r *restoring) load(ctx context.Context, file io.Reader, ids []age.Identity) (err error) {
	var s *store.Store
	var again *backup.Backup
	again, err = backup.Read(file, ids, func(dump io.Reader) (err error) {
		s, r.result, err = store.Restore(ctx, r.file.storeConfig(r.Now), dump, store.Since{Evicted: r.since.evicted, SVIDs: r.since.svids})
		return err
	})
	if s != nil {
		err = errors.Join(err, s.Close())
	}
	if r.again && errors.Is(err, store.ErrNotEmpty) && r.loadedBefore(ctx) {
		fmt.Fprintln(r.Err, "the database was loaded before")
		return nil
	}
	if err == nil && !bytes.Equal(again.Digest[:], r.backup.Digest[:]) {
		err = errors.New("the backup was changed while it was read")
	}
	return err
}

func (r *restoring) loadedBefore(ctx context.Context) bool {
	s, err := store.Open(ctx, r.file.storeConfig(r.Now))
	if err != nil {
		return false
	}
	defer s.Close()
	revision, err := s.Revision(ctx)
	if err != nil || revision < r.mark.Revision {
		return false
	}
	nodes, err := s.Nodes(ctx)
	if err != nil {
		return false
	}
	r.result.Revision = revision
	for _, n := range nodes {
		r.result.Known = append(r.result.Known, n.ID)
	}
	for _, id := range r.since.evicted {
		if !slices.Contains(r.result.Known, id) {
			r.result.Strange = append(r.result.Strange, id)
		}
	}
	return true
}

// tell says what was restored, and then what was not.
func (r *restoring) tell() {
	m, out := r.backup.Manifest, r.Out
	fmt.Fprintf(out, "restored: %s as of %s, broker %s, revision %d; it goes on at %d\n", m.TrustDomain, m.MadeAt.Format(time.RFC3339), m.Broker, m.Revision, r.result.Revision)
	fmt.Fprintf(out, "%d nodes, %d private keys written, %d open join tokens are void\n", len(r.result.Known), r.keys, r.result.Tokens)
	if r.facts {
		fmt.Fprintf(out, "the record goes on with the key of broker %s: what that had of secret facts is found\n", m.Broker)
	}
	for _, id := range r.result.Evicted {
		fmt.Fprintf(out, "evicted after the backup, and again now: %s\n", id)
	}
	fmt.Fprintln(out, "\nnot recovered, with what to do:")
	note := func(what, do string) { fmt.Fprintf(out, "- %s\n    %s\n", what, do) }
	if r.since.found {
		note(fmt.Sprintf("policy as changed after the backup: %d changes are in the record", len(r.since.policy)), "credence apply -f DIR -R --prune --owner NAME, from where your policy is kept")
		for _, line := range some(r.since.policy) {
			fmt.Fprintf(out, "    %s\n", line)
		}
		if !r.since.from.IsZero() {
			note(fmt.Sprintf("what happened from %s to %s: of that time there is no record in %s", m.MadeAt.Format(time.RFC3339), r.since.from.Format(time.RFC3339), filepath.Join(r.file.Data, auditDirName)), "evict again whom you evicted then: credence node evict; the record itself is where credence audit export put it")
		}
	} else {
		note("what happened after "+m.MadeAt.Format(time.RFC3339)+": no audit record of that time is in "+filepath.Join(r.file.Data, auditDirName), "apply your policy again: credence apply -f DIR -R --prune --owner NAME; the record itself is where credence audit export put it")
		note("nodes that have renewed their SVIDs since the backup: they join again, and those with a join token need another", "credence node list, then credence token create --node NAME")
	}
	if joined := r.since.joined(r.result); len(joined) > 0 {
		note(fmt.Sprintf("%d nodes joined after the backup: they join again", len(joined)), "with join tokens: credence token create --node NAME")
		for _, line := range some(joined) {
			fmt.Fprintf(out, "    %s\n", line)
		}
	}
	for _, id := range r.result.Strange {
		note("the ban of "+id+", which joined and was evicted after the backup: what it held is revoked, but it may join again", "credence node evict "+id+", if it does; or a Deny on its node.name")
	}
	for _, id := range r.since.perhaps {
		if !r.again && !slices.Contains(r.result.Evicted, id) && !slices.Contains(r.result.Strange, id) {
			continue // it was evicted in the backup
		}
		note(id+" was revoked after the backup; whether it was evicted is not known, so it is", "credence node allow "+id+", if it was not")
	}
	for _, line := range some(r.since.keys) {
		note("a change of keys after the backup: "+line, "credence ca show; credence ca replace issuing|jwt, if a key had leaked (of the broker that is named: issuing --of NAME)")
	}
	note("JWT keys and issuing CAs made after the backup, with what they signed: it can't be revoked one by one", "it ends by itself; credence ca replace root, if it must not")
	if !m.Wrapped && m.Keys > 0 {
		note("the keys in the backup were not encrypted by themselves: whoever had the backup and its key has them", "keep both apart; keys.disk.kek_file in broker.yaml, then credence broker keys --rewrap")
	}
	fmt.Fprintln(out, "\nnow try the keys, and start the broker:\n    credence broker keys -c broker.yaml\n    credence broker run -c broker.yaml")
}

// some are the first few, and how many more there are.
func some(all []string) []string {
	const most = 20
	if len(all) <= most {
		return all
	}
	return append(slices.Clone(all[:most]), fmt.Sprintf("and %d more", len(all)-most))
}

// happened is what the record says of the time after a backup.
type happened struct {
	found   bool      // that there is a record of then
	from    time.Time // it begins only then; zero: with the backup
	evicted []string
	perhaps []string             // of evicted
	told    map[string]time.Time // when the record said last why a node is, or isn't, revoked
	cuts    []broker.Cutoff
	svids   []broker.Issued
	policy  []string
	keys    []string
}

// joined are the nodes of svids that the database doesn't know.
func (h happened) joined(r store.Restored) (ids []string) {
	seen := map[string]bool{}
	for _, id := range r.Known {
		seen[id] = true
	}
	for _, i := range h.svids {
		if !seen[i.Node] {
			seen[i.Node] = true
			ids = append(ids, i.Node)
		}
	}
	return ids
}

// happenedSince reads the record from where the backup was made; all that is left
// of it, where it is another that has begun anew or that place was removed for its
// age.
func happenedSince(ctx context.Context, dir string, m backup.Manifest) (h happened, err error) {
	h.told = map[string]time.Time{}
	if files, err := filepath.Glob(filepath.Join(dir, "*.jsonl")); err != nil || len(files) == 0 {
		return h, err
	}
	oldest, err := audit.OldestIn(dir)
	if err != nil {
		return h, err
	}
	after, same := oldest.Sequence, oldest.Sequence == 0 && m.Record == 0
	if m.Record > after {
		for r, err := range audit.Read(ctx, dir, m.Record-1) {
			if err == nil && r.Sequence == m.Record && r.Hash == m.RecordHash {
				after, same = m.Record, true
			}
			break
		}
	}
	h.found = same // nothing may have happened since
	for r, err := range audit.Read(ctx, dir, after) {
		if err != nil {
			return h, fmt.Errorf("reading what happened since the backup: %w", err)
		}
		if !same && r.Time.Before(m.MadeAt.Add(-clockSkew)) {
			continue
		}
		if !same && !h.found && r.Time.After(m.MadeAt) {
			h.from = r.Time
		}
		h.found = true
		h.add(r)
	}
	return h, nil
}

func (h *happened) add(r audit.Record) {
	at := r.Time.UTC().Format(time.RFC3339) + " " + r.Actor
	switch r.Kind {
	case "evict":
		h.told[r.Node] = r.Time
		h.evicted = append(h.evicted, r.Node)
	case "allow":
		h.told[r.Node] = r.Time
		h.evicted = slices.DeleteFunc(h.evicted, func(id string) bool { return id == r.Node })
	case "revoke":
		h.told[r.Node] = r.Time
		if before, err := time.Parse(time.RFC3339Nano, r.Detail["before"]); err == nil {
			h.cuts = append(h.cuts, broker.Cutoff{Kind: r.Detail["kind"], Value: r.Detail["value"], Before: before, Reason: r.Reason, Actor: r.Actor, MadeAt: r.Time})
		}
	case "join", "renew":
		if r.OK && r.Serial != "" {
			h.svids = append(h.svids, broker.Issued{Node: r.Node, Serial: r.Serial, Authority: r.Authority, IssuedAt: r.Issued, ExpiresAt: r.NotAfter})
		}
	case "apply", "delete":
		if r.OK {
			h.policy = append(h.policy, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", at, r.Kind, r.Detail["kind"], r.Detail["name"])))
		}
	case "authority":
		if r.OK {
			h.keys = append(h.keys, strings.TrimSpace(at+" "+r.Code+" "+r.Detail["broker"]))
		}
	}
}
