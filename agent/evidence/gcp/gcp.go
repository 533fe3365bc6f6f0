// Package gcp proves that a node is a machine of Google's, to the join method gcp: it
// shows the identity token that the metadata server makes for the broker's audience.
//
// It trusts what answers at the metadata server's address, as Google's own programs
// do; a token is nothing but to that audience.
package gcp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	defaultHost = "metadata.google.internal"
	maxToken    = 16 << 10
	patience    = 5 * time.Second
)

// Config says what to ask for. Fields are required unless noted.
type Config struct {
	Audience string
	Host     string // HOST or HOST:PORT of the metadata server; empty: where Google has it
}

// Evidence is a token, made for this question.
func (c Config) Evidence(ctx context.Context) ([]byte, error) {
	token, err := c.token(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking Google's metadata server for the instance's identity token: %w", err)
	}
	return token, nil
}

func (c Config) token(ctx context.Context) ([]byte, error) {
	if c.Host == "" {
		c.Host = defaultHost
	}
	query := url.Values{"audience": {c.Audience}, "format": {"full"}, "licenses": {"TRUE"}}
	at := url.URL{Scheme: "http", Host: c.Host, Path: "/computeMetadata/v1/instance/service-accounts/default/identity", RawQuery: query.Encode()}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), http.NoBody)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Metadata-Flavor", "Google")
	client := &http.Client{
		Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}, // at no proxy's hands
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	answer, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("%w (is this a machine of Google's?)", err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxToken+1))
	switch {
	case err != nil:
		return nil, err
	case answer.Header.Get("Metadata-Flavor") != "Google":
		return nil, fmt.Errorf("what answers at %s is no metadata server of Google's", c.Host)
	case answer.StatusCode == http.StatusNotFound:
		return nil, errors.New("there is no token: the instance has no service account (gcloud compute instances set-service-account)")
	case answer.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("it answers with status %d", answer.StatusCode)
	case len(text) > maxToken:
		return nil, fmt.Errorf("it answers more than %d bytes", maxToken)
	}
	if text = []byte(strings.TrimSpace(string(text))); len(text) == 0 {
		return nil, errors.New("it answers nothing")
	}
	return text, nil
}
