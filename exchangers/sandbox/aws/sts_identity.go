package aws

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"net/http"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
)

const algorithmHMAC = "AWS4-HMAC-SHA256"

// getCallerIdentity answers whose credentials signed the request. They need no
// permission for that, and no policy can take it away.
func (c *Cloud) getCallerIdentity(r *http.Request, form map[string]string, body []byte, e *sandbox.Entry) (any, error) {
	if len(form) != 2 {
		return nil, validation("GetCallerIdentity takes no parameters")
	}
	s, err := c.authenticateHMAC(r, body, c.cfg.Now())
	if err != nil {
		return nil, err
	}
	e.Fields["Arn"] = s.ARN
	return callerResponse{Namespace: stsNamespace, Arn: s.ARN, UserID: s.UserID, Account: c.cfg.Account, RequestID: e.ID}, nil
}

type callerResponse struct {
	XMLName   xml.Name `xml:"GetCallerIdentityResponse"`
	Namespace string   `xml:"xmlns,attr"`
	Arn       string   `xml:"GetCallerIdentityResult>Arn"`
	UserID    string   `xml:"GetCallerIdentityResult>UserId"`
	Account   string   `xml:"GetCallerIdentityResult>Account"`
	RequestID string   `xml:"ResponseMetadata>RequestId"`
}

// MarshalJSON writes it as the service does for who accepts application/json.
func (r callerResponse) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]any{"GetCallerIdentityResponse": map[string]any{
		"GetCallerIdentityResult": map[string]string{"Arn": r.Arn, "UserId": r.UserID, "Account": r.Account},
		"ResponseMetadata":        map[string]string{"RequestId": r.RequestID},
	}})
}

// authenticateHMAC verifies a request signed with SigV4 in its headers, and
// returns the session whose credentials signed it.
func (c *Cloud) authenticateHMAC(r *http.Request, body []byte, now time.Time) (session, error) {
	if len(r.Header.Values("Authorization")) == 0 {
		return session{}, refuse(http.StatusForbidden, "MissingAuthenticationToken", "Request is missing Authentication Token")
	}
	auth, err := parseAuthorization(r.Header)
	date, dateErr := single(r.Header, "X-Amz-Date")
	if err = errors.Join(err, dateErr); err != nil || auth.algorithm != algorithmHMAC {
		return session{}, refuse(http.StatusBadRequest, "IncompleteSignature", "The request signature does not conform to AWS standards").because("%v, algorithm %q", err, auth.algorithm)
	}
	if err := errors.Join(
		auth.checkScope(date, c.cfg.Region, "sts", now, c.cfg.Skew),
		auth.checkSignedHeaders(r.Header, "x-amz-security-token"),
	); err != nil {
		return session{}, hmacError(err)
	}
	s, err := c.findSession(r, auth.key)
	if err != nil {
		return session{}, err
	}
	toSign, err := auth.stringToSign(r, "/", date, body)
	if err == nil {
		err = verifyHMAC(s.secret, auth, toSign)
	}
	if err != nil {
		return session{}, hmacError(err)
	}
	if !now.Before(s.Expires) {
		return session{}, refuse(http.StatusForbidden, "ExpiredToken", "The security token included in the request is expired")
	}
	return s, nil
}

// findSession finds the session of a key whose token the request carries.
func (c *Cloud) findSession(r *http.Request, key string) (session, error) {
	bad := refuse(http.StatusForbidden, "InvalidClientTokenId", "The security token included in the request is invalid.")
	token, err := single(r.Header, "X-Amz-Security-Token")
	if err != nil {
		return session{}, bad.because("%v", err)
	}
	s, ok := get(c, c.sessions, key)
	if !ok || subtle.ConstantTimeCompare([]byte(s.token), []byte(token)) != 1 {
		return session{}, bad.because("unknown access key, or a session token of another one")
	}
	return s, nil
}

func hmacError(err error) *refusal {
	if errors.Is(err, errDate) {
		return refuse(http.StatusForbidden, "SignatureDoesNotMatch", "Signature expired or not yet current").because("%v", err)
	}
	return refuse(http.StatusForbidden, "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method.").because("%v", err)
}

// verifyHMAC derives the signing key of the scope and compares the signatures.
func verifyHMAC(secret string, auth authorization, toSign string) error {
	key := []byte("AWS4" + secret)
	for _, part := range []string{auth.date, auth.region, auth.service, auth.terminator} {
		key = hmacSHA256(key, part)
	}
	want := hex.EncodeToString(hmacSHA256(key, toSign))
	if !hmac.Equal([]byte(want), []byte(auth.signature)) {
		return errSignature
	}
	return nil
}

func hmacSHA256(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}
