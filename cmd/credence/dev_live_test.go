package main_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// devJSON is dev.json as other programs know it.
type devJSON struct {
	TrustDomain      string `json:"trust_domain"`
	WorkloadSocket   string `json:"workload_socket"`
	AdminSocket      string `json:"admin_socket"`
	BundleURL        string `json:"bundle_url"`
	BundleEndpointID string `json:"bundle_endpoint_id"`
	OIDCIssuer       string `json:"oidc_issuer"`
	CAFile           string `json:"ca_file"`
	Peer             struct {
		TrustDomain      string `json:"trust_domain"`
		BundleURL        string `json:"bundle_url"`
		BundleEndpointID string `json:"bundle_endpoint_id"`
		WorkloadSocket   string `json:"workload_socket"`
		AdminSocket      string `json:"admin_socket"`
	} `json:"peer"`
	Sandbox struct {
		AWS struct {
			RolesAnywhereURL    string `json:"rolesanywhere_url"`
			STSURL              string `json:"sts_url"`
			Region              string `json:"region"`
			TrustAnchorARN      string `json:"trust_anchor_arn"`
			ProfileARN          string `json:"profile_arn"`
			RoleARN             string `json:"role_arn"`
			WebIdentityRoleARN  string `json:"web_identity_role_arn"`
			WebIdentityAudience string `json:"web_identity_audience"`
		} `json:"aws"`
		GCP struct {
			STSURL            string `json:"sts_url"`
			IAMCredentialsURL string `json:"iamcredentials_url"`
			WhoamiURL         string `json:"whoami_url"`
			Audience          string `json:"audience"`
			ServiceAccount    string `json:"service_account"`
			Scope             string `json:"scope"`
		} `json:"gcp"`
		Azure struct {
			AuthorityURL string `json:"authority_url"`
			WhoamiURL    string `json:"whoami_url"`
			TenantID     string `json:"tenant_id"`
			ClientID     string `json:"client_id"`
			Scope        string `json:"scope"`
		} `json:"azure"`
	} `json:"sandbox"`
	Targets []string `json:"targets"`
}

// devRun is a credence dev that stays up.
type devRun struct {
	*process
	data string
	json devJSON
}

func startDev(t *testing.T, data string, args ...string) *devRun {
	t.Helper()
	d := &devRun{process: start(t, "credence", append([]string{"dev", "--data", data}, args...)...), data: data}
	if _, err := d.await("It stays up until Ctrl-C", 0); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(d.file(t), &d.json); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *devRun) file(t *testing.T) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(d.data, "dev.json"))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// finish stops it and looks at what it leaves.
func (d *devRun) finish(t *testing.T) {
	t.Helper()
	code, err := d.stop()
	if err != nil || code != 0 {
		text, _ := d.printed()
		t.Fatalf("it was told to stop: exit code %d, %v\n%s", code, err, text)
	}
	if _, err := os.Stat(filepath.Join(d.data, "dev.json")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("dev.json is left: %v", err)
	}
}

func (d *devRun) apply(t *testing.T, yaml string, more ...string) {
	t.Helper()
	code, out, errs := credenceCmd(t, yaml, append([]string{"apply", "-f", "-", "--admin", d.json.AdminSocket}, more...)...)
	if code != 0 {
		t.Fatalf("applying: exit code %d: %s%s\n%s", code, out, errs, yaml)
	}
}

// admin runs a verb against its broker.
func (d *devRun) admin(t *testing.T, args ...string) string {
	t.Helper()
	code, out, errs := credenceCmd(t, "", append(args, "--admin", d.json.AdminSocket)...)
	if code != 0 {
		t.Fatalf("%s: exit code %d: %s", args, code, errs)
	}
	return out
}

