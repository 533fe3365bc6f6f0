// Package s3 publishes to a bucket of Amazon S3, or of what speaks its protocol.
// The client that it is given has credentials with s3:GetObject, s3:PutObject
// and, so that what is missing is told from what is forbidden, s3:ListBucket.
// Who may read the bucket is its policy's to say.
package s3

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/credence-id/credence/federation/publish"
)

// Store is what lies under a prefix of a bucket.
type Store struct {
	Client *s3.Client
	Bucket string
	Prefix string // empty, or ending in a slash
}

func (s Store) where(name string) string { return "s3://" + s.Bucket + "/" + s.Prefix + name }

// Get returns an object that is there.
func (s Store) Get(ctx context.Context, name string) (*publish.Held, error) {
	r, err := s.Client.GetObject(ctx, &s3.GetObjectInput{Bucket: &s.Bucket, Key: aws.String(s.Prefix + name)})
	if missing := (*types.NoSuchKey)(nil); errors.As(err, &missing) {
		return nil, nil
	}
	if statusOf(err) == http.StatusForbidden {
		return nil, fmt.Errorf("reading %s: without s3:ListBucket what is not there is forbidden too: %w", s.where(name), err)
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", s.where(name), err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(io.LimitReader(r.Body, publish.MaxHeld+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", s.where(name), err)
	}
	if len(body) > publish.MaxHeld {
		return nil, fmt.Errorf("reading %s: more than %d bytes: no document of ours", s.where(name), publish.MaxHeld)
	}
	if aws.ToString(r.ETag) == "" {
		return nil, fmt.Errorf("reading %s: it has no ETag", s.where(name))
	}
	return &publish.Held{
		Body: body, Headers: &publish.Headers{ContentType: aws.ToString(r.ContentType), CacheControl: aws.ToString(r.CacheControl)}, Version: *r.ETag,
	}, nil
}

// Put replaces an object, on the condition that it is still the one that was
// read. Stores that know no conditions (501) are written to without: they were
// read just before.
func (s Store) Put(ctx context.Context, d publish.Document, replaces *publish.Held) error {
	sum := sha256.Sum256(d.Body)
	input := &s3.PutObjectInput{
		Bucket: &s.Bucket, Key: aws.String(s.Prefix + d.Name), Body: bytes.NewReader(d.Body), ContentLength: aws.Int64(int64(len(d.Body))),
		ContentType: &d.ContentType, CacheControl: &d.CacheControl, ChecksumSHA256: aws.String(base64.StdEncoding.EncodeToString(sum[:])),
	}
	if replaces != nil {
		input.IfMatch = &replaces.Version
	} else {
		input.IfNoneMatch = aws.String("*")
	}
	_, err := s.Client.PutObject(ctx, input)
	if statusOf(err) == http.StatusNotImplemented {
		input.IfMatch, input.IfNoneMatch, input.Body = nil, nil, bytes.NewReader(d.Body)
		_, err = s.Client.PutObject(ctx, input)
	}
	switch {
	case err == nil:
		return nil
	case statusOf(err) == http.StatusPreconditionFailed || statusOf(err) == http.StatusConflict || replaces != nil && statusOf(err) == http.StatusNotFound:
		return fmt.Errorf("writing %s: %w: %w", s.where(d.Name), publish.ErrConflict, err)
	}
	return fmt.Errorf("writing %s: %w", s.where(d.Name), err)
}

func statusOf(err error) int {
	var r *awshttp.ResponseError
	if errors.As(err, &r) {
		return r.HTTPStatusCode()
	}
	return 0
}
