package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/credence-id/credence/broker/audit"
)

// lines are records as they stand in their files.
func lines(batch []audit.Record) ([]byte, error) {
	var b bytes.Buffer
	for _, r := range batch {
		line, err := r.Line()
		if err != nil {
			return nil, err
		}
		b.Write(line)
		b.WriteByte('\n')
	}
	return b.Bytes(), nil
}

// headLine is a head among records: one line with its newline.
func headLine(h audit.Head) ([]byte, error) {
	line, err := audit.ExportedHead(h)
	return append(line, '\n'), err
}

// A Writer is a Sink that writes JSON lines to W, which keeps what it took.
type Writer struct{ W io.Writer }

// Send writes a batch.
func (w Writer) Send(_ context.Context, batch []audit.Record) error {
	text, err := lines(batch)
	if err == nil {
		_, err = w.W.Write(text)
	}
	return err
}

// SendHead writes a head.
func (w Writer) SendHead(_ context.Context, h audit.Head) error {
	text, err := headLine(h)
	if err == nil {
		_, err = w.W.Write(text)
	}
	return err
}

// A File is a Sink that appends JSON lines to a file and makes them durable.
type File struct {
	path string
	file *os.File
}

// OpenFile opens a file, made with mode 0600 if it is absent. A line that a crash
// left incomplete is cut off: it was not acknowledged.
func OpenFile(path string) (*File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("exporting to %s: %w", path, err)
	}
	err = cutPartial(f)
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("exporting to %s: %w", path, err), f.Close())
	}
	return &File{path: path, file: f}, nil
}

// cutPartial cuts off what comes after the last newline.
func cutPartial(f *os.File) error {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() == 0 {
		return err // a device has no end to mend
	}
	tail := make([]byte, min(info.Size(), audit.MaxLine+1))
	if _, err := f.ReadAt(tail, info.Size()-int64(len(tail))); err != nil {
		return err
	}
	end := bytes.LastIndexByte(tail, '\n') + 1
	if end == 0 && int64(len(tail)) < info.Size() {
		return errors.New("its last line is longer than a record: it is no export")
	}
	if end == len(tail) {
		return nil
	}
	if !begins(tail[end:], `{"sequence":`) && !begins(tail[end:], `{"head":`) {
		return errors.New("its last line is incomplete and of no record: it is no export")
	}
	return f.Truncate(info.Size() - int64(len(tail)-end))
}

// begins says whether an incomplete line may be of those that begin so.
func begins(line []byte, start string) bool {
	n := min(len(line), len(start))
	return string(line[:n]) == start[:n]
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Send appends a batch. What a failure left of it is cut off again.
func (f *File) Send(_ context.Context, batch []audit.Record) error {
	text, err := lines(batch)
	if err == nil {
		err = f.append(text)
	}
	return err
}

// SendHead appends a head, as Send does.
func (f *File) SendHead(_ context.Context, h audit.Head) error {
	text, err := headLine(h)
	if err == nil {
		err = f.append(text)
	}
	return err
}

func (f *File) append(text []byte) error {
	err := cutPartial(f.file)
	if err == nil {
		_, err = f.file.Write(text)
	}
	if err == nil {
		err = f.file.Sync()
	}
	return err
}

// Close closes the file.
func (f *File) Close() error { return f.file.Close() }
