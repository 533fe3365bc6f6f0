// Package azure proves that a node is a machine of Azure's, to the join method azure:
// it shows a token of its managed identity, for the broker's audience, and answers the
// broker's challenge with a document about the machine that Azure signs (attested
// data). Instance metadata gives both.
//
// It trusts what answers at the metadata's address, as Azure's own programs do. The
// document is asked for with a nonce of the broker's trust domain, its challenge and
// the node's key: for whoever else asks this node, it is none.
package azure

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	defaultEndpoint = "http://169.254.169.254"
	maxAnswer       = 32 << 10
	patience        = 5 * time.Second
	// tries for a document: instance metadata may give one again that it kept, and
	// keeps them for moments.
	tries = 4
	pause = 500 * time.Millisecond
)

// Config says what to ask for. Fields are required unless noted.
type Config struct {
	TrustDomain string // of the broker
	Audience    string // of the token, an App ID URI; empty: none is shown
	ClientID    string // of the managed identity; empty: the machine has one
	Endpoint    string // of instance metadata; empty: the address that Azure has
}

// Evidence is a token, {"token": ...}, or {} where none is to be shown.
func (c Config) Evidence(ctx context.Context) ([]byte, error) {
	if c.Audience == "" {
		return []byte("{}"), nil
	}
	token, err := c.token(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking instance metadata for a token of the managed identity: %w", err)
	}
	return json.Marshal(map[string]string{"token": token})
}

// Answer is a document for a challenge and the key that the node joins with (DER).
func (c Config) Answer(ctx context.Context, challenge, publicKey []byte) ([]byte, error) {
	if len(challenge) != 32 {
		return nil, fmt.Errorf("a challenge of %d bytes: 32 are taken", len(challenge))
	}
	if c.TrustDomain == "" || len(publicKey) == 0 {
		return nil, errors.New("no trust domain or key to ask for is set")
	}
	key := sha256.Sum256(publicKey)
	sum := sha256.Sum256(slices.Concat([]byte("credence join azure 1\x00"), []byte(c.TrustDomain), []byte{0}, challenge, key[:]))
	document, err := c.document(ctx, hex.EncodeToString(sum[:16]))
	if err != nil {
		return nil, fmt.Errorf("asking instance metadata for an attested document: %w", err)
	}
	return document, nil
}

func (c Config) token(ctx context.Context) (string, error) {
	query := url.Values{"api-version": {"2018-02-01"}, "resource": {c.Audience}}
	if c.ClientID != "" {
		query.Set("client_id", c.ClientID)
	}
	var answer struct {
		Token string `json:"access_token"`
	}
	if err := c.ask(ctx, "/metadata/identity/oauth2/token", query, &answer); err != nil {
		return "", err
	}
	if answer.Token == "" {
		return "", errors.New("there is none in its answer")
	}
	return answer.Token, nil
}

// document asks until one has the nonce.
func (c Config) document(ctx context.Context, nonce string) ([]byte, error) {
	for n := range tries {
		if n > 0 {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(pause):
			}
		}
		var answer struct {
			Encoding  string `json:"encoding"`
			Signature string `json:"signature"`
		}
		if err := c.ask(ctx, "/metadata/attested/document", url.Values{"api-version": {"2021-02-01"}, "nonce": {nonce}}, &answer); err != nil {
			return nil, err
		}
		der, err := base64.StdEncoding.DecodeString(answer.Signature)
		if err != nil || len(der) == 0 || answer.Encoding != "pkcs7" {
			return nil, errors.New("its answer is no PKCS #7 message")
		}
		if bytes.Contains(der, []byte(nonce)) {
			return der, nil
		}
	}
	return nil, fmt.Errorf("it gave %d times one that it made before", tries)
}

func (c Config) ask(ctx context.Context, path string, query url.Values, into any) error {
	if c.Endpoint == "" {
		c.Endpoint = defaultEndpoint
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(c.Endpoint, "/")+path+"?"+query.Encode(), http.NoBody)
	if err != nil {
		return err
	}
	request.Header.Set("Metadata", "true")
	client := &http.Client{
		Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}, // at no proxy's hands
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	answer, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("%w (is this a machine of Azure's?)", err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer+1))
	switch {
	case err != nil:
		return err
	case len(text) > maxAnswer:
		return fmt.Errorf("it answers more than %d bytes", maxAnswer)
	case answer.StatusCode != http.StatusOK:
		return refused(answer.StatusCode, text)
	}
	if err := json.Unmarshal(text, into); err != nil {
		return errors.New("its answer is not in JSON")
	}
	return nil
}

// refused says what to do about an answer that is none.
func refused(status int, text []byte) error {
	var said struct {
		Code string `json:"error"`
		Text string `json:"error_description"`
	}
	_ = json.Unmarshal(text, &said) // what isn't JSON says nothing
	advice := "try again"
	switch {
	case said.Code == "invalid_resource":
		advice = "has the tenant an app registration with join.audience as its App ID URI?"
	case status == http.StatusBadRequest, status == http.StatusNotFound:
		advice = "has the machine a managed identity (az vm identity assign), and join.client_id if it has several?"
	}
	return fmt.Errorf("it answers with status %d, %.40q, %.200q: %s", status, said.Code, said.Text, advice)
}
