package azure

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
)

const maxClaims = 4 << 10

// A place is one of Microsoft's clouds. An identity of one is unknown in the
// others.
type place struct {
	authority string // with a slash at its end
	audience  string // of federated identity credentials, unless they say another
}

var places = map[string]place{
	"public": {cloud.AzurePublic.ActiveDirectoryAuthorityHost, "api://AzureADTokenExchange"},
	"usgov":  {cloud.AzureGovernment.ActiveDirectoryAuthorityHost, "api://AzureADTokenExchangeUSGov"},
	"china":  {cloud.AzureChina.ActiveDirectoryAuthorityHost, "api://AzureADTokenExchangeChina"},
}

// cloudOf is the cloud of an authority that is one of Microsoft's, or empty.
func cloudOf(authority string) string {
	u, err := url.Parse(authority)
	if err != nil {
		return ""
	}
	switch host := strings.ToLower(strings.TrimSuffix(u.Hostname(), ".")); {
	case host == "login.microsoftonline.us":
		return "usgov"
	case host == "login.chinacloudapi.cn", host == "login.partner.microsoftonline.cn":
		return "china"
	case host == "login.microsoftonline.com", host == "login.windows.net", host == "login.microsoft.com", strings.HasSuffix(host, ".login.microsoft.com"):
		return "public"
	}
	return ""
}

func (s Settings) cloud() string {
	if s.Cloud != "" {
		return s.Cloud
	}
	if c := cloudOf(s.Authority); c != "" {
		return c
	}
	return "public"
}

func (s Settings) place() place { return places[s.cloud()] }

// checkPlace refuses an authority of Microsoft's that is another cloud's.
func (s Settings) checkPlace(field, authority string) error {
	if c := cloudOf(authority); c != "" && c != s.cloud() {
		return fmt.Errorf("%s: it is of the %s cloud, and this Target is for %s: set cloud", field, c, s.cloud())
	}
	return nil
}

// checkClaims wants a JSON object, as a resource's challenge holds it once its
// base64 is taken off.
func checkClaims(claims string) error {
	if len(claims) > maxClaims {
		return fmt.Errorf("claims challenge of %d bytes: at most %d are passed on", len(claims), maxClaims)
	}
	var object map[string]json.RawMessage
	d := json.NewDecoder(bytes.NewReader([]byte(claims)))
	if d.Decode(&object) != nil || len(object) == 0 {
		return errors.New("claims challenge: it must be a JSON object that is not empty")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("claims challenge: there is more after the JSON object")
	}
	return nil
}
