package aws

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/credence-id/credence/exchangers/sandbox"
)

const (
	stsNamespace   = "https://sts.amazonaws.com/doc/2011-06-15/"
	faultNamespace = "http://webservices.amazon.com/AWSFault/2005-15-09"
	formType       = "application/x-www-form-urlencoded"
)

// STS is the endpoint of STS: AssumeRoleWithWebIdentity, unsigned, and AssumeRole
// and GetCallerIdentity, signed with what either service issued. Both take POST with
// a form, and GET with the same query. GetCallerIdentity answers in JSON whom that
// is all that is accepted.
func (c *Cloud) STS() http.Handler {
	return c.STSFaults.Wrap(sandbox.Serve("sts", c.cfg.Now, c.cfg.Log, func(w http.ResponseWriter, r *http.Request, e *sandbox.Entry) {
		w.Header().Set("X-Amzn-Requestid", e.ID)
		out, err := c.serveSTS(r, e)
		if err != nil {
			writeSTSError(w, asRefusal(err), e)
			return
		}
		if caller, ok := out.(callerResponse); ok && r.Header.Get("Accept") == "application/json" {
			writeJSON(w, http.StatusOK, caller)
			return
		}
		writeXML(w, http.StatusOK, out)
	}))
}

// stsFault writes a bare error status as STS would. Throttling is a 400 there.
func stsFault(w http.ResponseWriter, status int) {
	err := refuse(status, "InternalFailure", "%s", http.StatusText(status))
	switch status {
	case http.StatusTooManyRequests:
		err = refuse(http.StatusBadRequest, "Throttling", "Rate exceeded")
	case http.StatusServiceUnavailable:
		err.code = "ServiceUnavailable"
	}
	writeSTSError(w, err, &sandbox.Entry{ID: sandbox.NewID()})
}

func (c *Cloud) serveSTS(r *http.Request, e *sandbox.Entry) (any, error) {
	if r.URL.EscapedPath() != "/" {
		return nil, refuse(http.StatusNotFound, "InvalidAction", "no such path")
	}
	form, body, err := readSTSForm(r)
	if err != nil {
		return nil, err
	}
	action := form["Action"]
	if action == "" {
		return nil, refuse(http.StatusBadRequest, "MissingAction", "The request must contain the parameter Action")
	}
	switch form["Version"] {
	case "2011-06-15":
	case "":
		return nil, refuse(http.StatusBadRequest, "InvalidAction", "Could not find operation %s for version NO_VERSION_SPECIFIED", action)
	default:
		return nil, refuse(http.StatusBadRequest, "NoSuchVersion", "The requested version (%s) is not valid", form["Version"])
	}
	e.Fields = map[string]string{"Action": action}
	switch action {
	case "AssumeRoleWithWebIdentity":
		return c.assumeRoleWithWebIdentity(r.Context(), form, e)
	case "AssumeRole":
		return c.assumeRole(r, form, body, e)
	case "GetCallerIdentity":
		return c.getCallerIdentity(r, form, body, e)
	}
	return nil, refuse(http.StatusBadRequest, "InvalidAction", "Could not find operation %s for version 2011-06-15", action)
}

// readSTSForm reads the parameters, and the body for the signature.
func readSTSForm(r *http.Request) (map[string]string, []byte, error) {
	var body []byte
	parameters := []byte(r.URL.RawQuery)
	switch r.Method {
	case http.MethodGet:
		if n, _ := io.ReadFull(r.Body, make([]byte, 1)); n > 0 {
			return nil, nil, validation("GET takes no body")
		}
	case http.MethodPost:
		if r.URL.RawQuery != "" || r.URL.ForceQuery {
			return nil, nil, validation("POST takes no query")
		}
		var err error
		if body, err = sandbox.ReadBody(r, formType); err != nil {
			return nil, nil, validation("%v", err)
		}
		parameters = body
	default:
		return nil, nil, refuse(http.StatusMethodNotAllowed, "InvalidAction", "method is not allowed")
	}
	form, err := sandbox.ReadForm(&http.Request{
		Header: http.Header{"Content-Type": {formType}}, Body: io.NopCloser(bytes.NewReader(parameters))})
	if err != nil {
		return nil, nil, formError(err)
	}
	return form, body, nil
}

// formError names the field that is empty or stands twice, never its value.
func formError(err error) *refusal {
	var f *sandbox.FieldError
	if errors.As(err, &f) && f.Field == "" {
		return refuse(http.StatusBadRequest, "MissingAction", "The request must contain the parameter Action")
	}
	if errors.As(err, &f) {
		return validation("%v", f)
	}
	return validation("the form does not parse").because("%v", err)
}

func validation(format string, args ...any) *refusal {
	return refuse(http.StatusBadRequest, "ValidationError", format, args...)
}

// constraint is a refusal in the words of the service model. Tokens and policies
// are passed without their value.
func constraint(value, field, rule string) *refusal {
	return validation("1 validation error detected: Value %s at '%s' failed to satisfy constraint: %s", value, field, rule)
}

type xmlError struct {
	XMLName   xml.Name `xml:"ErrorResponse"`
	Namespace string   `xml:"xmlns,attr"`
	Type      string   `xml:"Error>Type"`
	Code      string   `xml:"Error>Code"`
	Message   string   `xml:"Error>Message"`
	RequestID string   `xml:"RequestId"`
}

func writeSTSError(w http.ResponseWriter, err *refusal, e *sandbox.Entry) {
	e.Code, e.Reason = err.code, err.reason
	if e.Reason == "" {
		e.Reason = err.message
	}
	out := xmlError{Namespace: stsNamespace, Type: "Sender", Code: err.code, Message: err.message, RequestID: e.ID}
	if err.code == "InvalidAction" || err.code == "NoSuchVersion" {
		out.Namespace = faultNamespace
	}
	if err.status >= http.StatusInternalServerError {
		out.Type = "Receiver"
	}
	if err.status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", "GET, POST")
	}
	if w.Header().Get("X-Amzn-Requestid") == "" {
		w.Header().Set("X-Amzn-Requestid", e.ID)
	}
	writeXML(w, err.status, out)
}

func writeXML(w http.ResponseWriter, status int, v any) {
	b, err := xml.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("encoding %T: %v", v, err)) // our own types always encode
	}
	w.Header().Set("Content-Type", "text/xml")
	w.WriteHeader(status)
	io.WriteString(w, strings.TrimSpace(string(b))+"\n")
}
