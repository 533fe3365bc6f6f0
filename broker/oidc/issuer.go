package oidc

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"
)

// maxIssuer is what the narrowest cloud takes.
const maxIssuer = 255

// CheckIssuer refuses what cannot be an issuer that every cloud takes: it is
// https, in lower case where case does not count, with a host and perhaps a
// path, without user, query, fragment, escapes or a slash at the end, at most
// 255 bytes. It is compared byte for byte, so nothing is mended. It warns of a
// port: some clouds refuse that, and a sandbox needs it.
func CheckIssuer(issuer string) (warnings []string, err error) {
	u, err := url.Parse(issuer)
	if err != nil {
		return nil, fmt.Errorf("issuer %.300q is not a URL", issuer)
	}
	refuse := func(why string) ([]string, error) {
		return nil, fmt.Errorf("issuer %.300q %s", issuer, why)
	}
	switch {
	case len(issuer) > maxIssuer:
		return refuse("has more than 255 bytes")
	case !strings.HasPrefix(issuer, "https://"):
		return refuse("does not start with https://")
	case u.Hostname() == "" || u.User != nil:
		return refuse("has no host, or a user")
	case strings.ContainsAny(issuer, "?#"):
		return refuse("has a query or a fragment")
	case strings.HasSuffix(issuer, "/"):
		return refuse("ends in a slash")
	case u.Host != strings.ToLower(u.Host):
		return refuse("has capitals in its host")
	case strings.HasSuffix(u.Host, ":") || strings.HasSuffix(u.Hostname(), "."):
		return refuse("has a host that ends in a colon or a dot")
	case !plain(strings.TrimPrefix(issuer, "https://")):
		return refuse("has characters besides letters, digits and -._~:[]/")
	}
	for _, part := range strings.Split(u.Path, "/")[1:] {
		if part == "" || part == "." || part == ".." {
			return refuse("has an empty or a dot segment in its path")
		}
	}
	if u.Port() != "" && !loopback(u.Hostname()) {
		warnings = append(warnings, fmt.Sprintf("issuer %s has a port: AWS does not take one", issuer))
	}
	return warnings, nil
}

func plain(s string) bool {
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~:[]/") == ""
}

func loopback(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}
