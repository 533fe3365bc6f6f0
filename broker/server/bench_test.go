package server_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/resource"
)

// These benchmarks run a broker in a process of its own and read what CPU time
// it takes for each operation from /proc, beside a raw loop of the operation's
// cryptography and an empty call to a bare server over the same transport,
// all three in turn and the medians taken: so the ratios hold on a noisy
// machine. One iteration is one such measurement.
//
//	cpu-µs/op    what the broker takes
//	raw-µs/op    the cryptography alone, in a loop
//	floor-µs/op  an empty call to the bare server, or a file from it
//	bare-µs/op   a call to the bare server that does the cryptography
//	ratio        cpu to what the row's bound is a multiple of
//	bound-x      what the ratio may be
//	bound-µs/op  the same in this run's time

var serverProfile = flag.String("serverprofile", "", "write a CPU profile of the broker for each benchmark into `directory`")

const (
	benchIdentities = 10_000
	benchTurns      = 5
	benchTurn       = 600 * time.Millisecond
	benchRawTurn    = 250 * time.Millisecond
)

func BenchmarkX509SVID(b *testing.B) {
	e := startBench(b)
	for _, callers := range []int{16, 1} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			m := e.measure(b, callers, func(n int, conn *grpc.ClientConn) { e.issueX509(b, conn, n, 1) }, newRaw(b, rawCreate))
			m.report(b, m.raw+m.floor, 1.25)
		})
	}
}

func BenchmarkX509SVIDFifty(b *testing.B) {
	const many = 50
	e := startBench(b)
	m := e.measure(b, 4, func(n int, conn *grpc.ClientConn) { e.issueX509(b, conn, n, many) }, newRaw(b, rawCreate))
	m.cpu, m.bare = m.cpu/many, m.bare/many
	m.report(b, m.raw, 1.15)
}

func BenchmarkJWTSVID(b *testing.B) {
	e := startBench(b)
	for _, callers := range []int{16, 1} {
		b.Run(fmt.Sprintf("ES256/callers=%d", callers), func(b *testing.B) {
			raw := newRaw(b, func() (func() (string, error), error) { return rawJWT("ES256") })
			m := e.measure(b, callers, func(n int, conn *grpc.ClientConn) { e.issueJWT(b, conn, n, "spiffe://example.org/ledger") }, raw)
			m.report(b, m.raw+m.floor, 1.4)
		})
	}
	b.Run("RS256/callers=16", func(b *testing.B) {
		raw := newRaw(b, func() (func() (string, error), error) { return rawJWT("RS256") })
		m := e.measure(b, 16, func(n int, conn *grpc.ClientConn) { e.issueJWT(b, conn, n, "orders") }, raw)
		m.report(b, m.raw, (m.raw+100)/m.raw)
	})
}

// newRaw makes a raw loop's body.
func newRaw[T any](b *testing.B, create func() (func() (T, error), error)) func() {
	b.Helper()
	do, err := create()
	if err != nil {
		b.Fatal(err)
	}
	return func() {
		if _, err := do(); err != nil {
			b.Fatal(err)
		}
	}
}

// The bound is 1,200 µs where the raw loop takes 257, the middle of its range.
// The floor's call is empty, the bare server's is not; both are on a connection
// of their own too.
func BenchmarkNewConnection(b *testing.B) {
	e := startBench(b)
	dialed := func(address string, show *tls.Certificate, do func(*grpc.ClientConn)) {
		conn := e.dial(b, address, show)
		defer conn.Close()
		do(conn)
	}
	m := e.turns(b, 16, newRaw(b, rawCreate), [3]func(int){
		func(n int) {
			dialed(e.place.Agents, e.node, func(c *grpc.ClientConn) { e.issueX509(b, c, n, 1) })
		},
		func(int) { dialed(e.bare.Agents, e.bareCert, func(c *grpc.ClientConn) { emptyCall(b, c) }) },
		func(n int) {
			dialed(e.bare.Agents, e.bareCert, func(c *grpc.ClientConn) { e.issueX509(b, c, n, 1) })
		},
	})
	m.report(b, m.raw, 1200.0/257)
}

func BenchmarkBundle(b *testing.B) { benchGet(b, "/bundle", 40.0/24) }

func BenchmarkJWKS(b *testing.B) { benchGet(b, "/td/keys", 30.0/21) }

