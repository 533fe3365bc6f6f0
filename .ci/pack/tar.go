package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"path"
	"strings"
	"time"
)

// A file is one of a package or an image. What ends in / is a directory.
type file struct {
	path string // relative
	mode int64
	body []byte
	conf bool // an operator's to change
}

// tarball packs files, the directories above them too, such that the same files make
// the same bytes: one time, one owner, the order given.
func tarball(files []file, prefix string, at time.Time) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	made := map[string]bool{".": true, "": true}
	var put func(f file) error
	put = func(f file) error {
		if dir := path.Dir(strings.TrimSuffix(f.path, "/")); !made[dir] {
			if err := put(file{path: dir + "/", mode: 0o755}); err != nil {
				return err
			}
		}
		h := &tar.Header{Name: prefix + f.path, Mode: f.mode, ModTime: at, Size: int64(len(f.body)), Typeflag: tar.TypeReg, Format: tar.FormatGNU}
		if dir, is := strings.CutSuffix(f.path, "/"); is {
			made[dir], h.Typeflag = true, tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		_, err := w.Write(f.body)
		return err
	}
	for _, f := range files {
		if err := put(f); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return b.Bytes(), err
}

func zipped(b []byte) ([]byte, error) {
	var z bytes.Buffer
	w, err := gzip.NewWriterLevel(&z, gzip.DefaultCompression)
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(w, bytes.NewReader(b)); err != nil {
		return nil, err
	}
	err = w.Close()
	return z.Bytes(), err
}
