package spool

// A Disk is one that a test can have fail: Fail is asked before each act.
type Disk struct{ Fail func(act, path string) error }

type failing struct {
	file
	d    Disk
	path string
}

// On returns c with a disk that fails.
func (d Disk) On(c Config) Config { c.disk = d; return c }

func (d Disk) open(path string) (file, error) {
	if err := d.Fail("open", path); err != nil {
		return nil, err
	}
	f, err := osDisk{}.open(path)
	return &failing{f, d, path}, err
}

func (d Disk) place(path string, text []byte, sync bool) error {
	if err := d.Fail("place", path); err != nil {
		return err
	}
	return osDisk{}.place(path, text, sync)
}

func (d Disk) syncDir(dir string) error {
	if err := d.Fail("syncdir", dir); err != nil {
		return err
	}
	return osDisk{}.syncDir(dir)
}

// Write takes half of what it is given when it fails, as a full disk does.
func (f *failing) Write(b []byte) (int, error) {
	if err := f.d.Fail("write", f.path); err != nil {
		n, _ := f.file.Write(b[:len(b)/2])
		return n, err
	}
	return f.file.Write(b)
}

func (f *failing) Sync() error {
	if err := f.d.Fail("sync", f.path); err != nil {
		return err
	}
	return f.file.Sync()
}

func (f *failing) Truncate(size int64) error {
	if err := f.d.Fail("truncate", f.path); err != nil {
		return err
	}
	return f.file.Truncate(size)
}

// ParseLine is parseLine.
func ParseLine(line []byte) (Record, error) { return parseLine(line) }

// Line is a record as its line.
func Line(sequence uint64, payload []byte) []byte { return appendLine(nil, sequence, 'r', payload) }
