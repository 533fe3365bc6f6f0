//go:build drill

package main_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // by which the drill fills a database
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/audit"
)

// How much the drill of replicas is of: NODES and LIFE in the environment say
// otherwise.
const (
	replicaNodes     = 2000
	replicaWorkloads = 10 // on each node
	replicaLife      = "4m"
)

// TestDrillReplicas has three brokers over one PostgreSQL serve 2,000 agents with
// 20,000 identities, whose SVIDs are short-lived, while brokers are killed, one is
// frozen, and the database is restarted, frozen, killed and replaced by its
// standby. Workloads and a peer handshake all the while: none may fail. No record
// is lost, and no serial number is given twice.
func TestDrillReplicas(t *testing.T) {
	c := newCluster(t, 3)
	nodes := number("NODES", replicaNodes)
	d := &drill{t: t, began: time.Now(), counts: map[string]*[2]int{}}
	var agents []*simAgent
	d.do("policy is applied", func() { c.apply(nodes) })
	d.do("agents join", func() { agents = c.join(d, nodes) })
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	d.stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(d.stop)
	d.do("agents have all SVIDs", func() {
		var first sync.WaitGroup
		first.Add(len(agents))
		for _, a := range agents {
			running.Go(func() { a.run(ctx, first.Done) })
		}
		first.Wait()
	})
	d.every(ctx, &running, "mTLS between workloads", 50, func(context.Context) error { return handshake(pick(agents), pick(agents)) })
	peer := &simPeer{c: c}
	if err := peer.poll(); err != nil {
		t.Fatal(err)
	}
	running.Go(func() { peer.run(ctx) })
	d.every(ctx, &running, "a peer verifies a workload", 25, func(context.Context) error { return peer.verify(pick(agents)) })

	wait := func(what string, long time.Duration) { d.do(what, func() { <-time.After(long) }) } // the drill's own pace
	wait("at rest", 20*time.Second)
	for n := 1; n <= 3; n++ {
		d.do(fmt.Sprintf("broker %d is killed", n), c.brokers[n].kill)
		wait("two brokers", 10*time.Second)
		d.do(fmt.Sprintf("broker %d starts", n), func() { c.startBroker(n) })
		wait("three brokers", 10*time.Second)
	}
	d.do("an eviction at 1 holds at 2 and 3", func() { c.evict(agents[0]) })
	d.do("broker 2 is frozen", func() {
		c.brokers[2].signal(syscall.SIGSTOP)
		<-time.After(30 * time.Second)
		c.brokers[2].signal(syscall.SIGCONT)
	})
	wait("three brokers", 10*time.Second)
	d.do("PostgreSQL is restarted", func() {
		c.database.signal(syscall.SIGINT)
		<-c.database.ended
		c.startDatabase()
	})
	wait("at rest", 10*time.Second)
	d.do("PostgreSQL is frozen", func() {
		c.database.signal(syscall.SIGSTOP)
		<-time.After(30 * time.Second)
		c.database.signal(syscall.SIGCONT)
	})
	wait("at rest", 10*time.Second)
	d.do("the standby follows", c.startStandby)
	d.do("PostgreSQL is killed, for good", c.database.kill)
	wait("no database", 20*time.Second)
	d.do("the standby is promoted", func() { c.part("promote").wait(t) })
	d.do("a change is possible again", func() { c.change() })
	wait("at rest", 30*time.Second)
	d.end()
	status, _ := c.try(1, "status") // which says no where the index is still behind
	t.Log("\n" + status)
	c.judge(agents)
}

