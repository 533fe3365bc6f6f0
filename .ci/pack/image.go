package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"time"
)

// image is an OCI image layout in a tar: one layer with the program, the roots of the
// web's PKI, and nothing that runs besides. skopeo copy oci-archive:FILE takes it, and
// docker load.
func image(name, version, arch string, program, roots []byte, at time.Time) ([]byte, error) {
	layer, err := tarball([]file{
		{path: name, mode: 0o755, body: program},
		{path: "etc/passwd", mode: 0o644, body: []byte("root:x:0:0:root:/:/none\ncredence:x:65532:65532:credence:/:/none\n")},
		{path: "etc/group", mode: 0o644, body: []byte("root:x:0:\ncredence:x:65532:\n")},
		{path: "etc/ssl/certs/ca-certificates.crt", mode: 0o644, body: roots},
	}, "", at)
	if err != nil {
		return nil, err
	}
	packed, err := zipped(layer)
	if err != nil {
		return nil, err
	}
	var blobs []file
	var failed error
	put := func(kind string, body []byte) map[string]any {
		sum := fmt.Sprintf("%x", sha256.Sum256(body))
		blobs = append(blobs, file{path: "blobs/sha256/" + sum, mode: 0o644, body: body})
		return map[string]any{"mediaType": kind, "digest": "sha256:" + sum, "size": len(body)}
	}
	doc := func(v any) []byte {
		text, err := json.Marshal(v)
		if err != nil {
			failed = err
		}
		return text
	}
	const oci = "application/vnd.oci.image."
	layers := []any{put(oci+"layer.v1.tar+gzip", packed)}
	config := put(oci+"config.v1+json", doc(map[string]any{
		"created": at.UTC().Format(time.RFC3339), "architecture": arch, "os": "linux",
		"config": map[string]any{
			"User": "65532:65532", "Entrypoint": []string{"/" + name}, "WorkingDir": "/", "StopSignal": "SIGTERM",
			"Labels": map[string]string{"org.opencontainers.image.version": version, "org.opencontainers.image.source": "https://github.com/credence-id/credence", "org.opencontainers.image.licenses": "Apache-2.0"},
		},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	}))
	manifest := put(oci+"manifest.v1+json", doc(map[string]any{"schemaVersion": 2, "mediaType": oci + "manifest.v1+json", "config": config, "layers": layers}))
	manifest["platform"] = map[string]string{"os": "linux", "architecture": arch}
	manifest["annotations"] = map[string]string{"org.opencontainers.image.ref.name": version, "io.containerd.image.name": "ghcr.io/credence-id/" + name + ":" + version}
	blobs = append(blobs,
		file{path: "oci-layout", mode: 0o644, body: []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		file{path: "index.json", mode: 0o644, body: doc(map[string]any{"schemaVersion": 2, "mediaType": oci + "index.v1+json", "manifests": []any{manifest}})})
	if failed != nil {
		return nil, failed
	}
	return tarball(blobs, "", at)
}
