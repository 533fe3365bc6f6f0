package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/credence-id/credence/federation"
)

// An Answer is what a server said to a Post, whatever its status.
type Answer struct {
	Status      int
	ContentType string
	Body        []byte // whole
}

// Post sends a body to a server that the web's roots prove, in the bounds of a
// Fetch: from a public address, or one of AllowNetworks. It follows no redirect,
// which is an Answer too, and sends nothing twice. What header says is sent as
// it is, the Accept of answers too; the error holds nothing of it.
func (c *Client) Post(ctx context.Context, url string, header http.Header, body []byte) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	answer, err := c.post(ctx, url, header, body)
	if late := ctx.Err(); late != nil {
		err = late
	}
	if err != nil {
		return Answer{}, fmt.Errorf("POST %s: %w", federation.RedactURL(url), withoutURL(err))
	}
	return answer, nil
}

func (c *Client) post(ctx context.Context, url string, header http.Header, body []byte) (Answer, error) {
	config, err := c.tlsConfig(federation.Request{HTTPSWeb: &federation.HTTPSWeb{}}, new(seen))
	if err != nil {
		return Answer{}, err
	}
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return Answer{}, errors.New("the url does not parse")
	}
	if err := federation.CheckURL(post.URL); err != nil {
		return Answer{}, err
	}
	post.GetBody = nil // so that nothing could send it again
	post.Header = header.Clone()
	post.Header.Set("User-Agent", "credence")
	transport := c.transport(config, false)
	defer transport.CloseIdleConnections()
	got, err := transport.RoundTrip(post)
	if err != nil {
		return Answer{}, err
	}
	defer got.Body.Close()
	text, err := readBody(got)
	if err == nil && len(text) > MaxBody {
		err = errTooLarge
	}
	return Answer{got.StatusCode, got.Header.Get("Content-Type"), text}, err
}