// TestDrillColdStart starts a broker over a database with half a million
// identities, all of which were changed once.
func TestDrillColdStart(t *testing.T) {
	c := newCluster(t, 1)
	c.brokers[1].signal(syscall.SIGTERM)
	<-c.brokers[1].ended
	db, err := sql.Open("pgx", "postgres://credence@127.0.0.1:"+c.ports["database"]+"/postgres")
	if err != nil {
		t.Fatal(err)
	}
	total := number("IDENTITIES", 500_000)
	began := time.Now()
	for _, text := range []string{ // as two applies would, in a hundredth of the time
		// In the words in which a broker writes them.
		`INSERT INTO resource (kind, name, revision, owner, body, actor, written_at)
			SELECT 'Identity', 'i' || n, head.revision + round, 'drill', convert_to(format(
				'{"kind":"Identity","name":"i%s","spiffe_id":"/w/%s","match":[{"node.name":"n%s","workload.unix.uid":"%s"}],"x509":{"ttl":"%sm0s"}}',
				n, n, n / 10, 1000 + n % 10, 10 + round) || chr(10), 'UTF8'), 'drill', 0
			FROM head, generate_series(1, 2) round, generate_series(1, $1::bigint) n`,
		`INSERT INTO policy_revision (revision, act, owner, actor, created, changed, deleted, written_at)
			SELECT head.revision + round, 'apply', 'drill', 'drill', 0, $1::bigint, 0, 0 FROM head, generate_series(1, 2) round`,
		`UPDATE head SET revision = revision + 2 WHERE $1::bigint > 0`,
	} {
		if _, err := db.ExecContext(t.Context(), text, total); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d identities written twice in %.0f s", total, time.Since(began).Seconds())
	began = time.Now()
	c.brokers[1] = c.part("broker", "1")
	for range 20 {
		if _, err = c.brokers[1].await("agents on", 0); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.brokers[1].cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "VmHWM") || strings.HasPrefix(line, "VmRSS") {
			t.Log(strings.TrimSpace(line))
		}
	}
	t.Logf("a broker starts over them in %.1f s", took.Seconds())
	if took > time.Minute {
		t.Error("that is more than a minute")
	}
}

func number(name string, otherwise int) int {
	n := otherwise
	if text := os.Getenv(name); text != "" {
		if _, err := fmt.Sscan(text, &n); err != nil {
			panic(err)
		}
	}
	return n
}

// A cluster is what examples/replicas/cluster.sh starts.
type cluster struct {
	t        *testing.T
	dir      string
	script   string
	database *part
	brokers  [4]*part // from 1
	ports    map[string]string
}

// A part is a process of a cluster, in a group of its own.
type part struct{ *process }

func (p *part) signal(s syscall.Signal) { _ = syscall.Kill(-p.cmd.Process.Pid, s) }

func (p *part) kill() {
	p.signal(syscall.SIGKILL)
	<-p.ended
}

func (p *part) wait(t *testing.T) {
	t.Helper()
	<-p.ended
	if p.err != nil {
		text, _ := p.printed()
		t.Fatalf("%v: %s", p.err, text)
	}
}

func newCluster(t *testing.T, brokers int) *cluster {
	script, err := filepath.Abs("../../examples/replicas/cluster.sh")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "cluster")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := &cluster{t: t, dir: dir, script: script, ports: map[string]string{}}
	c.startDatabase()
	text, err := os.ReadFile(filepath.Join(dir, "ports"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		name, port, _ := strings.Cut(strings.TrimSpace(line), " ")
		c.ports[name] = port
	}
	for n := 1; n <= brokers; n++ {
		c.startBroker(n)
	}
	return c
}