func benchGet(b *testing.B, path string, bound float64) {
	e := startBench(b)
	c := &http.Client{Transport: &http.Transport{ // HTTP/1.1: such clients poll, and have one request under way
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, MaxIdleConnsPerHost: 16, DisableCompression: true,
	}}
	b.Cleanup(c.CloseIdleConnections)
	size := len(requireGet(b, c, "https://"+e.place.Web+path))
	m := e.turns(b, 16, nil, [3]func(int){
		func(int) { requireGet(b, c, "https://"+e.place.Web+path) },
		func(int) { requireGet(b, c, "https://"+e.bare.Web+"/"+strconv.Itoa(size)) },
	})
	m.report(b, m.floor, bound)
}

// BenchmarkApply creates identities in one apply, of what credence apply
// sends: at least 5,000 a second; and of YAML as people write it.
func BenchmarkApply(b *testing.B) {
	yaml := identitiesYAML(benchIdentities)
	all, err := resource.Registry{}.Parse("bench.yaml", yaml)
	if err != nil {
		b.Fatal(err)
	}
	var text []byte
	for _, r := range all {
		one, err := r.Text()
		if err != nil {
			b.Fatal(err)
		}
		text = append(append(text, "---\n"...), one...)
	}
	b.Run("Text", func(b *testing.B) { benchApply(b, text) })
	b.Run("YAML", func(b *testing.B) { benchApply(b, yaml) })
}

func benchApply(b *testing.B, text []byte) {
	var rates, costs []float64
	for b.Loop() {
		child, place := startChild(b, "broker")
		admin := api.NewAdminClient(dialAdmin(b, place.Admin))
		stop := child.profile(b)
		before, start := child.cpu(b), time.Now()
		if _, err := admin.Apply(b.Context(), &api.ApplyRequest{Yaml: text, File: "bench.yaml"}); err != nil {
			b.Fatal(err)
		}
		rates = append(rates, benchIdentities/time.Since(start).Seconds())
		costs = append(costs, micros(child.cpu(b)-before)/benchIdentities)
		stop()
		child.stop()
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(rates), "entries/s")
	b.ReportMetric(5000, "bound-entries/s")
	b.ReportMetric(median(costs), "cpu-µs/entry")
}

// A measurement's times are in µs of CPU time; zero was not measured.
type measurement struct{ cpu, floor, bare, raw float64 }

// measure calls by one connection to each server, as an agent does.
func (e *bench) measure(b *testing.B, callers int, do func(n int, c *grpc.ClientConn), raw func()) measurement {
	bare := e.dial(b, e.bare.Agents, e.bareCert)
	defer bare.Close()
	return e.turns(b, callers, raw, [3]func(int){
		func(n int) { do(n, e.conn) },
		func(int) { emptyCall(b, bare) },
		func(n int) { do(n, bare) },
	})
}

// turns lets so many callers drive the broker, then the bare server in one way
// and the other, and then the raw loop, again and again.
func (e *bench) turns(b *testing.B, callers int, raw func(), calls [3]func(int)) measurement {
	var took [4][]float64
	children := [3]*child{e.broker, e.floor, e.floor}
	e.drive(b, e.broker, callers, calls[0], benchTurn/3) // caches and connections
	stop := e.broker.profile(b)
	for b.Loop() {
		for range benchTurns {
			for i, do := range calls {
				if do != nil {
					took[i] = append(took[i], e.drive(b, children[i], callers, do, benchTurn))
				}
			}
			if raw != nil {
				took[3] = append(took[3], driveRaw(b, raw))
			}
		}
	}
	stop()
	b.ReportMetric(0, "ns/op")
	return measurement{median(took[0]), median(took[1]), median(took[2]), median(took[3])}
}

func (m measurement) report(b *testing.B, base, bound float64) {
	for unit, value := range map[string]float64{"cpu-µs/op": m.cpu, "floor-µs/op": m.floor, "bare-µs/op": m.bare, "raw-µs/op": m.raw} {
		if value > 0 {
			b.ReportMetric(value, unit)
		}
	}
	b.ReportMetric(m.cpu/base, "ratio")
	b.ReportMetric(bound, "bound-x")
	b.ReportMetric(bound*base, "bound-µs/op")
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	return values[len(values)/2]
}

