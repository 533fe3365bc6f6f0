package endpoint

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/credence-id/credence/federation"
)

// SPIFFEServerTLS is the server's side of https_spiffe: getCert gives the X509-
// SVID to show, with its chain, at each handshake, so that it rotates under an
// open listener. What is no valid X509-SVID now is not shown (SPIFFE Federation
// §5.2.2.3). No client certificate is asked for.
func SPIFFEServerTLS(getCert func() (*tls.Certificate, error)) *tls.Config {
	return intermediate(func() (*tls.Certificate, error) {
		cert, err := getCert()
		if err != nil {
			return nil, err
		}
		return cert, checkSVID(cert, time.Now())
	})
}

// WebServerTLS is the server's side of https_web, under the same rules, with a
// certificate of the web PKI.
func WebServerTLS(getCert func() (*tls.Certificate, error)) *tls.Config {
	return intermediate(getCert)
}

// intermediate is Mozilla's "intermediate": TLS 1.2 with its suites, and 1.3
// (SPIFFE Federation §5). Session tickets are off: a session must not outlive
// the certificate that it began with.
func intermediate(getCert func() (*tls.Certificate, error)) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		CipherSuites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
			tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
		CurvePreferences:       []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256, tls.CurveP384},
		ClientAuth:             tls.NoClientCert,
		SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			cert, err := getCert()
			if err == nil && cert == nil {
				err = errors.New("no certificate to show yet")
			}
			return cert, err
		},
	}
}

// checkSVID looks at form and times: trust is the other side's to judge.
func checkSVID(cert *tls.Certificate, now time.Time) error {
	if cert == nil || len(cert.Certificate) == 0 {
		return errors.New("no X509-SVID to show yet")
	}
	leaf := cert.Leaf
	if leaf == nil {
		parsed, err := x509.ParseCertificate(cert.Certificate[0])
		if err != nil {
			return fmt.Errorf("parsing the X509-SVID to show: %w", err)
		}
		leaf = parsed
	}
	if err := federation.CheckLeaf(leaf, now); err != nil {
		return fmt.Errorf("the X509-SVID to show: %w", err)
	}
	return nil
}

// Server is an HTTP server with h, bounded in time and size. Its ErrorLog is the
// caller's to set: by default it tells of every stranger's failed handshake.
func Server(h http.Handler, config *tls.Config) *http.Server {
	return &http.Server{
		Handler:           h,
		TLSConfig:         config,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      10 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 64, MaxReceiveBufferPerConnection: 256 << 10, MaxReceiveBufferPerStream: 64 << 10,
			SendPingTimeout: 30 * time.Second, PingTimeout: 10 * time.Second, WriteByteTimeout: 10 * time.Second,
		},
	}
}