func (c *cluster) part(args ...string) *part {
	c.t.Helper()
	cmd := exec.Command("bash", append([]string{c.script, c.dir}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Env = append(os.Environ(), "BROKER_YAML=refresh_hint: 30s")
	p := &part{startCmd(c.t, cmd)}
	c.t.Cleanup(p.kill)
	return p
}

func (c *cluster) startDatabase() {
	c.database = c.part("database")
	if _, err := c.database.await("ready to accept connections", 0); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) startStandby() {
	if _, err := c.part("standby").await("started streaming", 0); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) startBroker(n int) {
	c.brokers[n] = c.part("broker", fmt.Sprint(n))
	if _, err := c.brokers[n].await("agents on", 0); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) credence(n int, args ...string) string {
	c.t.Helper()
	out, err := c.try(n, args...)
	if err != nil {
		c.t.Fatalf("%s: %v: %s", args, err, out)
	}
	return out
}

func (c *cluster) try(n int, args ...string) (string, error) {
	cmd := exec.Command("credence", args...)
	cmd.Env = append(os.Environ(), "CREDENCE_ADMIN="+filepath.Join(c.dir, fmt.Sprint("b", n), "run", "admin.sock"))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (c *cluster) admin(n int) api.AdminClient {
	c.t.Helper()
	conn, err := grpc.NewClient("unix://"+filepath.Join(c.dir, fmt.Sprint("b", n), "run", "admin.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close() })
	return api.NewAdminClient(conn)
}

func (c *cluster) apply(nodes int) {
	life := os.Getenv("LIFE")
	if life == "" {
		life = replicaLife
	}
	const most = 900 // nodes of a file
	for from := 0; from < nodes; from += most {
		var text strings.Builder
		for n := from; n < min(from+most, nodes); n++ {
			for w := range replicaWorkloads {
				fmt.Fprintf(&text, "kind: Identity\nname: i%d-%d\nspiffe_id: /w/%d/%d\nmatch: [{node.name: n%d, workload.unix.uid: %d}]\nx509: {ttl: %s}\n---\n", n, w, n, w, n, 1000+w, life)
			}
		}
		path := filepath.Join(c.dir, "identities.yaml")
		if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
			c.t.Fatal(err)
		}
		c.credence(1, "apply", "-f", path)
	}
}

// change makes a change as soon as one is possible.
func (c *cluster) change() {
	for deadline := time.Now().Add(time.Minute); ; <-time.After(200 * time.Millisecond) {
		out, err := c.try(1, "token", "create", "--node", "late")
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("no change is possible: %s", out)
		}
	}
}

// join has all nodes join, each at some broker.
func (c *cluster) join(d *drill, nodes int) []*simAgent {
	agents := make([]*simAgent, nodes)
	admin := c.admin(1)
	room := make(chan struct{}, 16)
	var joining sync.WaitGroup
	for n := range nodes {
		room <- struct{}{}
		joining.Go(func() {
			defer func() { <-room }()
			a := &simAgent{c: c, d: d, name: fmt.Sprint("n", n), at: n % 3}
			if err := a.join(context.Background(), admin); err != nil {
				c.t.Errorf("%s does not join: %v", a.name, err)
			}
			agents[n] = a
		})
	}
	joining.Wait()
	if c.t.Failed() {
		c.t.FailNow()
	}
	return agents
}

// evict shuts a node out at one broker, and waits until it is out of all.
func (c *cluster) evict(a *simAgent) {
	a.out.Store(true)
	c.credence(1, "node", "evict", a.id, "--reason", "a drill")
	for n := 1; n <= 3; n++ {
		for deadline := time.Now().Add(20 * time.Second); ; <-time.After(50 * time.Millisecond) {
			conn, err := a.dial(n - 1)
			if err != nil {
				c.t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			_, err = api.NewNodeClient(conn).IssueX509(ctx, a.request())
			cancel()
			conn.Close()
			if err != nil {
				break
			}
			if time.Now().After(deadline) {
				c.t.Fatalf("broker %d serves an evicted node", n)
			}
		}
	}
}

// judge holds what agents have been given against the brokers' records.
func (c *cluster) judge(agents []*simAgent) {
	t := c.t
	recorded := map[string]int{}
	records := 0
	for n := 1; n <= 3; n++ {
		for r, err := range audit.Read(t.Context(), filepath.Join(c.dir, fmt.Sprint("b", n), "audit"), 0) {
			if err != nil {
				t.Fatal(err)
			}
			records++
			if r.OK && r.Serial != "" && (r.Kind == "issue.x509" || r.Kind == "join" || r.Kind == "renew") {
				recorded[r.Serial]++
			}
		}
	}
	given, lost, twice := 0, 0, 0
	for _, a := range agents {
		for _, serial := range a.serials {
			given++
			if recorded[serial] == 0 {
				lost++
			}
		}
	}
	for _, n := range recorded {
		if n > 1 {
			twice++
		}
	}
	t.Logf("%d SVIDs reached agents; %d records of three brokers speak of %d; %d are lost, %d serial numbers were given twice", given, records, len(recorded), lost, twice)
	if given == 0 || lost > 0 || twice > 0 {
		t.Error("the record is not whole")
	}
	for n := 1; n <= 3; n++ {
		c.brokers[n].signal(syscall.SIGTERM)
		<-c.brokers[n].ended
		t.Log(c.credence(n, "audit", "verify", "--data", filepath.Join(c.dir, fmt.Sprint("b", n))))
	}
	files, err := filepath.Glob(filepath.Join(c.dir, "b1", "audit", "*.jsonl"))
	if err != nil || len(files) == 0 {
		t.Fatal("no record", err)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	text[len(text)/2] ^= 1
	if err := os.WriteFile(files[0], text, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := c.try(1, "audit", "verify", "--data", filepath.Join(c.dir, "b1"))
	t.Logf("after one byte was changed: %s", out)
	if err == nil {
		t.Error("a changed byte is not found")
	}
}

// A simAgent does what an agent does towards its brokers, without workloads that
// ask it.
type simAgent struct {
	c    *cluster
	d    *drill
	name string
	id   string
	at   int // which broker it is at, or tries next
	key  *ecdsa.PrivateKey
	out  atomic.Bool // evicted

	life    time.Duration // of its SVIDs, from when they were given; run's
	keys    [replicaWorkloads]*ecdsa.PrivateKey
	serials []string // of all that it was given; run's

	mu     sync.Mutex // guards what follows
	cert   tls.Certificate
	bundle *x509bundle.Bundle
	svids  [replicaWorkloads]*x509svid.SVID
}

var simDomain = spiffeid.RequireTrustDomainFromString("example.org")

func (a *simAgent) join(ctx context.Context, admin api.AdminClient) error {
	made, err := admin.CreateToken(ctx, &api.CreateTokenRequest{Node: a.name})
	if err != nil {
		return err
	}
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return err
	}
	for i := range a.keys {
		if a.keys[i], err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return err
		}
	}
	pub, err := x509.MarshalPKIXPublicKey(a.key.Public())
	if err != nil {
		return err
	}
	conn, err := a.dial(a.at)
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := api.NewNodeClient(conn).Join(ctx)
	if err != nil {
		return err
	}
	start := &api.JoinRequest_Start{Method: "token", Evidence: []byte(made.GetToken()), PublicKey: pub}
	if err := stream.Send(&api.JoinRequest{Step: &api.JoinRequest_Start_{Start: start}}); err != nil {
		return err
	}
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	a.id = m.GetJoined().GetNodeId()
	return a.admitted(m.GetJoined())
}

// admitted takes the node's SVID, and the bundle.
func (a *simAgent) admitted(j *api.Joined) error {
	leaf, err := x509.ParseCertificate(j.GetChain()[0])
	if err != nil {
		return err
	}
	a.serials = append(a.serials, hex.EncodeToString(leaf.SerialNumber.Bytes()))
	a.mu.Lock()
	a.cert = tls.Certificate{Certificate: j.GetChain(), PrivateKey: a.key}
	a.mu.Unlock()
	return a.believe(j.GetBundle())
}

func (a *simAgent) believe(document []byte) error {
	b, err := spiffebundle.Parse(simDomain, document)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.bundle = b.X509Bundle()
	return nil
}

// dial takes any broker that the bundle vouches for; before there is one, any.
func (a *simAgent) dial(at int) (*grpc.ClientConn, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			a.mu.Lock()
			defer a.mu.Unlock()
			cert := a.cert
			return &cert, nil
		},
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			a.mu.Lock()
			bundle := a.bundle
			a.mu.Unlock()
			if bundle == nil {
				return nil
			}
			id, _, err := x509svid.ParseAndVerify(raw[:len(raw)-1], bundle)
			if err == nil && id.Path() != "/credence/broker" {
				err = errors.New("it is " + id.String())
			}
			return err
		},
	}
	return grpc.NewClient("127.0.0.1:"+a.c.ports[fmt.Sprint("b", at+1)], grpc.WithTransportCredentials(credentials.NewTLS(config)))
}

// run keeps the SVIDs fresh until ctx ends, at whichever broker answers. first is
// called when it has all.
func (a *simAgent) run(ctx context.Context, first func()) {
	first = sync.OnceFunc(first)
	defer first()
	for ctx.Err() == nil && !a.out.Load() {
		err := a.serve(ctx, first)
		if ctx.Err() != nil || a.out.Load() {
			return
		}
		a.d.noted("an agent goes to another broker", err)
		a.at = (a.at + 1 + mathrand.IntN(2)) % 3
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(100+mathrand.IntN(900)) * time.Millisecond):
		}
	}
}

