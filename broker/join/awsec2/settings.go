package awsec2

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/bearer"
)

const (
	defaultMaxAge   = 5 * time.Minute
	maxCertificates = 64
)

// Settings are those of a JoinRule.
type Settings struct {
	// Certificates (PEM) by which AWS signs the documents of a region, by the region's
	// name: the RSA-2048 ones that the EC2 user guide lists, "AWS public certificates
	// for instance identity document signatures". Nothing vouches for them but where
	// they were read, and none is built in. Required.
	Certificates map[string]string `yaml:"certificates"`
	// MaxAge since the instance was started, when it first joins; default 5m. Later it
	// comes back by its key.
	MaxAge bearer.Duration `yaml:"max_age,omitempty"`
	// Rejoin lets each start of an instance be held by another key too, within max_age:
	// for instances that lose their disks. Who has the document then may be first.
	Rejoin bool `yaml:"rejoin,omitempty"`
}

// A certificate signs for a region.
type certificate struct {
	*x509.Certificate
	region string
}

var regionPattern = regexp.MustCompile(`^[a-z]{2,5}(-[a-z]{2,12}){1,3}-[1-9]$`)

// Validate says what is wrong with settings, the field's name first.
func (s *Settings) Validate() error {
	if _, err := s.parse(); err != nil {
		return err
	}
	return bearer.CheckMaxAge(s.MaxAge)
}

// Endings are when the certificates end by which documents are verified.
func (s *Settings) Endings() (ends []join.Ending) {
	all, _ := s.parse()
	for _, c := range all {
		ends = append(ends, join.Ending{What: "for " + c.region, At: c.NotAfter})
	}
	return ends
}

func (s *Settings) parse() (all []certificate, err error) {
	if len(s.Certificates) == 0 {
		return nil, errors.New("certificates: those of each region that nodes are in are required")
	}
	for region, text := range s.Certificates {
		if !regionPattern.MatchString(region) {
			return nil, fmt.Errorf("certificates: %.40q is no region", region)
		}
		some, err := parseRegion(region, text)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	if len(all) > maxCertificates {
		return nil, fmt.Errorf("certificates: %d of them, at most %d are taken", len(all), maxCertificates)
	}
	return all, nil
}

func parseRegion(region, text string) (all []certificate, err error) {
	rest := []byte(text)
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil || block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("certificates: %s: what stands there is no certificate", region)
		}
		key, ok := c.PublicKey.(*rsa.PublicKey)
		if !ok || key.N.BitLen() < 2048 || key.N.BitLen() > 4096 {
			return nil, fmt.Errorf("certificates: %s: the one of serial number %x is not of the RSA-2048 kind", region, c.SerialNumber)
		}
		all = append(all, certificate{c, region})
	}
	if len(all) == 0 || strings.TrimSpace(string(rest)) != "" {
		return nil, fmt.Errorf("certificates: %s: certificates in PEM are wanted, and nothing else", region)
	}
	return all, nil
}
