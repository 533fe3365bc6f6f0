// Package azblob publishes to a container of Azure Blob Storage. The client that
// it is given has credentials with the role Storage Blob Data Contributor, or
// one with read and write of blobs. Who may read the container is its own to say.
package azblob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"github.com/credence-id/credence/federation/publish"
)

// Store is what lies under a prefix of a container.
type Store struct {
	Client *container.Client
	Prefix string // empty, or ending in a slash
}

func (s Store) where(name string) string { return s.Client.URL() + "/" + s.Prefix + name }

// Get returns a blob that is there.
func (s Store) Get(ctx context.Context, name string) (*publish.Held, error) {
	r, err := s.Client.NewBlobClient(s.Prefix+name).DownloadStream(ctx, nil)
	if bloberror.HasCode(err, bloberror.BlobNotFound) {
		return nil, nil
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
	if r.ETag == nil || *r.ETag == "" {
		return nil, fmt.Errorf("reading %s: it has no ETag", s.where(name))
	}
	return &publish.Held{Body: body, Headers: &publish.Headers{ContentType: text(r.ContentType), CacheControl: text(r.CacheControl)}, Version: string(*r.ETag)}, nil
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// Put replaces a blob, on the condition that its ETag is still the one that was
// read, or that there is none. The service checks what arrived.
func (s Store) Put(ctx context.Context, d publish.Document, replaces *publish.Held) error {
	condition := &blob.ModifiedAccessConditions{IfNoneMatch: to.Ptr(azcore.ETagAny)}
	if replaces != nil {
		condition = &blob.ModifiedAccessConditions{IfMatch: to.Ptr(azcore.ETag(replaces.Version))}
	}
	_, err := s.Client.NewBlockBlobClient(s.Prefix+d.Name).Upload(ctx, streaming.NopCloser(bytes.NewReader(d.Body)), &blockblob.UploadOptions{
		HTTPHeaders:             &blob.HTTPHeaders{BlobContentType: &d.ContentType, BlobCacheControl: &d.CacheControl},
		AccessConditions:        &blob.AccessConditions{ModifiedAccessConditions: condition},
		TransactionalValidation: blob.TransferValidationTypeComputeCRC64(),
	})
	var r *azcore.ResponseError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &r) && (r.StatusCode == http.StatusPreconditionFailed || r.ErrorCode == string(bloberror.BlobAlreadyExists)):
		return fmt.Errorf("writing %s: %w: %w", s.where(d.Name), publish.ErrConflict, err)
	}
	return fmt.Errorf("writing %s: %w", s.where(d.Name), err)
}
