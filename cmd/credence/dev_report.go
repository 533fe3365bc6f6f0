package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/credence-id/credence/cmd/cli"
)

// devReport is what dev --json prints.
type devReport struct {
	TrustDomain string `json:"trust_domain"`
	Workload    struct {
		SPIFFEID string  `json:"spiffe_id"`
		X509     devX509 `json:"x509"`
		JWT      devJWT  `json:"jwt"`
	} `json:"workload"`
	Peers   []devPeerReport `json:"peers"`
	Targets []devTarget     `json:"targets"`
	Timing  struct {
		FirstSVID int64 `json:"first_svid"`
		Total     int64 `json:"total"`
	} `json:"timing_ms"`

	started time.Time
}

type devX509 struct {
	Serial      string `json:"serial"`
	NotAfter    string `json:"not_after"`
	ChainLength int    `json:"chain_length"`
	KeyType     string `json:"key_type"`
}

type devJWT struct {
	Alg string   `json:"alg"`
	Aud []string `json:"aud"`
	Exp int64    `json:"exp"`
}

type devPeerReport struct {
	TrustDomain string `json:"trust_domain"`
	Verified    bool   `json:"verified"`
	Error       string `json:"error,omitempty"`
}

type devTarget struct {
	Name     string `json:"name"`
	Provider string `json:"provider"`
	OK       bool   `json:"ok"`
	Whoami   string `json:"whoami"`
	Expires  string `json:"expires"`
	Error    string `json:"error"`
}

// holds says whether every step held.
func (r *devReport) holds() bool {
	for _, t := range r.Targets {
		if !t.OK {
			return false
		}
	}
	for _, p := range r.Peers {
		if !p.Verified {
			return false
		}
	}
	return r.Workload.X509.Serial != "" && r.Workload.JWT.Alg != "" && len(r.Targets) == len(targetNames) && len(r.Peers) > 0
}

func (r *devReport) verdict() string {
	ok := 0
	for _, t := range r.Targets {
		if t.OK {
			ok++
		}
	}
	took := fmt.Sprintf("first SVID after %d ms, all after %d ms", r.Timing.FirstSVID, r.Timing.Total)
	if r.holds() {
		return fmt.Sprintf("every step held: %d of %d clouds gave credentials, the peer is verified; %s", ok, len(targetNames), took)
	}
	return fmt.Sprintf("NOT every step held: %d of %d clouds gave credentials; %s", ok, len(targetNames), took)
}

// describe is dev.json: all that another program needs.
func (d *dev) describe() map[string]any {
	c := d.cloud
	return map[string]any{
		"trust_domain":       devDomain,
		"workload_socket":    "unix://" + d.own.socket("workload"),
		"admin_socket":       "unix://" + d.own.socket("admin"),
		"agent_admin_socket": "unix://" + d.own.socket("agent-admin"),
		"bundle_url":         d.own.bundleURL(),
		"bundle_endpoint_id": d.own.endpointID(),
		"oidc_issuer":        d.own.broker.file.Issuer,
		"ca_file":            d.web.file,
		"peer": map[string]any{
			"trust_domain": devPeer, "bundle_url": d.peer.bundleURL(), "bundle_endpoint_id": d.peer.endpointID(),
			"workload_socket": "unix://" + d.peer.socket("workload"), "admin_socket": "unix://" + d.peer.socket("admin"),
		},
		"sandbox_socket": "unix://" + c.socket,
		"sandbox": map[string]any{
			"aws": map[string]any{
				"rolesanywhere_url": c.RolesAnywhere, "sts_url": c.STS, "region": awsRegion, "trust_anchor_arn": awsAnchor,
				"profile_arn": awsProfile, "role_arn": awsRole, "web_identity_role_arn": awsWebRole, "web_identity_audience": awsWebAudience,
			},
			"gcp": map[string]any{
				"sts_url": c.GCPSTS, "iamcredentials_url": c.IAMCredentials, "whoami_url": c.GCPWhoami + "/whoami",
				"audience": gcpAudience(), "service_account": gcpAccount, "scope": gcpScope,
			},
			"azure": map[string]any{
				"authority_url": c.AzureLogin, "whoami_url": c.AzureWhoami + "/whoami", "tenant_id": azureTenant, "client_id": azureClient, "scope": azureScope,
			},
		},
		"targets": targetNames,
	}
}

// announce writes dev.json and says what to type next.
func (d *dev) announce(r *devReport) error {
	text, err := json.MarshalIndent(d.describe(), "", "  ")
	if err != nil {
		return err
	}
	file := filepath.Join(d.dir, "dev.json")
	if err := renameio.WriteFile(file, append(text, '\n'), 0o644, renameio.WithTempDir(d.dir)); err != nil {
		return err
	}
	d.cleanup = append(d.cleanup, func() { _ = os.Remove(file) })
	if d.flags.json {
		return nil
	}
	self := "go run ./cmd/credence"
	if exe, err := os.Executable(); err == nil && !strings.Contains(exe, "go-build") {
		self = exe
	}
	fmt.Fprintf(d.p.Out, `
It stays up until Ctrl-C; all addresses are in %s.
In another terminal, as the same user:

  export SPIFFE_ENDPOINT_SOCKET=%s
  export CREDENCE_ADMIN=%s
  export CREDENCE_AGENT_ADMIN=%s
  export CREDENCE_SANDBOX=%[8]s

  %[5]s svid x509                       # any program of yours gets this identity
  %[5]s svid jwt --audience orders
  %[5]s audit tail -n 5                 # who got what, when and why

Another identity for your programs, in four lines:

  %[5]s apply -f - <<'EOF'
  kind: Identity
  name: mine
  spiffe_id: /mine/{workload.unix.uid}
  match: [{node.name: %s, workload.unix.uid: "%d"}]
  EOF

And one thing that is refused: cut the demo identity off, and see why.

  %[5]s apply -f - <<'EOF'
  kind: Deny
  name: incident-1
  match: [{node.name: %[6]s}]
  reason: trying it out
  EOF
  %[5]s svid x509                       # PermissionDenied, with a record number
  %[5]s explain --pid $$                # why
  %[5]s delete deny incident-1
`, file, cli.ShellWord("unix://"+d.own.socket("workload")), cli.ShellWord("unix://"+d.own.socket("admin")), cli.ShellWord("unix://"+d.own.socket("agent-admin")), cli.ShellWord(self), devNode, os.Getuid(), cli.ShellWord("unix://"+d.cloud.socket))
	return nil
}