// serve is at one broker until that fails.
func (a *simAgent) serve(ctx context.Context, first func()) error {
	conn, err := a.dial(a.at)
	if err != nil {
		return err
	}
	defer conn.Close()
	client := api.NewNodeClient(conn)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream, err := client.Watch(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&api.WatchRequest{Step: &api.WatchRequest_Since_{Since: &api.WatchRequest_Since{}}}); err != nil {
		return err
	}
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel(nil)
	watching.Go(func() { cancel(a.watch(stream)) })
	renewed := time.Now()
	for {
		if a.due() {
			if err := a.issue(ctx, client); err != nil {
				return err
			}
			first()
		}
		if time.Since(renewed) > 2*time.Minute {
			renewed = time.Now()
			if err := a.renew(ctx, client); err != nil {
				a.d.noted("a node's own renewal waits", err)
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Duration(500+mathrand.IntN(1000)) * time.Millisecond):
		}
	}
}

func (a *simAgent) watch(stream grpc.BidiStreamingClient[api.WatchRequest, api.WatchResponse]) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		for _, b := range m.GetBundles() {
			if b.GetTrustDomain() == simDomain.Name() {
				if err := a.believe(b.GetDocument()); err != nil {
					return err
				}
			}
		}
		if err := stream.Send(&api.WatchRequest{Step: &api.WatchRequest_Acknowledged{Acknowledged: m.GetRevision()}}); err != nil {
			return err
		}
	}
}

