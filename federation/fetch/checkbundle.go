package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/credence-id/credence/federation"
)

// fetch gets the document as a poll would, and says why it came to nothing.
func (k *check) fetch(ctx context.Context) bool {
	ctx, cancel := k.step(ctx)
	defer cancel()
	var err error
	k.response, err = k.c.fetch(ctx, k.req.Request, &k.server)
	if err == nil {
		if k.req.HTTPSSPIFFE != nil && !k.has(federation.StepCertificate) { // by its bundle
			k.ok(federation.StepCertificate, "an X509-SVID until %s", moment(k.shown[0].NotAfter))
			k.ok(federation.StepID, "%s", k.id)
		}
		return true
	}
	var status statusError
	if errors.As(err, &status) {
		return k.badStatus(int(status))
	}
	return k.unfetched(err)
}

func (k *check) has(step string) bool {
	for _, f := range k.findings {
		if f.Step == step {
			return true
		}
	}
	return false
}

func (k *check) badStatus(status int) bool {
	problem := fmt.Sprintf("the endpoint answers with status %d", status)
	switch {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return k.fail(federation.StepBundle, problem, "have the endpoint ask for no authentication: a bundle endpoint answers everybody")
	case status == http.StatusNotFound || status == http.StatusGone:
		return k.fail(federation.StepBundle, problem, "correct the path in url (Credence serves its bundle at /bundle)")
	case status >= 500:
		return k.fail(federation.StepBundle, problem, "look into the endpoint's log: it fails")
	}
	return k.fail(federation.StepBundle, problem, "have the endpoint answer a GET with status 200")
}

func (k *check) unfetched(err error) bool {
	redirect, address, fingerprint := new(redirectError), new(addressError), new(fingerprintError)
	switch {
	case errors.As(err, &fingerprint):
		return k.fail(federation.StepCertificate, "the peer's fingerprint is "+fingerprint.got+", and the Peer says "+fingerprint.want,
			"compare the fingerprint with the peer's credence bundle show, and apply the Peer with the right one")
	case errors.As(err, &redirect):
		return k.fail(federation.StepBundle, "the endpoint redirects: "+plain(redirect.error),
			"set url to where the bundle is, or have the peer redirect to an https url, and at most three times")
	case errors.As(err, &address):
		return k.fail(federation.StepBundle, "the endpoint redirects to address "+address.addr.String()+", which is not dialled",
			"have the peer redirect to a public address")
	case errors.Is(err, errTooLarge):
		return k.fail(federation.StepBundle, errTooLarge.Error(), "correct url: no bundle is as large")
	case errors.Is(err, errNotJSON):
		return k.fail(federation.StepBundle, "the endpoint answers with no JSON", "correct url: a page is there, and no bundle")
	case errors.Is(err, errEncoding):
		return k.fail(federation.StepBundle, "the answer is encoded otherwise than by gzip", "have the endpoint heed Accept-Encoding")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return k.fail(federation.StepBundle, "the answer breaks off", "look at what stands before the endpoint: it cuts answers short")
	case isTimeout(err):
		return k.fail(federation.StepBundle, fmt.Sprintf("the answer takes longer than %s", k.c.timeout), "make the endpoint faster: it is given five seconds")
	case k.asked:
		return k.wantsClients()
	}
	return k.fail(federation.StepBundle, plain(err), "look into the endpoint's log: it does not answer as it should")
}

func (k *check) bundle(context.Context) bool {
	b, err := federation.ParseBundle(k.req.TrustDomain, k.response.Document)
	if err != nil {
		return k.fail(federation.StepBundle, plain(err), "correct url, or have the peer publish a SPIFFE bundle there")
	}
	k.found = b
	var reasons []string
	for _, ignored := range b.Ignored {
		reasons = append(reasons, ignored.Reason)
	}
	all := strings.Join(reasons, "; ")
	switch {
	case strings.Contains(all, "private or symmetric"):
		return k.fail(federation.StepBundle, "the bundle publishes a private key", "have the peer replace that key now: it has given it away")
	case b.Empty() && strings.Contains(all, `unknown use "sig"`):
		return k.fail(federation.StepBundle, "these are the keys of an OIDC issuer, not a SPIFFE bundle", "set url to the peer's SPIFFE bundle")
	case b.Empty() && len(reasons) > 0:
		return k.fail(federation.StepBundle, "no entry of the bundle can be used: "+all[:min(len(all), 300)],
			"have the peer publish keys with use x509-svid or jwt-svid")
	case b.Empty():
		return k.fail(federation.StepBundle, "the bundle is empty: the trust domain is closed", "ask the peer whether it closed its trust domain")
	}
	return k.serves() && k.keeps()
}

// serves says whether the bundle proves the endpoint that gave it: the next poll
// goes by it.
func (k *check) serves() bool {
	if k.req.HTTPSSPIFFE == nil || k.req.HTTPSSPIFFE.EndpointID.TrustDomain() != k.req.TrustDomain {
		return true
	}
	if _, err := k.c.verifyEndpoint(k.shown, k.req.HTTPSSPIFFE.EndpointID, k.found.X509Bundle()); err != nil {
		return k.fail(federation.StepBundle, "the bundle lacks the key that the endpoint's own certificate leads to: the next poll will fail",
			"have the peer publish all keys that it uses")
	}
	return true
}

// keeps says whether a change of every key will be held.
func (k *check) keeps() bool {
	print := federation.BundleFingerprint(k.found.Bundle)
	last := k.req.Last
	if last != nil && k.req.HTTPSWeb != nil && !last.SharesKey(k.found) {
		return k.fail(federation.StepBundle, "every key changed, to the fingerprint "+print,
			"compare it with the peer's credence bundle show, then: credence peer accept "+k.req.TrustDomain.Name())
	}
	return k.ok(federation.StepBundle, "%d X.509 and %d JWT keys, %s", len(k.found.X509Authorities()), len(k.found.JWTAuthorities()), print)
}

func (k *check) sequence(context.Context) bool {
	now, has := k.found.SequenceNumber()
	if k.req.Last != nil {
		before, had := k.req.Last.SequenceNumber()
		switch {
		case had && has && now < before:
			return k.fail(federation.StepSequence, fmt.Sprintf("the sequence went back from %d to %d", before, now),
				"clear what caches the endpoint, or, if the peer began anew, remove the Peer and add it again")
		case had && has && now == before && !k.req.Last.Equal(k.found.Bundle):
			return k.fail(federation.StepSequence, fmt.Sprintf("the bundle changed, and its sequence is still %d", now),
				"have the peer raise spiffe_sequence with each change")
		}
	}
	hint := "no refresh hint"
	if d, ok := k.found.RefreshHint(); ok {
		hint = "refresh hint " + d.String()
	}
	if !has {
		return k.ok(federation.StepSequence, "none; %s", hint)
	}
	return k.ok(federation.StepSequence, "%d; %s", now, hint)
}
