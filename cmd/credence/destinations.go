package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"cloud.google.com/go/auth/credentials"
	"cloud.google.com/go/auth/httptransport"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	awsra "github.com/aws/aws-sdk-go-v2/service/rolesanywhere"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/credence-id/credence/cmd/cli"
	"github.com/credence-id/credence/federation/publish"
	"github.com/credence-id/credence/federation/publish/azblob"
	"github.com/credence-id/credence/federation/publish/dir"
	"github.com/credence-id/credence/federation/publish/gcs"
	"github.com/credence-id/credence/federation/publish/rolesanywhere"
	"github.com/credence-id/credence/federation/publish/s3"
)

// A destination is what --to names.
type destination struct {
	kind      string // dir, s3, gs, azblob, rolesanywhere
	text      string // as it was given
	account   string // of azblob
	container string // bucket, container, directory, or the anchor's ARN
	prefix    string // empty, or ending in a slash
	endpoint  string // in place of the cloud's own; empty: that
}

const placeForms = "dir:///PATH, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, azblob://ACCOUNT/CONTAINER/PREFIX or rolesanywhere:ARN"

var (
	bucketPattern  = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]$`)
	accountPattern = regexp.MustCompile(`^[a-z0-9]{3,24}$`)
	// $web is what Azure serves as a static website.
	containerPattern = regexp.MustCompile(`^(\$web|[a-z0-9](-?[a-z0-9]){2,62})$`)
)

func parseDestination(text, endpoint string) (destination, error) {
	p := destination{text: text, endpoint: strings.TrimSuffix(endpoint, "/")}
	bad := func(why string) (destination, error) {
		return p, cli.BadInput(fmt.Errorf("--to %.300q: %s", text, why))
	}
	if arn, ok := strings.CutPrefix(text, "rolesanywhere:"); ok {
		p.kind, p.container = "rolesanywhere", arn
		if _, _, err := rolesanywhere.ParseARN(arn); err != nil {
			return bad(err.Error())
		}
		return p, checkEndpoint(endpoint)
	}
	kind, rest, ok := strings.Cut(text, "://")
	if !ok || strings.ContainsAny(text, "?#") {
		return bad(placeForms + " is wanted")
	}
	p.kind = kind
	switch kind {
	case "dir":
		if endpoint != "" || !filepath.IsAbs(rest) {
			return bad("dir:///PATH is wanted, from the root on, without --endpoint")
		}
		p.container = filepath.Clean(rest)
		return p, nil
	case "s3", "gs":
		p.container, rest, _ = strings.Cut(rest, "/")
		if !bucketPattern.MatchString(p.container) {
			return bad("a bucket is wanted after " + kind + "://")
		}
	case "azblob":
		p.account, rest, _ = strings.Cut(rest, "/")
		p.container, rest, _ = strings.Cut(rest, "/")
		if !accountPattern.MatchString(p.account) || !containerPattern.MatchString(p.container) {
			return bad("azblob://ACCOUNT/CONTAINER/PREFIX is wanted")
		}
	default:
		return bad(placeForms + " is wanted")
	}
	if rest = strings.TrimSuffix(rest, "/"); rest != "" {
		for part := range strings.SplitSeq(rest, "/") {
			if part == "" || part == "." || part == ".." || strings.ContainsFunc(part, func(r rune) bool { return r <= ' ' || r > '~' || r == '\\' || r == '%' }) {
				return bad("its prefix has an empty or a dot segment, or characters that no URL has as they are")
			}
		}
		p.prefix = rest + "/"
	}
	return p, checkEndpoint(endpoint)
}

// checkEndpoint keeps what is signed, and tokens all the more, off open wires.
func checkEndpoint(endpoint string) error {
	if endpoint == "" {
		return nil
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "https" && u.Scheme != "http" {
		return cli.BadInput(fmt.Errorf("--endpoint %.300q: an https URL is wanted", endpoint))
	}
	if ip, err := netip.ParseAddr(u.Hostname()); u.Scheme == "http" && (err != nil || !ip.IsLoopback()) {
		return cli.BadInput(fmt.Errorf("--endpoint %s: plain HTTP is for 127.0.0.1 and [::1]", endpoint))
	}
	return nil
}

// open makes a client with the credentials that the cloud's own tools would
// find. It asks nobody but for AWS's region.
func (p destination) open(ctx context.Context) (publish.Target, error) {
	switch p.kind {
	case "dir":
		return publish.Documents{Store: dir.Store{Dir: p.container}}, nil
	case "s3":
		return p.openS3(ctx)
	case "gs":
		return p.openGCS()
	case "azblob":
		return p.openAzure()
	case "rolesanywhere":
		return p.openAnchor(ctx)
	}
	return nil, fmt.Errorf("--to %s: unknown kind", p.text)
}

func (p destination) openS3(ctx context.Context) (publish.Target, error) {
	c, err := awsconfig.LoadDefaultConfig(ctx)
	if err != nil {
		return nil, err
	}
	if c.Region == "" {
		return nil, errors.New("in which region is the bucket? set AWS_REGION")
	}
	client := awss3.NewFromConfig(c, func(o *awss3.Options) {
		// We send a checksum of our own; others than AWS know no trailers.
		o.RequestChecksumCalculation, o.ResponseChecksumValidation = aws.RequestChecksumCalculationWhenRequired, aws.ResponseChecksumValidationWhenRequired
		if p.endpoint != "" {
			o.BaseEndpoint, o.UsePathStyle = &p.endpoint, true
		}
	})
	return publish.Documents{Store: s3.Store{Client: client, Bucket: p.container, Prefix: p.prefix}}, nil
}

func (p destination) openGCS() (publish.Target, error) {
	found, err := credentials.DetectDefault(&credentials.DetectOptions{Scopes: []string{"https://www.googleapis.com/auth/devstorage.read_write"}})
	if err != nil {
		return nil, fmt.Errorf("no Google credentials: %w", err)
	}
	client, err := httptransport.NewClient(&httptransport.Options{Credentials: found, DisableTelemetry: true})
	if err != nil {
		return nil, err
	}
	return publish.Documents{Store: gcs.Store{Client: client, Endpoint: p.endpoint, Bucket: p.container, Prefix: p.prefix}}, nil
}

func (p destination) openAzure() (publish.Target, error) {
	found, err := azidentity.NewDefaultAzureCredential(nil)
	if err != nil {
		return nil, fmt.Errorf("no Azure credentials: %w", err)
	}
	at := "https://" + p.account + ".blob.core.windows.net"
	if p.endpoint != "" {
		at = p.endpoint
	}
	client, err := container.NewClient(at+"/"+p.container, found, nil)
	if err != nil {
		return nil, err
	}
	return publish.Documents{Store: azblob.Store{Client: client, Prefix: p.prefix}}, nil
}

func (p destination) openAnchor(ctx context.Context) (publish.Target, error) {
	region, id, err := rolesanywhere.ParseARN(p.container)
	if err != nil {
		return nil, err
	}
	c, err := awsconfig.LoadDefaultConfig(ctx, awsconfig.WithRegion(region))
	if err != nil {
		return nil, err
	}
	client := awsra.NewFromConfig(c, func(o *awsra.Options) {
		if p.endpoint != "" {
			o.BaseEndpoint = &p.endpoint
		}
	})
	return rolesanywhere.Anchor{Client: client, ID: id}, nil
}

// deniedBy says whether a cloud refused us, and not what we ask.
func deniedBy(err error) bool {
	var amazon *awshttp.ResponseError
	var microsoft *azcore.ResponseError
	var google *gcs.Error
	status := 0
	switch {
	case errors.As(err, &amazon):
		status = amazon.HTTPStatusCode()
	case errors.As(err, &microsoft):
		status = microsoft.StatusCode
	case errors.As(err, &google):
		status = google.Status
	}
	return slices.Contains([]int{http.StatusUnauthorized, http.StatusForbidden}, status)
}
