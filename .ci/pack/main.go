// Pack makes of the built programs what a release is: Debian packages, container
// images, lists of what they are made from, and the sums of all. The same input
// makes the same bytes. It asks nobody and needs no root.
package main

import (
	"bytes"
	"crypto/sha256"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

func main() {
	var p packing
	flag.StringVar(&p.version, "version", "", "of the release")
	flag.StringVar(&p.arch, "arch", "amd64", "of the programs, in Go's words")
	flag.StringVar(&p.bin, "bin", "", "where credence and credence-agent are")
	flag.StringVar(&p.units, "units", "examples/systemd", "where the units are")
	flag.StringVar(&p.conf, "conf", "", "broker.yaml as credence broker init writes it")
	flag.StringVar(&p.roots, "roots", "/etc/ssl/certs/ca-certificates.crt", "roots of the web's PKI, for images")
	flag.StringVar(&p.out, "out", "", "where to")
	epoch := flag.Int64("epoch", 0, "the time that files have (SOURCE_DATE_EPOCH)")
	sums := flag.Bool("sums", false, "only write SHA256SUMS of what is there")
	flag.Parse()
	p.at = time.Unix(*epoch, 0)
	do := p.all
	if *sums {
		do = p.sums
	}
	if err := do(); err != nil {
		fmt.Fprintln(os.Stderr, "pack:", err)
		os.Exit(1)
	}
}

type packing struct {
	version, arch, bin, units, conf, roots, out string
	at                                          time.Time
}

func (p packing) all() error {
	roots, err := os.ReadFile(p.roots)
	if err != nil {
		return err
	}
	for _, name := range []string{"credence", "credence-agent"} {
		path := filepath.Join(p.bin, name)
		program, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		list, err := sbom(path, name, p.version, program)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		picture, err := image(name, p.version, p.arch, program, roots, p.at)
		if err != nil {
			return err
		}
		d := deb{name: name, version: p.version, arch: p.arch, at: p.at}
		if err := p.fill(&d, program); err != nil {
			return err
		}
		packed, err := d.bytes()
		if err != nil {
			return err
		}
		base := fmt.Sprintf("%s_%s_linux_%s", name, p.version, p.arch)
		for file, body := range map[string][]byte{base: program, base + ".cdx.json": list, base + ".oci.tar": picture, fmt.Sprintf("%s_%s_%s.deb", name, strings.TrimPrefix(p.version, "v"), p.arch): packed} {
			mode := os.FileMode(0o644)
			if file == base {
				mode = 0o755
			}
			if err := os.WriteFile(filepath.Join(p.out, file), body, mode); err != nil {
				return err
			}
		}
	}
	return nil
}

// fill gives a package its files.
func (p packing) fill(d *deb, program []byte) error {
	d.files = []file{{path: "usr/bin/" + d.name, mode: 0o755, body: program}}
	pattern := "credence-agent*.s*"
	if d.name == "credence" {
		d.summary, d.scripts, pattern = "SPIFFE identities for workloads: broker, and the operator's program", scripts("credence-broker.service", true), "credence-broker.service"
		text, err := os.ReadFile(p.conf)
		if err != nil {
			return err
		}
		text = append(text, "\n# As credence-broker.service has them.\nadmin: /run/credence-broker/admin.sock\n"...)
		users, err := os.ReadFile(filepath.Join(p.units, "credence.sysusers"))
		if err != nil {
			return err
		}
		d.files = append(d.files, file{path: "etc/credence/broker.yaml", mode: 0o644, body: text, conf: true}, file{path: "usr/lib/sysusers.d/credence.conf", mode: 0o644, body: users})
	} else {
		d.summary, d.scripts = "SPIFFE identities for workloads: the agent of a node", scripts("credence-agent.service credence-agent.socket credence-agent-admin.socket", false)
		d.files = append(d.files, file{path: "etc/credence/agent.yaml", mode: 0o644, body: []byte("# What credence token create --node NAME prints goes here.\n"), conf: true})
	}
	units, err := filepath.Glob(filepath.Join(p.units, pattern))
	if err != nil || len(units) == 0 {
		return fmt.Errorf("%s: no units: %w", p.units, err)
	}
	for _, unit := range units {
		text, err := os.ReadFile(unit)
		if err != nil {
			return err
		}
		d.files = append(d.files, file{path: "usr/lib/systemd/system/" + filepath.Base(unit), mode: 0o644, body: bytes.ReplaceAll(text, []byte("/usr/local/bin/"), []byte("/usr/bin/"))})
	}
	license, err := os.ReadFile("LICENSE")
	if err != nil {
		return err
	}
	d.files = append(d.files, file{path: "usr/share/doc/" + d.name + "/copyright", mode: 0o644, body: license})
	return nil
}

// sums writes what sha256sum -c reads.
func (p packing) sums() error {
	entries, err := os.ReadDir(p.out)
	if err != nil {
		return err
	}
	var lines []string
	for _, e := range entries {
		if e.Name() == "SHA256SUMS" {
			continue
		}
		body, err := os.ReadFile(filepath.Join(p.out, e.Name()))
		if err != nil {
			return err
		}
		lines = append(lines, fmt.Sprintf("%x  %s\n", sha256.Sum256(body), e.Name()))
	}
	slices.Sort(lines)
	return os.WriteFile(filepath.Join(p.out, "SHA256SUMS"), []byte(strings.Join(lines, "")), 0o644)
}
