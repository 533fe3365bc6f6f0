package disk_test

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/broker/authority/upstream/disk"
	"github.com/credence-id/credence/broker/authority/upstream/upstreamtest"
)

func write(t *testing.T, dir, name string, mode os.FileMode, blocks ...*pem.Block) string {
	t.Helper()
	path := filepath.Join(dir, name)
	var text []byte
	for _, b := range blocks {
		text = append(text, pem.EncodeToMemory(b)...)
	}
	if err := os.WriteFile(path, text, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func cert(c *x509.Certificate) *pem.Block { return &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw} }

func key(t *testing.T, k crypto.Signer) *pem.Block {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return &pem.Block{Type: "PRIVATE KEY", Bytes: der}
}

func TestContract(t *testing.T) {
	p, dir := upstreamtest.New(t), t.TempDir()
	for name, cfg := range map[string]disk.Config{
		"the root in the chain": {Cert: write(t, dir, "full.pem", 0o644, cert(p.CA), cert(p.Root))},
		"the root by itself":    {Cert: write(t, dir, "ca.pem", 0o644, cert(p.CA)), Roots: write(t, dir, "roots.pem", 0o644, cert(p.Root))},
	} {
		t.Run(name, func(t *testing.T) {
			cfg.Key = write(t, dir, "key.pem", 0o600, key(t, p.CAKey))
			ca, err := disk.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			upstreamtest.Run(t, p, ca)
		})
	}
}

func TestRefuses(t *testing.T) {
	p := upstreamtest.New(t)
	short := upstreamtest.New(t, func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true })
	leaf := upstreamtest.New(t, func(c *x509.Certificate) { c.IsCA, c.KeyUsage, c.MaxPathLen = false, x509.KeyUsageDigitalSignature, 0 })
	ended := upstreamtest.New(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	for name, c := range map[string]struct {
		certs []*pem.Block
		key   *pem.Block
		mode  os.FileMode
		want  string
	}{
		"another key":           {[]*pem.Block{cert(p.CA), cert(p.Root)}, key(t, p.RootKey), 0o600, "is not the key of"},
		"a key others can read": {[]*pem.Block{cert(p.CA), cert(p.Root)}, key(t, p.CAKey), 0o640, "chmod 600"},
		"no key":                {[]*pem.Block{cert(p.CA), cert(p.Root)}, cert(p.CA), 0o600, "no PEM private key"},
		"no certificate":        {[]*pem.Block{key(t, p.CAKey)}, key(t, p.CAKey), 0o600, "no PEM certificate"},
		"no root":               {[]*pem.Block{cert(p.CA)}, key(t, p.CAKey), 0o600, "holds no root"},
		"path length 0":         {[]*pem.Block{cert(short.CA), cert(short.Root)}, key(t, short.CAKey), 0o600, "path length 0"},
		"a leaf":                {[]*pem.Block{cert(leaf.CA), cert(leaf.Root)}, key(t, leaf.CAKey), 0o600, "CA:TRUE"},
		"ended":                 {[]*pem.Block{cert(ended.CA), cert(ended.Root)}, key(t, ended.CAKey), 0o600, "renew it"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			ca, err := disk.New(disk.Config{Cert: write(t, dir, "cert.pem", 0o644, c.certs...), Key: write(t, dir, "key.pem", c.mode, c.key)})
			if err != nil {
				t.Fatal(err)
			}
			_, _, err = ca.Sign(t.Context(), upstreamtest.Request(t, upstreamtest.Key(t)), time.Hour)
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("the error is %v; want one line with %q", err, c.want)
			}
		})
	}
	for _, cfg := range []disk.Config{{}, {Cert: "a"}, {Key: "a"}} {
		if _, err := disk.New(cfg); err == nil {
			t.Errorf("%+v is taken", cfg)
		}
	}
}
