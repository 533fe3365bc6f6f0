package azurekv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
)

// maxAnswer bounds what the vault may answer: a key takes a few KiB.
const maxAnswer = 1 << 20

// A call is one request, repeated until its context ends. It remembers why it
// was repeated last: the SDK only tells that time was up.
type call struct {
	act, permission string
	last            error
}

// do makes a call. It returns when ctx ends also while the SDK waits for
// another caller's token, which it does without a context.
func do[T any](ctx context.Context, c *call, request func(context.Context) (T, error)) (T, error) {
	type answer struct {
		value T
		last  error
		err   error
	}
	done := make(chan answer, 1)
	go func() {
		var a answer
		a.value, a.err = request(policy.WithRetryOptions(ctx, policy.RetryOptions{
			MaxRetries: 1000, // the context decides
			RetryDelay: 50 * time.Millisecond, MaxRetryDelay: time.Minute,
			ShouldRetry: func(resp *http.Response, err error) bool { return again(resp, err, &a.last) },
		}))
		done <- a
	}()
	select {
	case a := <-done:
		c.last = a.last
		return a.value, c.failure(ctx, a.err)
	case <-ctx.Done():
		var none T
		select {
		case a := <-done: // it ended too, and may know why
			c.last = a.last
		case <-time.After(50 * time.Millisecond):
		}
		return none, c.failure(ctx, ctx.Err())
	}
}

// again says whether a request is repeated, and remembers why.
func again(resp *http.Response, err error, last *error) bool {
	if err != nil {
		*last = err
		return true
	}
	retried := []int{http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout}
	if !slices.Contains(retried, resp.StatusCode) {
		return false
	}
	*last = fmt.Errorf("%s", resp.Status)
	return true
}

// A refusal is the vault's answer, on one line.
type refusal struct {
	status               int
	code, inner, message string
}

func (r *refusal) Error() string {
	text := fmt.Sprintf("the vault answered %d %s", r.status, r.code)
	if r.inner != "" {
		text += " (" + r.inner + ")"
	}
	if r.message != "" {
		text += ": " + r.message
	}
	return text
}

func refusalOf(e *azcore.ResponseError) *refusal {
	r := &refusal{status: e.StatusCode, code: oneLine(e.ErrorCode)}
	if e.RawResponse == nil || e.RawResponse.Body == nil {
		return r
	}
	text, err := io.ReadAll(io.LimitReader(e.RawResponse.Body, 64<<10)) // the SDK has kept it
	if err != nil {
		return r
	}
	var body struct {
		Error struct {
			Code, Message string
			Innererror    struct{ Code string }
		}
	}
	if json.Unmarshal(text, &body) == nil {
		r.code, r.inner, r.message = oneLine(body.Error.Code), oneLine(body.Error.Innererror.Code), oneLine(body.Error.Message)
	}
	return r
}

// oneLine is a foreign text on one line, cut where it gets long.
func oneLine(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
	return fmt.Sprintf("%.600s", strings.Join(strings.Fields(text), " "))
}

// failure says what went wrong, and the way out.
func (c *call) failure(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ended := ctx.Err(); ended != nil {
		if c.last != nil {
			return fmt.Errorf("%s: %w; the last answer: %s", c.act, ended, oneLine(c.last.Error()))
		}
		return fmt.Errorf("%s: %w", c.act, ended)
	}
	var token *tokenError
	if errors.As(err, &token) {
		return fmt.Errorf("%s: getting a token with our Azure credentials: renew them, or name others by the AZURE_* variables: %s", c.act, oneLine(token.err.Error()))
	}
	var answer *azcore.ResponseError
	if !errors.As(err, &answer) {
		return fmt.Errorf("%s: %s", c.act, oneLine(err.Error()))
	}
	r := refusalOf(answer)
	if r.status == http.StatusNotFound {
		return fmt.Errorf("%s: %w: if it was deleted, az keyvault key recover brings it back: %w", c.act, os.ErrNotExist, r)
	}
	if hint := c.hint(r); hint != "" {
		return fmt.Errorf("%s: %s: %w", c.act, hint, r)
	}
	return fmt.Errorf("%s: %w", c.act, r)
}

func (c *call) hint(r *refusal) string {
	switch {
	case r.status == http.StatusUnauthorized:
		return "our Azure token is not accepted: check the tenant and the clock"
	case r.status == http.StatusTooManyRequests:
		return "the vault has more requests than it takes: share it with fewer"
	case r.status != http.StatusForbidden:
		return ""
	case r.inner == "KeyDisabled":
		return "the key is disabled: az keyvault key set-attributes --enabled true enables it"
	case r.inner == "ForbiddenByFirewall" || r.inner == "ForbiddenByConnection":
		return "the vault's network rules keep us out: let the broker's address or private endpoint in"
	}
	return "we lack " + c.permission + ": grant it to the broker's identity on the vault, by the role Key Vault Crypto Officer or an access policy"
}
