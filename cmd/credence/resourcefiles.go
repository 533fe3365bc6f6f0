package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/credence-id/credence/broker/resource"
	"github.com/credence-id/credence/cmd/cli"
)

// Bounds of what -f names together: a mistaken -f / ends soon.
const (
	maxFiles     = resource.MaxDocuments
	maxListed    = 10 * maxFiles // entries of directories
	maxFileBytes = 16 * resource.MaxBytes
)

// A resourceReader reads the files that -f names.
type resourceReader struct {
	p         *program
	recursive bool // directories below are read
	shallow   bool // they are not, as the user said: else they are a mistake
	all       []resource.Resource
	seen      seenNames
	entries   int
	files     int
	bytes     int
}

// readResources parses all files that -f names, and reads the bundle files of
// peers in their place.
func (p *program) readResources(names []string) ([]resource.Resource, error) {
	r := &resourceReader{p: p, seen: make(seenNames)}
	return r.read(names)
}

func (r *resourceReader) read(names []string) ([]resource.Resource, error) {
	if len(names) == 0 {
		return nil, cli.BadInput(errors.New("-f FILE, DIR or - is wanted"))
	}
	for _, name := range names {
		if err := r.add(name); err != nil {
			return nil, cli.BadInput(err)
		}
	}
	return r.all, nil
}

func (r *resourceReader) add(name string) error {
	if name == "-" {
		return r.parse(name, r.p.In)
	}
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return r.directory(name)
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return r.parse(name, f)
}

// directory reads a directory's files by their names' order. Links count where
// they stay inside it, as those do that Kubernetes mounts.
func (r *resourceReader) directory(name string) error {
	root, err := os.OpenRoot(name)
	if err != nil {
		return err
	}
	defer root.Close()
	files, err := r.list(root)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if len(files) == 0 {
		return fmt.Errorf("%s: there is no *.yaml, *.yml or *.json in it, and nothing to apply: nothing is done", name)
	}
	for _, file := range files {
		if err := r.inside(root, name, file); err != nil {
			return err
		}
	}
	return nil
}

func (r *resourceReader) inside(root *os.Root, dir, file string) error {
	shown := filepath.Join(dir, file)
	info, err := root.Stat(file)
	if err != nil {
		return fmt.Errorf("%s: %w; links are followed inside of %s only", shown, err, dir)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s: it is no file", shown)
	}
	f, err := root.Open(file)
	if err != nil {
		return fmt.Errorf("%s: %w", shown, err)
	}
	defer f.Close()
	return r.parse(shown, f)
}

// list finds a directory's files. Names that begin with a dot are not looked at.
func (r *resourceReader) list(root *os.Root) (files []string, err error) {
	err = fs.WalkDir(root.FS(), ".", func(file string, d fs.DirEntry, err error) error {
		if r.entries++; err != nil {
			return err
		}
		if r.entries > maxListed {
			return fmt.Errorf("more than %d files and directories are not looked at: is it the right one?", maxListed)
		}
		switch hidden := file != "." && strings.HasPrefix(path.Base(file), "."); {
		case hidden && d.IsDir():
			return fs.SkipDir
		case hidden:
			return nil
		case d.IsDir() && file != "." && r.shallow:
			return fs.SkipDir
		case d.IsDir() || !slices.Contains([]string{".yaml", ".yml", ".json"}, path.Ext(file)):
			return r.notADirectory(root, file, d)
		}
		if strings.Contains(file, "/") && !r.recursive {
			return fmt.Errorf("%s lies in a directory below: say -R to read it too, or -R=false to leave it out", file)
		}
		files = append(files, file)
		return nil
	})
	return files, err
}

// notADirectory refuses a link to a directory, whose files would be missed.
func (r *resourceReader) notADirectory(root *os.Root, file string, d fs.DirEntry) error {
	if d.Type()&fs.ModeSymlink == 0 || r.shallow {
		return nil
	}
	if info, err := root.Stat(file); err == nil && !info.IsDir() {
		return nil
	}
	return fmt.Errorf("%s is a link that leads to a directory, outside, or nowhere: such are not followed; name it by -f", file)
}

// parse reads one file.
func (r *resourceReader) parse(file string, in io.Reader) error {
	if r.files++; r.files > maxFiles {
		return fmt.Errorf("%s: more than %d files are not taken at once", file, maxFiles)
	}
	text, err := io.ReadAll(io.LimitReader(in, resource.MaxBytes+1))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if r.bytes += len(text); r.bytes > maxFileBytes {
		return fmt.Errorf("%s: with it the files have more than %d bytes: they are not taken at once", file, maxFileBytes)
	}
	parsed, err := parseFile(file, text)
	if err != nil {
		return err
	}
	if err := r.seen.add(file, parsed); err != nil {
		return err
	}
	r.all = append(r.all, parsed...)
	return nil
}

// parseFile parses the text of a file, and reads the bundle files that it names.
func parseFile(file string, text []byte) ([]resource.Resource, error) {
	parsed, err := registry().Parse(file, text)
	if err != nil {
		return nil, err
	}
	for i := range parsed {
		err := parsed[i].ReadBundle(func(name string) ([]byte, error) {
			if !filepath.IsAbs(name) && file != "-" {
				name = filepath.Join(filepath.Dir(file), name)
			}
			return cli.ReadSmall(name)
		})
		if err != nil {
			return nil, err
		}
	}
	return parsed, nil
}

// seenNames tells in which file each kind and name stands.
type seenNames map[string]string

func (s seenNames) add(file string, parsed []resource.Resource) error {
	for _, r := range parsed {
		key := r.Kind + " " + r.Name
		if first, twice := s[key]; twice {
			return r.At("name", "it stands in "+first+" too: a name is used once per kind")
		}
		s[key] = file
	}
	return nil
}

// documentsOf is the resources as a broker reads them fast.
func documentsOf(all []resource.Resource) ([]byte, error) {
	var text []byte
	for _, r := range all {
		body, err := r.Text()
		if err != nil {
			return nil, err
		}
		text = append(append(text, "---\n"...), body...)
	}
	if len(text) > resource.MaxBytes || len(all) > resource.MaxDocuments {
		return nil, fmt.Errorf("%d resources of %d bytes: at most %d of %d bytes are taken at once: apply them in parts, with --prune each part by an --owner of its own",
			len(all), len(text), resource.MaxDocuments, resource.MaxBytes)
	}
	return text, nil
}
