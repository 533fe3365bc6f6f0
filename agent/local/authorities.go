package local

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// systemRoots are where Linux distributions, and macOS, keep the system's roots
// in one file.
var systemRoots = []string{
	"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem",
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "/etc/ssl/cert.pem",
}

// rootVariables name a file of roots in place of the system's.
var rootVariables = []string{
	"SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE", "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
}

const (
	rootsFile = "roots.pem"
	extraFile = "ca.pem"
	extraRoot = "NODE_EXTRA_CA_CERTS" // roots beside the built-in ones
)

// authorities writes, where some target has a ca_file, the roots that the
// workload needs: those it had, and the targets'.
func (s *Surfaces) authorities() (made bool, err error) {
	files := map[string]bool{}
	for _, t := range s.targets {
		if f := t.first.GetCaFile(); f != "" {
			files[f] = true
		}
	}
	if len(files) == 0 {
		return false, nil
	}
	var targets, extra, roots bytes.Buffer
	for _, f := range slices.Sorted(maps.Keys(files)) {
		if err := appendPEM(&targets, f); err != nil {
			return false, err
		}
	}
	if f := value(s.cfg.Environ, extraRoot); f != "" {
		if err := appendPEM(&extra, f); err != nil {
			return false, err
		}
	}
	if err := s.appendRoots(&roots); err != nil {
		return false, err
	}
	extra.Write(targets.Bytes())
	roots.Write(targets.Bytes())
	return true, errors.Join(s.dir.write(extraFile, extra.Bytes()), s.dir.write(rootsFile, roots.Bytes()))
}

// trust has the workload read them.
func (s *Surfaces) trust() {
	s.env[extraRoot] = s.dir.file(extraFile)
	for _, name := range rootVariables {
		s.env[name] = s.dir.file(rootsFile)
	}
}

// appendRoots adds the roots that the workload's environment names, or else the
// system's.
func (s *Surfaces) appendRoots(to *bytes.Buffer) error {
	named := map[string]bool{}
	for _, name := range rootVariables {
		if f := value(s.cfg.Environ, name); f != "" {
			named[f] = true
		}
	}
	for _, f := range slices.Sorted(maps.Keys(named)) {
		if err := appendPEM(to, f); err != nil {
			return err
		}
	}
	if value(s.cfg.Environ, "SSL_CERT_FILE") != "" {
		return nil
	}
	for _, f := range systemRoots {
		if text, err := readOwn(f); err == nil && len(text) > 0 {
			to.Write(withNewline(text))
			return nil
		}
	}
	return nil // a machine without roots trusts the targets' alone
}

func appendPEM(to *bytes.Buffer, file string) error {
	text, err := readOwn(file)
	if err != nil {
		return fmt.Errorf("reading CA certificates: %w", err)
	}
	if !bytes.Contains(text, []byte("-----BEGIN CERTIFICATE-----")) {
		return fmt.Errorf("reading CA certificates: there is none in %s", file)
	}
	to.Write(withNewline(text))
	return nil
}

func withNewline(text []byte) []byte {
	if len(text) > 0 && text[len(text)-1] != '\n' {
		return append(text, '\n')
	}
	return text
}