// due says whether an SVID is past half of its life.
func (a *simAgent) due() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.svids {
		if s == nil {
			return true
		}
		if left := time.Until(s.Certificates[0].NotAfter); left < a.life/2 {
			return true
		}
	}
	return false
}

func (a *simAgent) request() *api.IssueX509Request {
	r := &api.IssueX509Request{}
	for w, key := range a.keys {
		pub, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			panic(err)
		}
		r.Items = append(r.Items, &api.IssueX509Request_Item{
			Workload:   &api.Workload{Facts: map[string]*api.Values{"workload.unix.uid": {Values: []string{fmt.Sprint(1000 + w)}}}},
			PublicKeys: [][]byte{pub},
		})
	}
	return r
}

func (a *simAgent) issue(ctx context.Context, client api.NodeClient) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r, err := client.IssueX509(ctx, a.request())
	if err != nil {
		return err
	}
	for w, result := range r.GetResults() {
		if len(result.GetSvids()) != 1 {
			return fmt.Errorf("workload %d of %s has %d SVIDs: %v", w, a.name, len(result.GetSvids()), result.GetDenial())
		}
		var chain []*x509.Certificate
		for _, der := range result.GetSvids()[0].GetChain() {
			one, err := x509.ParseCertificate(der)
			if err != nil {
				return err
			}
			chain = append(chain, one)
		}
		a.serials = append(a.serials, hex.EncodeToString(chain[0].SerialNumber.Bytes()))
		a.life = time.Until(chain[0].NotAfter)
		id := spiffeid.RequireFromString(result.GetSvids()[0].GetSpiffeId())
		a.mu.Lock()
		a.svids[w] = &x509svid.SVID{ID: id, Certificates: chain, PrivateKey: a.keys[w]}
		a.mu.Unlock()
		a.d.done("SVIDs issued", nil)
	}
	return nil
}