// web is a client that trusts what ca_file holds and nothing else.
func (d *devRun) web(t *testing.T) *http.Client {
	t.Helper()
	text, err := os.ReadFile(d.json.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		t.Fatalf("%s holds no certificate", d.json.CAFile)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

// token is a JWT-SVID as any program of this user gets it.
func (d *devRun) token(t *testing.T, audience string) string {
	t.Helper()
	svid, err := workloadapi.FetchJWTSVID(soon(t), jwtsvid.Params{Audience: audience}, workloadapi.WithAddr(d.json.WorkloadSocket))
	if err != nil {
		t.Fatal(err)
	}
	return svid.Marshal()
}

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// TestDev lets other programs use a running dev. Its data lie in a directory
// that other users cannot pass: the sockets must be elsewhere.
func TestDev(t *testing.T) {
	d := startDev(t, filepath.Join(tempDir(t), "state"))
	t.Run("dev.json has the keys", d.hasKeys)
	t.Run("sockets and files are where they are said to be", d.sockets)
	t.Run("openssl verifies the chain", d.openssl)
	t.Run("go-oidc verifies the JWT", d.oidc)
	t.Run("bundles are fetched by https_spiffe", d.bundles)
	t.Run("vendors' SDKs reach the sandbox", d.vendors)
	t.Run("a token for one cloud is none for another", d.confusedDeputy)
	t.Run("another user is denied", d.otherUser)
	t.Run("a second dev on the same data is refused", d.second)
	t.Run("policy reaches an open stream", d.openStream)
	t.Run("it stands up again after a kill", d.crash)
}

func (d *devRun) hasKeys(t *testing.T) {
	var got any
	if err := json.Unmarshal(d.file(t), &got); err != nil {
		t.Fatal(err)
	}
	known, err := json.Marshal(d.json)
	if err != nil {
		t.Fatal(err)
	}
	var want any
	if err := json.Unmarshal(known, &want); err != nil {
		t.Fatal(err)
	}
	var missing, extra []string
	names := keysOf(got)
	for _, k := range keysOf(want) {
		if !strings.Contains("\n"+strings.Join(names, "\n")+"\n", "\n"+k+"\n") {
			missing = append(missing, k)
		}
	}
	for _, v := range valuesOf(got) {
		if v == "" {
			extra = append(extra, "an empty value")
		}
	}
	if missing != nil || extra != nil {
		t.Errorf("missing %q, %q in:\n%s", missing, extra, d.file(t))
	}
	if diff := cmp.Diff([]string{"aws-roles-anywhere", "aws-web-identity", "gcp", "azure"}, d.json.Targets); diff != "" {
		t.Errorf("targets (-want +got):\n%s", diff)
	}
}

func valuesOf(v any) (all []any) {
	switch v := v.(type) {
	case map[string]any:
		for _, m := range v {
			all = append(all, valuesOf(m)...)
		}
	case []any:
		for _, e := range v {
			all = append(all, valuesOf(e)...)
		}
	default:
		all = append(all, v)
	}
	return all
}

func (d *devRun) sockets(t *testing.T) {
	for url, mode := range map[string]fs.FileMode{
		d.json.WorkloadSocket: 0o666, d.json.AdminSocket: 0o600, d.json.Peer.WorkloadSocket: 0o666, d.json.Peer.AdminSocket: 0o600,
	} {
		path, ok := strings.CutPrefix(url, "unix://")
		info, err := os.Stat(path)
		if !ok || !filepath.IsAbs(path) || err != nil || info.Mode().Type() != fs.ModeSocket || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v; want a socket of mode %v", url, info, err, mode)
		}
	}
	public := map[string]bool{"dev.json": true, "ca.pem": true}
	err := filepath.WalkDir(d.data, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		switch {
		case err != nil:
			return err
		case e.IsDir() && info.Mode().Perm()&0o077 == 0:
			return fs.SkipDir
		case e.Type().IsRegular() && info.Mode().Perm()&0o077 != 0 && !public[e.Name()]:
			t.Errorf("other users get to %s: %v", path, info.Mode())
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func (d *devRun) openssl(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not here")
	}
	dir := t.TempDir()
	if code, _, errs := credenceCmd(t, "", "svid", "x509", "--out", dir, "--socket", d.json.WorkloadSocket); code != 0 {
		t.Fatal(errs)
	}
	chain := filepath.Join(dir, "svid.pem")
	out, err := exec.CommandContext(t.Context(), openssl, "verify", "-x509_strict", "-CAfile", filepath.Join(dir, "svid_bundle.pem"), "-untrusted", chain, chain).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func (d *devRun) oidc(t *testing.T) {
	ctx := oidc.ClientContext(soon(t), d.web(t))
	provider, err := oidc.NewProvider(ctx, d.json.OIDCIssuer)
	if err != nil {
		t.Fatal(err)
	}
	raw := d.token(t, "orders")
	token, err := provider.Verifier(&oidc.Config{ClientID: "orders"}).Verify(ctx, raw)
	if err != nil {
		t.Fatal(err)
	}
	if token.Issuer != d.json.OIDCIssuer || token.Subject != "spiffe://dev.example/demo/workload" {
		t.Errorf("it is of %s, by %s", token.Subject, token.Issuer)
	}
	if _, err := provider.Verifier(&oidc.Config{ClientID: "billing"}).Verify(ctx, raw); err == nil || !strings.Contains(err.Error(), "audience") {
		t.Errorf("for another audience: %v", err)
	}
	forged := raw[:len(raw)-8] + "AAAAAAAA"
	if _, err := provider.Verifier(&oidc.Config{ClientID: "orders"}).Verify(ctx, forged); err == nil {
		t.Error("a forged signature is taken")
	}
}

func (d *devRun) bundles(t *testing.T) {
	ctx := soon(t)
	known, err := workloadapi.FetchX509Bundles(ctx, workloadapi.WithAddr(d.json.WorkloadSocket))
	if err != nil {
		t.Fatal(err)
	}
	for td, at := range map[string][2]string{
		d.json.TrustDomain:      {d.json.BundleURL, d.json.BundleEndpointID},
		d.json.Peer.TrustDomain: {d.json.Peer.BundleURL, d.json.Peer.BundleEndpointID},
	} {
		trustDomain := spiffeid.RequireTrustDomainFromString(td)
		got, err := federation.FetchBundle(ctx, trustDomain, at[0], federation.WithSPIFFEAuth(known, spiffeid.RequireFromString(at[1])))
		if err != nil {
			t.Errorf("%s: %v", td, err)
			continue
		}
		want, err := known.GetX509BundleForTrustDomain(trustDomain)
		if err != nil || !got.X509Bundle().Equal(want) {
			t.Errorf("%s: the endpoint's bundle is not the Workload API's (%v)", td, err)
		}
		if td == d.json.TrustDomain && len(got.JWTAuthorities()) == 0 { // the peer has no issuer
			t.Errorf("%s: no JWT authority", td)
		}
		if hint, ok := got.RefreshHint(); !ok || hint <= 0 {
			t.Errorf("%s: refresh hint %v", td, hint)
		}
	}
	other := spiffeid.RequireTrustDomainFromString(d.json.TrustDomain)
	if _, err := federation.FetchBundle(ctx, other, d.json.BundleURL, federation.WithSPIFFEAuth(known, spiffeid.RequireFromString(d.json.Peer.BundleEndpointID))); err == nil {
		t.Error("our endpoint passes for the peer's")
	}
}

// otherUser runs somebody else's program, which gets to the socket and no
// further. Only root can become somebody else.
func (d *devRun) otherUser(t *testing.T) {
	if os.Getuid() != 0 || runtime.GOOS != "linux" {
		t.Skip("it takes root on Linux")
	}
	path, err := exec.LookPath("workload")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	cmd := exec.Command("/proc/self/fd/3", "calls", d.json.WorkloadSocket, d.token(t, "orders")) // by descriptor: its directory is ours alone
	cmd.Args[0] = "workload"
	cmd.ExtraFiles = []*os.File{program}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	var want strings.Builder
	for _, method := range []string{"FetchX509SVID", "FetchX509Bundles", "FetchJWTSVID", "FetchJWTBundles", "ValidateJWTSVID"} {
		want.WriteString(method + " PermissionDenied\n")
	}
	if diff := cmp.Diff(want.String(), out.String()); diff != "" {
		t.Errorf("what another user gets (-want +got):\n%s", diff)
	}
	admin := exec.Command("/proc/self/fd/3", "node", "list", "--admin", d.json.AdminSocket)
	admin.Args[0], admin.ExtraFiles, admin.Dir, admin.SysProcAttr = "credence", cmd.ExtraFiles, "/", cmd.SysProcAttr
	if text, err := admin.CombinedOutput(); err == nil || strings.Contains(string(text), "spiffe://") {
		t.Errorf("another user administers the broker: %v\n%s", err, text)
	}
}

func (d *devRun) second(t *testing.T) {
	before := d.file(t)
	code, out, errs := credenceCmd(t, "", "dev", "--once", "--json", "--data", d.data)
	if code != 2 || out != "" || strings.Count(errs, "\n") != 1 {
		t.Errorf("exit code %d\n%s%s", code, out, errs)
	}
	if !bytes.Equal(before, d.file(t)) {
		t.Error("dev.json is another one")
	}
	d.token(t, "still there")
	d.admin(t, "node", "list")
	d.web(t)
	for _, socket := range []string{d.json.Peer.AdminSocket, d.json.Peer.WorkloadSocket} {
		conn, err := net.Dial("unix", strings.TrimPrefix(socket, "unix://"))
		if err != nil {
			t.Error(err)
			continue
		}
		conn.Close()
	}
}

// openStream holds the promise of 2 s: on one stream that stays open.
func (d *devRun) openStream(t *testing.T) {
	w := start(t, "workload", "watch", d.json.WorkloadSocket)
	expect := func(pattern string, from int) string {
		t.Helper()
		begun := time.Now()
		m, err := w.await(pattern, from)
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); from > 0 && took > 2*time.Second {
			t.Errorf("%q came after %v", pattern, took)
		}
		return m[len(m)-1]
	}
	expect(`^source spiffe://dev.example/demo/workload spiffe://dev.example/demo/workload \[orders\]$`, 0)
	first := expect(`^svid spiffe://dev.example/demo/workload 1h0m0s (\S+)$`, 0)

	original := d.admin(t, "get", "identity", "demo", "-o", "yaml")
	shorter := strings.Replace(original, "x509:\n", "x509:\n  ttl: 30m\n", 1)
	if shorter == original {
		t.Fatalf("the demo identity has no x509:\n%s", original)
	}
	seen := w.length()
	d.apply(t, shorter, "--owner", "dev")
	if second := expect(`^svid spiffe://dev.example/demo/workload 30m0s (\S+)$`, seen); second == first {
		t.Error("it is the same SVID")
	}

	seen = w.length()
	d.apply(t, denyAll)
	expect(`^error (PermissionDenied)$`, seen)
	if code, out, _ := credenceCmd(t, "", "svid", "jwt", "--audience", "orders", "--socket", d.json.WorkloadSocket); code != 4 || out != "" {
		t.Errorf("a JWT-SVID while denied: exit code %d: %s", code, out)
	}

	seen = w.length()
	d.admin(t, "delete", "deny", "broken")
	d.apply(t, original, "--owner", "dev")
	if _, err := w.await(`^svid spiffe://dev.example/demo/workload 1h0m0s (\S+)$`, seen); err != nil { // go-spiffe takes its time to come back
		t.Error(err)
	}
}

func (d *devRun) crash(t *testing.T) {
	before := d.admin(t, "bundle", "show", "-o", "pem")
	ca, err := os.ReadFile(d.json.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	d.kill()
	again := startDev(t, d.data)
	if got := again.admin(t, "bundle", "show", "-o", "pem"); got != before {
		t.Errorf("another root:\n%s%s", before, got)
	}
	if after, err := os.ReadFile(again.json.CAFile); err != nil || !bytes.Equal(ca, after) {
		t.Errorf("ca_file is another one (%v)", err)
	}
	text, _ := again.printed()
	if !strings.Contains(text, "every step held: 4 of 4") {
		t.Errorf("after a kill:\n%s", text)
	}
	again.finish(t)
	for _, record := range []string{filepath.Join(d.data, "broker"), filepath.Join(d.data, "peer", "broker")} {
		if code, out, errs := credenceCmd(t, "", "audit", "verify", "--data", record); code != 0 {
			t.Errorf("%s: exit code %d: %s%s", record, code, out, errs)
		}
	}
}