// drive lets callers work for a while, and returns what CPU time the child took
// for each call.
func (e *bench) drive(b *testing.B, c *child, callers int, do func(n int), d time.Duration) float64 {
	var running sync.WaitGroup
	var done atomic.Int64
	before, start := c.cpu(b), time.Now()
	for range callers {
		running.Go(func() {
			for time.Since(start) < d && !b.Failed() {
				do(int(e.calls.Add(1)))
				done.Add(1)
			}
		})
	}
	running.Wait()
	if b.Failed() {
		b.FailNow()
	}
	return micros(c.cpu(b)-before) / float64(done.Load())
}

func driveRaw(b *testing.B, do func()) float64 {
	n := 0
	before, start := cpuOf(b, os.Getpid()), time.Now()
	for ; time.Since(start) < benchRawTurn; n++ {
		do()
	}
	return micros(cpuOf(b, os.Getpid())-before) / float64(n)
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// cpuOf is the CPU time of a process and its threads, to 10 ms.
func cpuOf(b *testing.B, pid int) time.Duration {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	var ticks int64
	for _, field := range fields[11:13] { // utime and stime, proc(5)
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond // Linux counts 100 ticks a second for programs on every machine
}

// A child is a server in a process of its own.
type child struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	once sync.Once
}

func startChild(b *testing.B, role string) (*child, benchPlace) {
	b.Helper()
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		b.Skip("a server's CPU time is read from /proc, and there is none here")
	}
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "bench") // b.TempDir's are too long for a socket
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	c := &child{cmd: exec.Command(self)}
	c.cmd.Dir = dir
	c.cmd.Env = append(os.Environ(), benchEnv+"="+role)
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		b.Fatal(err)
	}
	defer log.Close()
	c.cmd.Stderr = log
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		b.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	c.out = bufio.NewReader(out)
	if err := c.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(c.stop)
	var place benchPlace
	line, err := c.out.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &place)
	}
	if err != nil {
		c.stop()
		text, _ := os.ReadFile(log.Name())
		b.Fatalf("starting a %s: %v\n%s", role, err, text)
	}
	return c, place
}

func (c *child) stop() {
	c.once.Do(func() {
		_ = c.in.Close()
		_ = c.cmd.Wait()
	})
}

func (c *child) cpu(b *testing.B) time.Duration { return cpuOf(b, c.cmd.Process.Pid) }

// profile writes a profile until it is stopped, if one is wanted.
func (c *child) profile(b *testing.B) (stop func()) {
	if *serverProfile == "" {
		return func() {}
	}
	dir, err := filepath.Abs(*serverProfile)
	if err != nil {
		b.Fatal(err)
	}
	name := strings.NewReplacer("/", "-", "=", "").Replace(b.Name())
	c.command(b, "profile "+filepath.Join(dir, name))
	return func() { c.command(b, "stop") }
}

func (c *child) command(b *testing.B, line string) {
	fmt.Fprintln(c.in, line)
	if answer, err := c.out.ReadString('\n'); err != nil || answer != "<nil>\n" {
		b.Fatalf("%s: %s %v", line, answer, err)
	}
}

// A bench is a broker with identities and a node that joined and watches, and
// the floor.
type bench struct {
	broker, floor *child
	place, bare   benchPlace
	node          *tls.Certificate
	bareCert      *tls.Certificate
	conn          *grpc.ClientConn
	keys          [][]byte // public ones to certify; nobody has the private ones
	calls         atomic.Int64
}

func startBench(b *testing.B) *bench {
	b.Helper()
	e := &bench{}
	e.broker, e.place = startChild(b, "broker")
	e.floor, e.bare = startChild(b, "floor")
	key, err := x509.ParseECPrivateKey(e.bare.Key)
	if err != nil {
		b.Fatal(err)
	}
	for range 256 {
		e.keys = append(e.keys, spki(b, newKey(b).Public()))
	}
	e.bareCert = &tls.Certificate{Certificate: [][]byte{e.bare.Cert}, PrivateKey: key}
	admin := api.NewAdminClient(dialAdmin(b, e.place.Admin))
	if _, err := admin.Apply(b.Context(), &api.ApplyRequest{Yaml: identitiesYAML(benchIdentities), File: "bench.yaml"}); err != nil {
		b.Fatal(err)
	}
	token, err := admin.CreateToken(b.Context(), &api.CreateTokenRequest{Node: "n1"})
	if err != nil {
		b.Fatal(err)
	}
	nodeKey := newKey(b)
	joined, err := joinOnce(b.Context(), api.NewNodeClient(e.dial(b, e.place.Agents, nil)), &api.JoinRequest_Start{
		Method: "token", Evidence: []byte(token.GetToken()), PublicKey: spki(b, nodeKey.Public()),
	})
	if err != nil {
		b.Fatal(err)
	}
	e.node = &tls.Certificate{Certificate: joined.GetChain(), PrivateKey: nodeKey}
	e.conn = e.dial(b, e.place.Agents, e.node)
	b.Cleanup(func() { e.conn.Close() })
	e.watch(b)
	return e
}

