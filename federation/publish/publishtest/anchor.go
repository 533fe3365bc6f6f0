package publishtest

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"testing"
	"time"
)

// AnchorID and AnchorARN are those of the one trust anchor.
const (
	AnchorID  = "4f8e1c1e-6d0b-4b41-9d2c-5a3f0c6b7e21"
	AnchorARN = "arn:aws:rolesanywhere:" + Region + ":123456789012:trust-anchor/" + AnchorID
)

// RolesAnywhere is the service, with one trust anchor.
type RolesAnywhere struct {
	Service
	Type    string // of the anchor's source
	PEM     string
	Updates int
}

// NewRolesAnywhere starts a service that ends with the test.
func NewRolesAnywhere(t testing.TB) *RolesAnywhere {
	s := &RolesAnywhere{Type: "CERTIFICATE_BUNDLE"}
	s.serve = s.answer
	s.start(t)
	return s
}

type anchorSource struct {
	SourceType string `json:"sourceType"`
	SourceData struct {
		X509CertificateData string `json:"x509CertificateData,omitempty"`
	} `json:"sourceData"`
}

func (s *RolesAnywhere) answer(w http.ResponseWriter, r *http.Request, body []byte) string {
	refuse := func(status int, kind, why string) string {
		w.Header().Set("X-Amzn-Errortype", kind)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]string{"message": why})
		return why
	}
	if err := checkSigV4(r, body, "rolesanywhere"); err != nil {
		return refuse(http.StatusForbidden, "AccessDeniedException", err.Error())
	}
	if r.URL.Path != "/trustanchor/"+AnchorID {
		return refuse(http.StatusNotFound, "ResourceNotFoundException", "no trust anchor at "+r.URL.Path)
	}
	switch r.Method {
	case http.MethodGet:
	case http.MethodPatch:
		var update struct {
			Name   *string       `json:"name"`
			Source *anchorSource `json:"source"`
		}
		d := json.NewDecoder(bytes.NewReader(body))
		d.DisallowUnknownFields()
		if err := d.Decode(&update); err != nil || update.Source == nil || update.Source.SourceType != "CERTIFICATE_BUNDLE" {
			return refuse(http.StatusBadRequest, "ValidationException", "source")
		}
		if why := checkAnchor(update.Source.SourceData.X509CertificateData); why != "" {
			return refuse(http.StatusBadRequest, "ValidationException", why)
		}
		s.PEM, s.Updates = update.Source.SourceData.X509CertificateData, s.Updates+1
	default:
		return refuse(http.StatusMethodNotAllowed, "ValidationException", r.Method)
	}
	var source anchorSource
	source.SourceType, source.SourceData.X509CertificateData = s.Type, s.PEM
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"trustAnchor": map[string]any{
		"trustAnchorId": AnchorID, "trustAnchorArn": AnchorARN, "name": "credence", "enabled": true, "source": source,
		"createdAt": time.Now().UTC().Format(time.RFC3339), "updatedAt": time.Now().UTC().Format(time.RFC3339),
	}})
	return ""
}

// checkAnchor is what AWS documents of trust anchors: at most two CA
// certificates that may sign certificates.
func checkAnchor(text string) string {
	n := 0
	for rest := []byte(text); ; n++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if len(bytes.TrimSpace(rest)) > 0 {
				return "text besides certificates"
			}
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil || !c.IsCA || c.KeyUsage&x509.KeyUsageCertSign == 0 {
			return "Incorrect basic constraints for CA certificate"
		}
	}
	if n == 0 || n > 2 {
		return "a trust anchor has one or two certificates"
	}
	return ""
}
