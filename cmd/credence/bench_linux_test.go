package main_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
)

// These benchmarks run the program as an operator does, a broker and an agent
// in processes of their own, and read their CPU time and memory from /proc.
// Where a bound is known it stands beside the figure; none is asserted.
//
//	go test -run '^$' -bench . ./cmd/credence

// tick is the unit of CPU time in /proc/PID/stat: USER_HZ, 100 on every Linux.
const tick = 10 * time.Millisecond

// cpuOf is the CPU time that a process has used.
func cpuOf(b *testing.B, pid int) time.Duration {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:])) // from the third on
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		b.Fatal(err)
	}
	return time.Duration(user+system) * tick
}

// residentOf is a process's resident memory, in MiB.
func residentOf(b *testing.B, pid int) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(value)[0], 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib / 1024
		}
	}
	b.Fatal("no VmRSS")
	return 0
}

// machine is a broker and an agent on this machine, and a bare server.
type machine struct {
	b             *testing.B
	dir           string
	ports         [2]string
	broker, agent *process
	bare          *process
}

func (m *machine) path(elem ...string) string {
	return filepath.Join(append([]string{m.dir}, elem...)...)
}

func benchDir(b *testing.B) string {
	b.Helper()
	dir, err := shortDir()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// run starts a program and waits until it prints a pattern.
func (m *machine) run(pattern string, args ...string) *process {
	m.b.Helper()
	p, err := spawn(exec.Command(args[0], args[1:]...))
	if err == nil {
		m.b.Cleanup(p.halt)
		_, err = p.await(pattern, 0)
	}
	if err != nil {
		m.b.Fatal(err)
	}
	return p
}

// credence runs a verb to its end.
func (m *machine) credence(in string, args ...string) string {
	m.b.Helper()
	cmd := exec.Command("credence", args...)
	cmd.Env = append(os.Environ(), "CREDENCE_ADMIN="+m.path("broker", "run", "admin.sock"))
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(in), &out, &errs
	if err := cmd.Run(); err != nil {
		said, _ := m.broker.printed()
		m.b.Fatalf("%s: %v: %s\nthe broker: %s", args, err, errs.Bytes(), said)
	}
	return out.String()
}

func (m *machine) startBroker() {
	m.b.Helper()
	m.broker = m.run("agents on", "credence", "broker", "run", "-c", m.path("broker.yaml"))
}

func (m *machine) write(name, text string) string {
	m.b.Helper()
	if err := os.WriteFile(m.path(name), []byte(text), 0o600); err != nil {
		m.b.Fatal(err)
	}
	return m.path(name)
}

// newAgent starts an agent that has never joined.
func (m *machine) newAgent(name string) *process {
	m.b.Helper()
	var made struct {
		Token string `json:"token"`
		CAPin string `json:"ca_pin"`
	}
	if err := json.Unmarshal([]byte(m.credence("", "token", "create", "--node", name, "-o", "json")), &made); err != nil {
		m.b.Fatal(err)
	}
	config := m.write(name+".yaml", fmt.Sprintf("trust_domain: example.org\ndata: %s\nbroker: [%q]\ntrust: {ca_pin: [%q]}\njoin: {method: token, token_file: %s}\n",
		m.path(name), "127.0.0.1:"+m.ports[0], made.CAPin, m.write(name+".token", made.Token)))
	return m.run("agent of example.org", "credence", "agent", "run", "-c", config)
}

func (m *machine) socket() string { return "unix://" + m.path("agent", "run", "workload.sock") }

// identities are an Identity of this process, and n of others.
func identities(n int) (yaml []string) {
	var text strings.Builder
	fmt.Fprintf(&text, "kind: Identity\nname: bench\nspiffe_id: /bench\nmatch: [{node.name: agent, workload.unix.uid: %d}]\njwt: {audiences: [orders]}\n", os.Getuid())
	for i := range n {
		if i%5000 == 4999 { // an apply takes 10,000
			yaml = append(yaml, text.String())
			text.Reset()
		} else {
			text.WriteString("---\n")
		}
		fmt.Fprintf(&text, "kind: Identity\nname: other-%d\nspiffe_id: /other/%d\nmatch: [{node.name: n%d, workload.unix.uid: %d}]\n", i, i, i%1000, 5000+i)
	}
	return append(yaml, text.String())
}

func newMachine(b *testing.B, n int) *machine {
	b.Helper()
	m := &machine{b: b, dir: benchDir(b)}
	for i := range m.ports {
		port, err := freePort()
		if err != nil {
			b.Fatal(err)
		}
		m.ports[i] = port
	}
	m.write("broker.yaml", fmt.Sprintf("trust_domain: example.org\ndata: %s\nissuer: https://id.example.org\nlisten: {agents: %q, spiffe: %q}\n",
		m.path("broker"), "127.0.0.1:"+m.ports[0], "127.0.0.1:"+m.ports[1]))
	m.startBroker()
	for _, yaml := range identities(n) {
		m.credence(yaml, "apply", "-f", "-")
	}
	m.agent = m.newAgent("agent")
	m.bare = m.run("serving", "bare", m.path("bare.sock"))
	return m
}

func dialUnix(b *testing.B, where string) *grpc.ClientConn {
	b.Helper()
	conn, err := grpc.NewClient(where, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	return conn
}

func workloadCall() context.Context {
	return metadata.AppendToOutgoingContext(context.Background(), "workload.spiffe.io", "true")
}

// firstX509 waits for the first answer of a new stream.
func firstX509(conn *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(workloadCall(), patience)
	defer cancel()
	stream, err := workloadpb.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(ctx, &workloadpb.X509SVIDRequest{})
	if err != nil {
		return err
	}
	_, err = stream.Recv()
	return err
}

func firstHealth(conn *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	stream, err := grpc_health_v1.NewHealthClient(conn).Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		return err
	}
	_, err = stream.Recv()
	return err
}

// callers is how many call at once.
const callers = 16

// cost is what n calls, made by many at once, cost the process that serves
// them, each.
func cost(b *testing.B, pid, n int, call func() error) time.Duration {
	b.Helper()
	before := cpuOf(b, pid)
	var left atomic.Int64
	left.Store(int64(n))
	failed := make(chan error, callers)
	for range callers {
		go func() {
			for left.Add(-1) >= 0 {
				if err := call(); err != nil {
					failed <- err
					return
				}
			}
			failed <- nil
		}()
	}
	for range callers {
		if err := <-failed; err != nil {
			b.Fatal(err)
		}
	}
	return (cpuOf(b, pid) - before) / time.Duration(n)
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// beside reports what a call costs beside the same call to a bare server; the
// bound is how many times as much it may.
func (m *machine) beside(b *testing.B, bound float64, call, floor func() error) {
	b.Helper()
	n := max(b.N, 3000) // below, a tick is too coarse
	b.ResetTimer()
	ours := cost(b, m.agent.cmd.Process.Pid, n, call)
	b.StopTimer()
	bare := cost(b, m.bare.cmd.Process.Pid, n, floor)
	b.ReportMetric(micros(ours), "CPU-µs/op")
	b.ReportMetric(micros(bare), "floor-µs/op")
	b.ReportMetric(float64(ours)/float64(max(bare, 1)), "x-floor")
	b.ReportMetric(bound, "bound-x")
}

func BenchmarkWorkloadAPI(b *testing.B) {
	m := newMachine(b, 0)
	ours, theirs := dialUnix(b, m.socket()), dialUnix(b, "unix://"+m.path("bare.sock"))
	if err := firstX509(ours); err != nil {
		b.Fatal(err)
	}
	client := workloadpb.NewSpiffeWorkloadAPIClient(ours)
	unary := func() error {
		_, err := grpc_health_v1.NewHealthClient(theirs).Check(context.Background(), &grpc_health_v1.HealthCheckRequest{})
		return err
	}
	token := ""
	jwt := func() error {
		r, err := client.FetchJWTSVID(workloadCall(), &workloadpb.JWTSVIDRequest{Audience: []string{"orders"}})
		if err == nil {
			token = r.GetSvids()[0].GetSvid()
		}
		return err
	}
	for first := time.Now(); jwt() != nil; { // the first RS256 key takes its time
		if time.Since(first) > patience {
			b.Fatal(jwt())
		}
	}
	fetch := func() error {
		_, err := client.FetchJWTSVID(workloadCall(), &workloadpb.JWTSVIDRequest{Audience: []string{"orders"}})
		return err
	}
	fresh := func(where string, call func(*grpc.ClientConn) error) func() error {
		return func() error {
			conn, err := grpc.NewClient(where, grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				return err
			}
			return errors.Join(call(conn), conn.Close())
		}
	}
	b.Run("FetchX509SVID/new connection", func(b *testing.B) {
		m.beside(b, 400./257, fresh(m.socket(), firstX509), fresh("unix://"+m.path("bare.sock"), firstHealth))
	})
	b.Run("FetchX509SVID/new stream", func(b *testing.B) {
		m.beside(b, 120./46, func() error { return firstX509(ours) }, func() error { return firstHealth(theirs) })
	})
	b.Run("FetchJWTSVID/cached", func(b *testing.B) { m.beside(b, 120./44, fetch, unary) })
	b.Run("ValidateJWTSVID", func(b *testing.B) {
		m.beside(b, 300./44, func() error {
			_, err := client.ValidateJWTSVID(workloadCall(), &workloadpb.ValidateJWTSVIDRequest{Audience: "orders", Svid: token})
			return err
		}, unary)
	})
}

// BenchmarkRawVerify is what a validation cannot do without.
func BenchmarkRawVerify(b *testing.B) {
	digest := sha256.Sum256([]byte("token"))
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		b.Fatal(err)
	}
	signed, err := ecdsa.SignASN1(rand.Reader, ec, digest[:])
	if err != nil {
		b.Fatal(err)
	}
	rsaSigned, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, digest[:])
	if err != nil {
		b.Fatal(err)
	}
	b.Run("ES256", func(b *testing.B) {
		for b.Loop() {
			if !ecdsa.VerifyASN1(&ec.PublicKey, digest[:], signed) {
				b.Fatal("it does not verify")
			}
		}
	})
	b.Run("RS256", func(b *testing.B) {
		for b.Loop() {
			if err := rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, digest[:], rsaSigned); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// retry calls until it succeeds.
func retry(b *testing.B, call func() error) {
	b.Helper()
	for first := time.Now(); ; {
		err := call()
		if err == nil {
			return
		}
		if time.Since(first) > patience {
			b.Fatal(err)
		}
	}
}

// BenchmarkFreshAgent is from the start of an agent that has a token to the
// first X509-SVID of a workload.
func BenchmarkFreshAgent(b *testing.B) {
	m := newMachine(b, 0)
	var took time.Duration
	for i := range b.N {
		name := fmt.Sprintf("fresh-%d", i)
		m.credence(fmt.Sprintf("kind: Identity\nname: %s\nspiffe_id: /%s\nmatch: [{node.name: %s, workload.unix.uid: %d}]\n", name, name, name, os.Getuid()), "apply", "-f", "-")
		started := time.Now() // making the token is part of it
		m.newAgent(name)
		conn := dialUnix(b, "unix://"+m.path(name, "run", "workload.sock"))
		retry(b, func() error { return firstX509(conn) })
		took += time.Since(started)
	}
	b.ReportMetric(millis(took)/float64(b.N), "ms/first-SVID")
	b.ReportMetric(1000, "bound-ms")
}

// BenchmarkPolicyToStream is from the start of credence apply, and of credence
// delete, to the message on a workload's open stream.
func BenchmarkPolicyToStream(b *testing.B) {
	m := newMachine(b, 10_000)
	conn := dialUnix(b, m.socket())
	ctx, cancel := context.WithCancel(workloadCall())
	defer cancel()
	stream, err := workloadpb.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(ctx, &workloadpb.X509SVIDRequest{})
	if err != nil {
		b.Fatal(err)
	}
	until := func(n int) {
		b.Helper()
		for {
			r, err := stream.Recv()
			if err != nil {
				b.Fatal(err)
			}
			if len(r.GetSvids()) == n {
				return
			}
		}
	}
	until(1)
	var came, went time.Duration
	b.ResetTimer()
	for range b.N {
		started := time.Now()
		m.credence(fmt.Sprintf("kind: Identity\nname: second\nspiffe_id: /second\nmatch: [{node.name: agent, workload.unix.uid: %d}]\n", os.Getuid()), "apply", "-f", "-")
		until(2)
		came += time.Since(started)
		started = time.Now()
		m.credence("", "delete", "identity", "second")
		until(1)
		went += time.Since(started)
	}
	b.ReportMetric(millis(came)/float64(b.N), "ms/apply-to-stream")
	b.ReportMetric(millis(went)/float64(b.N), "ms/delete-to-stream")
	b.ReportMetric(2000, "bound-ms")
}

// BenchmarkRestart is from the start of a process that has its state to its
// first answer.
func BenchmarkRestart(b *testing.B) {
	m := newMachine(b, 10_000)
	agentConfig := m.path("agent.yaml")
	var broker, agent, used time.Duration
	for range b.N {
		m.broker.halt()
		started := time.Now()
		m.startBroker()
		m.credence("", "status")
		broker += time.Since(started)
		used += cpuOf(b, m.broker.cmd.Process.Pid)
		m.agent.halt()
		started = time.Now()
		m.agent = m.run("agent of example.org", "credence", "agent", "run", "-c", agentConfig)
		conn := dialUnix(b, m.socket())
		retry(b, func() error { return firstX509(conn) })
		agent += time.Since(started)
	}
	b.ReportMetric(millis(broker)/float64(b.N), "ms/broker-restart")
	b.ReportMetric(millis(used)/float64(b.N), "CPU-ms/broker-restart")
	b.ReportMetric(millis(agent)/float64(b.N), "ms/agent-restart")
	b.ReportMetric(200, "bound-ms")
}

// BenchmarkIdle is what a broker and an agent cost while nothing happens.
func BenchmarkIdle(b *testing.B) {
	for _, size := range []struct {
		identities     int
		boundMiB       float64
		agentBoundMiB  float64
		boundCPUofCore float64
	}{{0, 60, 40, 0.2}, {10_000, 80, 40, 0.2}, {50_000, 160, 40, 0.2}} {
		b.Run(fmt.Sprintf("identities=%d", size.identities), func(b *testing.B) {
			m := newMachine(b, size.identities)
			conn := dialUnix(b, m.socket())
			retry(b, func() error { return firstX509(conn) })
			pids := [2]int{m.broker.cmd.Process.Pid, m.agent.cmd.Process.Pid}
			const span = 10 * time.Second
			<-time.After(span) // what starting left to do is done
			var used [2]time.Duration
			for range b.N {
				before := [2]time.Duration{cpuOf(b, pids[0]), cpuOf(b, pids[1])}
				<-time.After(span)
				for i, pid := range pids {
					used[i] += cpuOf(b, pid) - before[i]
				}
			}
			of := func(d time.Duration) float64 { return 100 * float64(d) / float64(span) / float64(b.N) }
			b.ReportMetric(of(used[0]), "broker-%core")
			b.ReportMetric(of(used[1]), "agent-%core")
			b.ReportMetric(size.boundCPUofCore, "bound-%core")
			b.ReportMetric(residentOf(b, pids[0]), "broker-MiB")
			b.ReportMetric(size.boundMiB, "bound-broker-MiB")
			b.ReportMetric(residentOf(b, pids[1]), "agent-MiB")
			b.ReportMetric(size.agentBoundMiB, "bound-agent-MiB")
		})
	}
}

// BenchmarkStreams is what 10,000 open streams cost the agent, and how long a
// rotation of all of them takes from the start of the command to the last message:
// 16 programs, each as a user of its own where it is run by root.
func BenchmarkStreams(b *testing.B) {
	const programs, connections, streams = 16, 10, 63
	m := newMachine(b, 0)
	if err := os.Chmod(m.dir, 0o711); err != nil {
		b.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	n := programs
	if os.Getuid() != 0 { // so many connections has a user
		n = 12
	}
	m.credence(floods(n), "apply", "-f", "-")
	before := residentOf(b, m.agent.cmd.Process.Pid)
	for range b.N {
		started := time.Now()
		var all []*process
		for i := range n {
			cmd := exec.Command(self)
			cmd.Args = []string{"workload", "flood", m.socket(), strconv.Itoa(connections), strconv.Itoa(streams)}
			cmd.Dir = "/"
			if os.Getuid() == 0 {
				cmd.Path = "/proc/self/exe" // a user of no rights cannot read where it lies
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(floodUID + i), Gid: uint32(floodUID + i)}}
			}
			p, err := spawn(cmd)
			if err != nil {
				b.Fatal(err)
			}
			defer p.halt()
			all = append(all, p)
		}
		until := func(what string) {
			for _, p := range all {
				if _, err := p.await(what, 0); err != nil {
					b.Fatal(err)
				}
			}
		}
		until("^all have one$")
		b.ReportMetric(time.Since(started).Seconds(), "s/open")
		used := cpuOf(b, m.agent.cmd.Process.Pid)
		b.ReportMetric(residentOf(b, m.agent.cmd.Process.Pid), "agent-MiB")
		started = time.Now()
		m.credence("", "ca", "replace", "issuing", "--reason", "a benchmark")
		until("^all have another$")
		b.ReportMetric(time.Since(started).Seconds(), "s/rotation")
		b.ReportMetric((cpuOf(b, m.agent.cmd.Process.Pid) - used).Seconds(), "CPU-s/rotation")
		b.ReportMetric(residentOf(b, m.agent.cmd.Process.Pid), "agent-MiB-after")
		for _, p := range all {
			p.halt()
		}
	}
	b.ReportMetric(float64(n*connections*streams), "streams")
	b.ReportMetric(before, "agent-MiB-before")
	b.ReportMetric(400, "bound-MiB")
	b.ReportMetric(10, "bound-s")
}

// floodUID is the first of the users who open streams.
const floodUID = 30_000

// floods are Identities of programs that open streams.
func floods(n int) string {
	if os.Getuid() != 0 {
		return identities(0)[0]
	}
	var text strings.Builder
	for i := range n {
		fmt.Fprintf(&text, "---\nkind: Identity\nname: flood-%d\nspiffe_id: /flood/%d\nmatch: [{node.name: agent, workload.unix.uid: %d}]\n", i, i, floodUID+i)
	}
	return text.String()
}

// BenchmarkBinary is the size of the program as it is built to be installed.
func BenchmarkBinary(b *testing.B) {
	path := filepath.Join(benchDir(b), "credence")
	for range b.N {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, ".")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(info.Size())/1e6, "MB-stripped")
}
