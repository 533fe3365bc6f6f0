package aws

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
)

func domain(partition string) string {
	if partition == "aws-cn" {
		return ".amazonaws.com.cn"
	}
	return ".amazonaws.com"
}

// dualStack is the domain of the hosts that have IPv6 too.
func dualStack(partition string) string {
	if partition == "aws-cn" {
		return ".api.amazonwebservices.com.cn"
	}
	return ".api.aws"
}

// checkHost refuses an endpoint of AWS's own that is another service's,
// region's or partition's: credentials of one are worth nothing in the other.
// Other hosts are the operator's affair.
func checkHost(field, endpoint, service, region string) error {
	u, err := url.Parse(endpoint)
	if err != nil {
		return fmt.Errorf("%s: not a URL", field)
	}
	host, partition := strings.ToLower(strings.TrimSuffix(u.Hostname(), ".")), partitionOf(region)
	if !slices.ContainsFunc([]string{".amazonaws.com", ".amazonaws.com.cn", ".api.aws", ".api.amazonwebservices.com.cn"},
		func(d string) bool { return strings.HasSuffix(host, d) }) {
		return nil
	}
	var own []string
	for _, d := range []string{domain(partition), dualStack(partition)} {
		own = append(own, service+"."+region+d, service+"-fips."+region+d)
	}
	if service == "sts" && region == "us-east-1" {
		own = append(own, "sts.amazonaws.com")
	}
	if slices.Contains(own, host) || strings.HasSuffix(host, "."+service+"."+region+".vpce"+domain(partition)) {
		return nil
	}
	return fmt.Errorf("%s: %s is not %s in %s, which is %s", field, host, service, region, own[0])
}
