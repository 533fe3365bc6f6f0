package endpoint

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// FilesConfig is the wiring of Files. Fields are required unless noted.
type FilesConfig struct {
	Cert, Key string           // PEM; the certificate with its chain
	Host      string           // which relying parties ask for; empty: unknown
	Roots     *x509.CertPool   // which they believe; nil: the system's
	Log       *slog.Logger     // nil discards
	Now       func() time.Time // nil means time.Now
}

// Files is a certificate of the web PKI in files, read again when they change.
type Files struct {
	cfg FilesConfig

	mu      sync.Mutex // guards what follows
	loaded  *tls.Certificate
	stamp   [2]os.FileInfo // of loaded
	problem string         // that was logged last
	looked  time.Time
}

// OpenFiles reads the certificate and its key. It warns of what relying parties
// will not believe (SPIFFE Federation §5.2.1.3), but only refuses what cannot
// be shown.
func OpenFiles(cfg FilesConfig) (*Files, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	f := &Files{cfg: cfg, looked: cfg.Now()}
	cert, stamp, err := f.read()
	if err != nil {
		return nil, err
	}
	f.take(cert, stamp)
	if err := valid(cert.Leaf, cfg.Now()); err != nil {
		f.cfg.Log.Error("web certificate", "file", cfg.Cert, "problem", err.Error())
	}
	return f, nil
}

// Certificate looks at the files at most once a second. What cannot be read,
// does not fit, or is not valid now leaves the old certificate in use, with one
// line in the log.
func (f *Files) Certificate() (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.cfg.Now()
	if now.Sub(f.looked).Abs() < time.Second {
		return f.loaded, nil
	}
	f.looked = now
	cert, stamp, err := f.read()
	if err == nil && cert != nil {
		err = valid(cert.Leaf, now)
	}
	switch {
	case err != nil:
		if err.Error() != f.problem {
			f.cfg.Log.Error("web certificate not replaced: the old one stays in use", "file", f.cfg.Cert, "problem", err.Error())
		}
		f.problem = err.Error()
	case cert != nil:
		f.take(cert, stamp)
		f.cfg.Log.Info("web certificate replaced", "file", f.cfg.Cert, "ends", cert.Leaf.NotAfter)
	}
	return f.loaded, nil
}

// read gives the pair in the files, or none where it is the one in use.
func (f *Files) read() (cert *tls.Certificate, stamp [2]os.FileInfo, err error) {
	same := true
	for i, name := range []string{f.cfg.Cert, f.cfg.Key} {
		if stamp[i], err = os.Stat(name); err != nil {
			return nil, stamp, err
		}
		last := f.stamp[i]
		same = same && last != nil && os.SameFile(last, stamp[i]) && last.ModTime().Equal(stamp[i].ModTime()) && last.Size() == stamp[i].Size()
	}
	if same {
		f.problem = ""
		return nil, stamp, nil
	}
	pair, err := tls.LoadX509KeyPair(f.cfg.Cert, f.cfg.Key)
	if err != nil {
		return nil, stamp, fmt.Errorf("reading %s and %s: %w", f.cfg.Cert, f.cfg.Key, err)
	}
	return &pair, stamp, nil
}

func (f *Files) take(cert *tls.Certificate, stamp [2]os.FileInfo) {
	f.loaded, f.stamp, f.problem = cert, stamp, ""
	for _, warning := range f.doubts(cert) {
		f.cfg.Log.Warn("web certificate", "file", f.cfg.Cert, "problem", warning)
	}
}

// doubts are what relying parties would not believe.
func (f *Files) doubts(cert *tls.Certificate) (all []string) {
	if f.cfg.Host != "" {
		if err := cert.Leaf.VerifyHostname(f.cfg.Host); err != nil {
			all = append(all, err.Error())
		}
	}
	between := x509.NewCertPool()
	for _, der := range cert.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			between.AddCert(c)
		}
	}
	options := x509.VerifyOptions{Roots: f.cfg.Roots, Intermediates: between, CurrentTime: f.cfg.Now()}
	if _, err := cert.Leaf.Verify(options); errors.As(err, new(x509.UnknownAuthorityError)) {
		all = append(all, "no public CA vouches for it: clouds refuse it, and peers that are not told of its CA")
	}
	return all
}

func valid(leaf *x509.Certificate, now time.Time) error {
	if now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
		return fmt.Errorf("it is valid from %s to %s, which is not now", leaf.NotBefore.Format(time.RFC3339), leaf.NotAfter.Format(time.RFC3339))
	}
	return nil
}
