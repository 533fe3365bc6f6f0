package azure

import "strings"

// Host is the authority as AZURE_AUTHORITY_HOST says it; endpoint is the
// Target's. known says whether Microsoft's libraries know it: of another they
// ask Microsoft's public cloud first, unless the program forbids it.
func (s Settings) Host(endpoint string) (host string, known bool) {
	host = s.place().authority
	for _, set := range []string{s.Authority, endpoint} {
		if set != "" {
			host = strings.TrimSuffix(set, "/") + "/"
		}
	}
	return host, cloudOf(host) != ""
}
