package awsiam

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/credence-id/credence/broker/join/bearer"
)

// Settings are those of a JoinRule. Without any, requests to the regional
// endpoints of AWS' three public partitions are taken.
type Settings struct {
	// Regions whose endpoints are asked; default: all.
	Regions []string `yaml:"regions,omitempty"`
	// Global takes sts.amazonaws.com too, beside the regional endpoints.
	Global bool `yaml:"global,omitempty"`
	// Endpoint is asked instead, and alone: that of a VPC (whose private address
	// allow_networks of broker.yaml must let through), of a partition that this
	// program doesn't know, or one that answers as STS does.
	Endpoint string `yaml:"endpoint,omitempty"`
	// CA certificates (PEM) that the endpoint's is of, where it isn't a public one's.
	CA string `yaml:"ca,omitempty"`
	// BanBy is what evicting a node of a role bans: its session where that is an
	// instance of EC2 (instance, the default), or always the whole role (role): for
	// roles that not EC2 alone may assume, since who assumes one by AssumeRole
	// chooses the session's name.
	BanBy string `yaml:"ban_by,omitempty"`
}

var (
	regionPattern = regexp.MustCompile(`^((af|ap|ca|eu|il|me|mx|sa|us)-(north|south|east|west|central|northeast|northwest|southeast|southwest)|us-gov-(east|west)|cn-(north|northwest))-[1-9]$`)
	// otherRegion is how an endpoint of one's own may call its region.
	otherRegion  = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])$`)
	endpointHost = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[1-9][0-9]{0,4})?$`)
)

// Validate says what is wrong with settings, the field's name first.
func (s *Settings) Validate() error {
	pattern := regionPattern
	if s.Endpoint != "" {
		pattern = otherRegion
	}
	for _, region := range s.Regions {
		if !pattern.MatchString(region) {
			return fmt.Errorf("regions: %.80q is none that this program knows (endpoint takes others)", region)
		}
	}
	if err := s.checkEndpoint(); err != nil {
		return err
	}
	if _, err := bearer.ParseRoots(s.CA); err != nil {
		return fmt.Errorf("ca: %w", err)
	}
	if !slices.Contains([]string{"", banInstance, banRole}, s.BanBy) {
		return fmt.Errorf("ban_by: %.80q: %s or %s is wanted", s.BanBy, banInstance, banRole)
	}
	return nil
}

func (s *Settings) checkEndpoint() error {
	switch {
	case s.Endpoint == "" && s.CA != "":
		return errors.New("ca: is for an endpoint: AWS' own have certificates of public CAs")
	case s.Endpoint == "":
		return nil
	case s.Global:
		return errors.New("global: either this or endpoint is wanted")
	}
	u, err := url.Parse(s.Endpoint)
	if err != nil || !endpointHost.MatchString(u.Host) || "https://"+u.Host != s.Endpoint {
		return fmt.Errorf("endpoint: %.200q: https://HOST or https://HOST:PORT is wanted, in lower case and without a path", s.Endpoint)
	}
	return nil
}

// Roots are what the endpoint's certificate is verified by; nil: the system's.
func (s *Settings) Roots() *x509.CertPool {
	roots, _ := bearer.ParseRoots(s.CA)
	return roots
}

// hosts are where a request whose scope names a region may be sent.
func (s *Settings) hosts(region string) []string {
	if len(s.Regions) > 0 && !slices.Contains(s.Regions, region) && !(s.Global && region == globalRegion) {
		return nil
	}
	if s.Endpoint != "" {
		return []string{s.Endpoint[len("https://"):]}
	}
	var hosts []string
	if s.Global && region == globalRegion {
		hosts = append(hosts, "sts.amazonaws.com")
	}
	switch {
	case !regionPattern.MatchString(region), len(s.Regions) > 0 && !slices.Contains(s.Regions, region):
		return hosts
	case partitionOf(region) == "aws-cn":
		return append(hosts, "sts."+region+".amazonaws.com.cn")
	}
	hosts = append(hosts, "sts."+region+".amazonaws.com")
	if strings.HasPrefix(region, "us-") { // GovCloud's own are FIPS endpoints
		hosts = append(hosts, "sts-fips."+region+".amazonaws.com")
	}
	return hosts
}

// globalRegion is what the scope of a request to the global endpoint names.
const globalRegion = "us-east-1"

func partitionOf(region string) string {
	switch {
	case strings.HasPrefix(region, "cn-"):
		return "aws-cn"
	case strings.HasPrefix(region, "us-gov-"):
		return "aws-us-gov"
	}
	return "aws"
}
