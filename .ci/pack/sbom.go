package main

import (
	"cmp"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"slices"
)

// A component is one of a CycloneDX document.
type component struct {
	Type       string              `json:"type"`
	Ref        string              `json:"bom-ref"`
	Name       string              `json:"name"`
	Version    string              `json:"version"`
	PURL       string              `json:"purl,omitempty"`
	Hashes     []map[string]string `json:"hashes,omitempty"`
	Properties []map[string]string `json:"properties,omitempty"`
}

// sbom is what a program was made from, by its own word (CycloneDX 1.5): each module
// that is linked, with the sum that go.sum holds it to, and the toolchain.
func sbom(path, name, version string, program []byte) ([]byte, error) {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(program)
	digest := fmt.Sprintf("%x", sum)
	id := sum[:16]
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80 // a UUID of a form of our own (RFC 9562 §5.8)
	main := component{
		Type: "application", Ref: name, Name: name, Version: version, PURL: "pkg:golang/" + info.Main.Path + "@" + version,
		Hashes: []map[string]string{{"alg": "SHA-256", "content": digest}},
	}
	all := []component{{Type: "library", Ref: "std", Name: "std", Version: info.GoVersion, PURL: "pkg:golang/std@" + info.GoVersion[len("go"):]}}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		purl := "pkg:golang/" + m.Path + "@" + m.Version
		all = append(all, component{Type: "library", Ref: purl, Name: m.Path, Version: m.Version, PURL: purl, Properties: []map[string]string{{"name": "go:sum", "value": m.Sum}}})
	}
	slices.SortFunc(all, func(a, b component) int { return cmp.Compare(a.Ref, b.Ref) })
	var settings []map[string]string
	for _, s := range info.Settings {
		settings = append(settings, map[string]string{"name": "go:" + s.Key, "value": s.Value})
	}
	main.Properties = settings
	return json.MarshalIndent(map[string]any{
		"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
		"serialNumber": fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:]),
		"metadata":     map[string]any{"component": main}, "components": all,
	}, "", " ")
}
