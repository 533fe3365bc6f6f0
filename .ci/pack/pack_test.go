package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// packed packs this test's own program.
func packed(t *testing.T) string {
	t.Helper()
	if _, err := os.Stat("LICENSE"); err != nil {
		t.Chdir("../..")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	bin, out := t.TempDir(), t.TempDir()
	for name, body := range map[string][]byte{"credence": program, "credence-agent": program, "broker.yaml": []byte("trust_domain: example.org\n"), "roots": []byte("roots")} {
		if err := os.WriteFile(filepath.Join(bin, name), body, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p := packing{version: "v1.2.3", arch: "amd64", bin: bin, units: "examples/systemd", conf: filepath.Join(bin, "broker.yaml"), roots: filepath.Join(bin, "roots"), out: out, at: time.Unix(1700000000, 0)}
	for _, do := range []func() error{p.all, p.sums} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func read(t *testing.T, parts ...string) []byte {
	t.Helper()
	body, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// The same programs make the same bytes.
func TestTheSameBytes(t *testing.T) {
	if a, b := read(t, packed(t), "SHA256SUMS"), read(t, packed(t), "SHA256SUMS"); !bytes.Equal(a, b) || bytes.Count(a, []byte("\n")) != 8 {
		t.Errorf("twice it is\n%s\n%s", a, b)
	}
}

// An image's parts are what their digests say, and it runs as nobody, with no shell.
func TestImage(t *testing.T) {
	all := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(read(t, packed(t), "credence_v1.2.3_linux_amd64.oci.tar"))); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		body, read := io.ReadAll(r)
		if err != nil || read != nil {
			t.Fatal(err, read)
		}
		all[h.Name] = body
		if sum, blob := strings.CutPrefix(h.Name, "blobs/sha256/"); blob && sum != "" && fmt.Sprintf("%x", sha256.Sum256(body)) != sum {
			t.Errorf("%s is not what it says", h.Name)
		}
	}
	type part struct{ Digest string }
	var index struct{ Manifests []part }
	var manifest struct {
		Config part
		Layers []part
	}
	var config struct {
		Config struct {
			User       string
			Entrypoint []string
		} `json:"config"`
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	blob := func(p part) []byte { return all["blobs/sha256/"+strings.TrimPrefix(p.Digest, "sha256:")] }
	for _, err := range []error{json.Unmarshal(all["index.json"], &index), json.Unmarshal(blob(index.Manifests[0]), &manifest), json.Unmarshal(blob(manifest.Config), &config)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if config.Config.User != "65532:65532" || strings.Join(config.Config.Entrypoint, " ") != "/credence" {
		t.Errorf("it runs as %+v", config.Config)
	}
	z, err := gzip.NewReader(bytes.NewReader(blob(manifest.Layers[0])))
	if err != nil {
		t.Fatal(err)
	}
	layer, err := io.ReadAll(z)
	if err != nil || config.RootFS.DiffIDs[0] != fmt.Sprintf("sha256:%x", sha256.Sum256(layer)) {
		t.Errorf("the layer is not what diff_ids say: %v", err)
	}
	var names []string
	for r := tar.NewReader(bytes.NewReader(layer)); ; {
		h, err := r.Next()
		if err != nil {
			break
		}
		if h.Typeflag == tar.TypeReg {
			names = append(names, h.Name)
		}
	}
	if got := strings.Join(names, " "); got != "credence etc/passwd etc/group etc/ssl/certs/ca-certificates.crt" {
		t.Errorf("in it are %s", got)
	}
}

// The list names the modules that are linked, in CycloneDX's form.
func TestSBOM(t *testing.T) {
	var list struct {
		BOMFormat, SerialNumber string
		Components              []component
	}
	if err := json.Unmarshal(read(t, packed(t), "credence_v1.2.3_linux_amd64.cdx.json"), &list); err != nil {
		t.Fatal(err)
	}
	if list.BOMFormat != "CycloneDX" || len(list.SerialNumber) != len("urn:uuid:")+36 || len(list.Components) == 0 || list.Components[len(list.Components)-1].Name != "std" {
		t.Errorf("got %+v", list)
	}
}
