package main

import (
	"bytes"
	"crypto/md5" // what dpkg --verify knows
	"fmt"
	"strings"
	"time"
)

// A deb is a package of Debian's.
type deb struct {
	name, version, arch, summary string
	files                        []file
	scripts                      map[string]string
	at                           time.Time
}

// bytes is the package: an ar of two tarballs (deb(5)).
func (d deb) bytes() ([]byte, error) {
	var sums, conf strings.Builder
	size := 0
	for _, f := range d.files {
		fmt.Fprintf(&sums, "%x  %s\n", md5.Sum(f.body), f.path)
		size += len(f.body)
		if f.conf {
			fmt.Fprintf(&conf, "/%s\n", f.path)
		}
	}
	about := fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: %s\nMaintainer: Credence <credence@users.noreply.github.com>\nInstalled-Size: %d\nSection: net\nPriority: optional\nHomepage: https://github.com/credence-id/credence\nDescription: %s\n",
		d.name, strings.TrimPrefix(d.version, "v"), d.arch, (size+1023)/1024, d.summary)
	control := []file{{path: "control", mode: 0o644, body: []byte(about)}, {path: "md5sums", mode: 0o644, body: []byte(sums.String())}}
	if conf.Len() > 0 {
		control = append(control, file{path: "conffiles", mode: 0o644, body: []byte(conf.String())})
	}
	for _, name := range []string{"postinst", "prerm", "postrm"} {
		if text, ok := d.scripts[name]; ok {
			control = append(control, file{path: name, mode: 0o755, body: []byte(text)})
		}
	}
	b := bytes.NewBufferString("!<arch>\n")
	member := func(name string, body []byte) {
		fmt.Fprintf(b, "%-16s%-12d%-6d%-6d%-8o%-10d`\n", name, d.at.Unix(), 0, 0, 0o100644, len(body))
		b.Write(body)
		if len(body)%2 == 1 {
			b.WriteByte('\n')
		}
	}
	member("debian-binary", []byte("2.0\n"))
	for _, part := range []struct {
		name  string
		files []file
	}{{"control.tar.gz", control}, {"data.tar.gz", d.files}} {
		packed, err := tarball(part.files, "./", d.at)
		if err == nil {
			packed, err = zipped(packed)
		}
		if err != nil {
			return nil, err
		}
		member(part.name, packed)
	}
	return b.Bytes(), nil
}

// scripts of a package with a unit: what an operator has started goes on over an
// upgrade by their own restart; state outlives a purge, for it holds the keys of a
// trust domain.
func scripts(units string, user bool) map[string]string {
	make := ""
	if user {
		make = "  if command -v systemd-sysusers >/dev/null; then systemd-sysusers ${DPKG_ROOT:+--root=\"$DPKG_ROOT\"} credence.conf; fi\n"
	}
	const begin, reload = "#!/bin/sh\nset -e\n", "if [ -z \"$DPKG_ROOT\" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi\n"
	return map[string]string{
		"postinst": begin + "if [ \"$1\" = configure ]; then\n" + make + "  :\nfi\n" + reload,
		"prerm":    begin + "if [ \"$1\" = remove ] && [ -z \"$DPKG_ROOT\" ] && [ -d /run/systemd/system ]; then systemctl disable --now " + units + " || true; fi\n",
		"postrm":   begin + reload,
	}
}