// watch keeps a stream open, as every agent does.
func (e *bench) watch(b *testing.B) {
	b.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := api.NewNodeClient(e.conn).Watch(ctx)
	if err == nil {
		err = stream.Send(&api.WatchRequest{Step: &api.WatchRequest_Since_{Since: &api.WatchRequest_Since{}}})
	}
	if err == nil {
		_, err = stream.Recv()
	}
	if err != nil {
		cancel()
		b.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for err == nil {
			_, err = stream.Recv()
		}
	}()
	b.Cleanup(func() { cancel(); <-ended })
}

func dialAdmin(b *testing.B, socket string) *grpc.ClientConn {
	b.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	return conn
}

func (e *bench) dial(b *testing.B, address string, show *tls.Certificate) *grpc.ClientConn {
	b.Helper()
	config := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true} // only the server's time is measured
	if show != nil {
		config.Certificates = []tls.Certificate{*show}
	}
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		b.Fatal(err)
	}
	return conn
}

// identitiesYAML are n Identities, each of a process of its own uid.
func identitiesYAML(n int) []byte {
	var text strings.Builder
	for i := range n {
		fmt.Fprintf(&text, `---
kind: Identity
name: app-%05d
spiffe_id: /ns/prod/app-%05d
match: [{node.name: n1, workload.unix.uid: %d}]
jwt: {audiences: [orders, "spiffe://example.org/ledger"]}
`, i, i, 10_000+i)
	}
	return []byte(text.String())
}

// benchWorkload is the n-th process, with what an agent proves of one.
func benchWorkload(n int) *api.Workload {
	id := strconv.Itoa(10_000 + n%benchIdentities)
	facts := map[string]*api.Values{}
	for name, values := range map[string][]string{
		"uid": {id}, "gid": {id}, "user": {"app" + id}, "group": {"app" + id}, "supplementary_gid": {"100", "101"},
		"path": {"/usr/local/bin/app"}, "systemd_unit": {"app" + id + ".service"},
	} {
		facts["workload.unix."+name] = &api.Values{Values: values}
	}
	return &api.Workload{Facts: facts}
}

func (e *bench) issueX509(b *testing.B, conn *grpc.ClientConn, n, items int) {
	request := &api.IssueX509Request{}
	for i := range items {
		request.Items = append(request.Items, &api.IssueX509Request_Item{
			Workload: benchWorkload(n*items + i), PublicKeys: [][]byte{e.keys[(n+i)%len(e.keys)]},
		})
	}
	r, err := api.NewNodeClient(conn).IssueX509(b.Context(), request)
	if err != nil {
		b.Error(err)
		return
	}
	for _, result := range r.GetResults() {
		if len(result.GetSvids()) != 1 || len(result.GetSvids()[0].GetChain()) == 0 {
			b.Errorf("not one SVID: %v", result)
		}
	}
}

func (e *bench) issueJWT(b *testing.B, conn *grpc.ClientConn, n int, audience string) {
	r, err := api.NewNodeClient(conn).IssueJWT(b.Context(), &api.IssueJWTRequest{Workload: benchWorkload(n), Audiences: []string{audience}})
	if err != nil {
		b.Error(err)
		return
	}
	if len(r.GetSvids()) != 1 || r.GetSvids()[0].GetToken() == "" {
		b.Errorf("not one token: %v", r)
	}
}

func emptyCall(b *testing.B, conn *grpc.ClientConn) {
	if _, err := api.NewNodeClient(conn).Report(b.Context(), &api.ReportRequest{}); err != nil {
		b.Error(err)
	}
}

func requireGet(b *testing.B, c *http.Client, url string) []byte {
	r, err := c.Get(url)
	if err != nil {
		b.Error(err)
		return nil
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		b.Errorf("%s: %s, %v", url, r.Status, err)
	}
	return body
}
