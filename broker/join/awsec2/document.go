package awsec2

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"github.com/credence-id/credence/broker/join/bearer"
)

// A document is what an instance identity document says that matters.
type document struct {
	account, region, instance string
	image, kind, zone         string
	architecture, privateIP   string
	started                   time.Time
}

// version is the one that AWS has written since 2017.
const documentVersion = "2017-09-30"

var (
	accountPattern  = regexp.MustCompile(`^[0-9]{12}$`)
	instancePattern = regexp.MustCompile(`^i-([0-9a-f]{8}|[0-9a-f]{17})$`)
	imagePattern    = regexp.MustCompile(`^ami-([0-9a-f]{8}|[0-9a-f]{17})$`)
	wordPattern     = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)
)

// readDocument reads what was verified: each member once, each that is read of its
// own form. Others are AWS' to add.
func readDocument(text []byte) (d document, err error) {
	all, err := bearer.Object(text)
	if err != nil {
		return document{}, err
	}
	if all["version"] != documentVersion {
		return document{}, fmt.Errorf("it is not of version %s", documentVersion)
	}
	var started string
	for _, f := range []struct {
		name string
		to   *string
		form *regexp.Regexp // nil: is looked at below
	}{
		{"accountId", &d.account, accountPattern}, {"region", &d.region, regionPattern}, {"instanceId", &d.instance, instancePattern},
		{"imageId", &d.image, imagePattern}, {"instanceType", &d.kind, wordPattern}, {"availabilityZone", &d.zone, wordPattern},
		{"architecture", &d.architecture, wordPattern}, {"privateIp", &d.privateIP, nil}, {"pendingTime", &started, nil},
	} {
		value, ok := all[f.name].(string)
		if !ok || f.form != nil && !f.form.MatchString(value) {
			return document{}, fmt.Errorf("its %s is none: %.80q", f.name, value)
		}
		*f.to = value
	}
	ip, err := netip.ParseAddr(d.privateIP)
	if err != nil || ip.String() != d.privateIP {
		return document{}, fmt.Errorf("its privateIp is none: %.80q", d.privateIP)
	}
	if d.started, err = time.Parse(time.RFC3339, started); err != nil {
		return document{}, errors.New("its pendingTime is no time")
	}
	if !strings.HasPrefix(d.zone, d.region) {
		return document{}, fmt.Errorf("its zone %s is not of its region %s", d.zone, d.region)
	}
	return d, nil
}