func (a *simAgent) renew(ctx context.Context, client api.NodeClient) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	pub, err := x509.MarshalPKIXPublicKey(a.key.Public())
	if err != nil {
		return err
	}
	j, err := client.Renew(ctx, &api.RenewRequest{PublicKey: pub})
	if err != nil {
		return err
	}
	return a.admitted(j)
}

// noted counts what may happen, and costs nobody anything.
func (d *drill) noted(what string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.counts[what] == nil {
		d.counts[what] = new([2]int)
		d.t.Logf("%6.1f s  %s, the first time: %v", time.Since(d.began).Seconds(), what, err)
	}
	d.counts[what][0]++
}

// pick is some agent that is not shut out.
func pick(agents []*simAgent) *simAgent {
	for {
		if a := agents[mathrand.IntN(len(agents))]; !a.out.Load() {
			return a
		}
	}
}

// some is one of its SVIDs, and what it verifies others by.
func (a *simAgent) some() (*x509svid.SVID, *x509bundle.Bundle) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.svids[mathrand.IntN(replicaWorkloads)], a.bundle
}

// handshake is one of two workloads, by what each holds.
func handshake(one, other *simAgent) error {
	mine, believes := one.some()
	theirs, believed := other.some()
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- tls.Server(far, tlsconfig.MTLSServerConfig(theirs, believed, tlsconfig.AuthorizeAny())).HandshakeContext(ctx)
	}()
	err := tls.Client(near, tlsconfig.MTLSClientConfig(mine, believes, tlsconfig.AuthorizeAny())).HandshakeContext(ctx)
	return errors.Join(err, <-ended)
}

// A simPeer is another company: it knows what the bundle endpoints say.
type simPeer struct {
	c      *cluster
	mu     sync.Mutex
	bundle *spiffebundle.Bundle // guarded by mu
}

func (p *simPeer) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(30 * time.Second): // the hint
		}
		_ = p.poll() // one that fails is made up for by the next
	}
}

func (p *simPeer) poll() (err error) {
	for n := range 3 {
		var body []byte
		if body, err = p.get(n); err != nil {
			continue
		}
		var b *spiffebundle.Bundle
		if b, err = spiffebundle.Parse(simDomain, body); err != nil {
			return err
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		was, _ := uint64(0), false
		if p.bundle != nil {
			was, _ = p.bundle.SequenceNumber()
		}
		if now, _ := b.SequenceNumber(); now < was {
			return fmt.Errorf("the bundle went from %d back to %d", was, now)
		}
		p.bundle = b
		return nil
	}
	return err
}

func (p *simPeer) get(n int) ([]byte, error) {
	p.mu.Lock()
	bundle := p.bundle
	p.mu.Unlock()
	config := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}
	if bundle != nil {
		config = tlsconfig.TLSClientConfig(bundle, tlsconfig.AuthorizeID(spiffeid.RequireFromPath(simDomain, "/credence/broker")))
	}
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
	r, err := client.Get("https://127.0.0.1:" + p.c.ports[fmt.Sprintf("b%d-spiffe", n+1)] + "/bundle")
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	return bytes.TrimSpace(body), err
}

// verify takes a workload's SVID for what the peer's bundle says of it.
func (p *simPeer) verify(a *simAgent) error {
	svid, _ := a.some()
	p.mu.Lock()
	bundle := p.bundle
	p.mu.Unlock()
	_, _, err := x509svid.Verify(svid.Certificates, bundle)
	return err
}
