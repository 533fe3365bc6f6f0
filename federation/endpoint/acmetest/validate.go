package acmetest

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/asn1"
	"fmt"
	"net"
	"slices"
	"time"
)

// acmeIdentifier is id-pe-acmeIdentifier (RFC 8737 §6.1).
var acmeIdentifier = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 31}

// validate is RFC 8737 §3.
func validate(host, address, keyAuthorization string) error {
	if address == "" {
		return fmt.Errorf("DNS knows no %s", host)
	}
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", address, &tls.Config{
		ServerName: host, NextProtos: []string{"acme-tls/1"}, InsecureSkipVerify: true, MinVersion: tls.VersionTLS12,
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	state := conn.ConnectionState()
	if state.NegotiatedProtocol != "acme-tls/1" {
		return fmt.Errorf("it speaks %q", state.NegotiatedProtocol)
	}
	if len(state.PeerCertificates) != 1 {
		return fmt.Errorf("it shows %d certificates", len(state.PeerCertificates))
	}
	c := state.PeerCertificates[0]
	if !slices.Equal(c.DNSNames, []string{host}) || len(c.IPAddresses)+len(c.URIs)+len(c.EmailAddresses) > 0 {
		return fmt.Errorf("it shows a certificate of %v", c.DNSNames)
	}
	sum := sha256.Sum256([]byte(keyAuthorization))
	want, err := asn1.Marshal(sum[:])
	if err != nil {
		return err
	}
	for _, extension := range c.Extensions {
		if extension.Id.Equal(acmeIdentifier) {
			if !extension.Critical || !bytes.Equal(extension.Value, want) {
				return fmt.Errorf("its acmeIdentifier is critical: %v, %x; wanted %x", extension.Critical, extension.Value, want)
			}
			return nil
		}
	}
	return fmt.Errorf("its certificate has no acmeIdentifier")
}
