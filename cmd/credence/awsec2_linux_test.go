package main_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

// An instance joins by its identity document, comes back by its key, and a copy of
// the document with another key does not.
func TestEC2InstanceJoins(t *testing.T) {
	key := issuertest.RSA()
	template := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{Organization: []string{"Amazon Web Services LLC"}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0)}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	document := identityDocument(t, key, certificate, fmt.Sprintf(`{"accountId": "123456789012", "architecture": "arm64", "availabilityZone": "eu-west-1b",
		"imageId": "ami-0abcdef0123456789", "instanceId": "i-0abcdef0123456789", "instanceType": "t4g.micro", "pendingTime": %q, "privateIp": "10.0.0.7",
		"region": "eu-west-1", "version": "2017-09-30"}`, time.Now().UTC().Format(time.RFC3339)))
	metadata := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method + " " + r.URL.Path + " " + r.Header.Get("X-aws-ec2-metadata-token") {
		case "PUT /latest/api/token ":
			fmt.Fprint(w, "session")
		case "GET /latest/dynamic/instance-identity/rsa2048 session":
			fmt.Fprint(w, document)
		default:
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	t.Cleanup(metadata.Close)
	s := newSide(t, "example.org")
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}))
	s.credence(fmt.Sprintf("kind: JoinRule\nname: ec2\naws_ec2:\n  max_age: 1h\n  certificates:\n    eu-west-1: |\n      %s\nallow: [{node.aws_ec2.account: \"123456789012\"}]\n",
		strings.ReplaceAll(ca, "\n", "\n      ")), "apply", "-f", "-")
	pin, err := s.broker.await(`pin (sha256:[0-9a-f]{64})`, 0)
	if err != nil {
		t.Fatal(err)
	}
	instance := func(name string) *exec.Cmd {
		config := s.write(name+".yaml", fmt.Sprintf("trust_domain: example.org\ndata: %s\nbroker: [\"127.0.0.1:%s\"]\ntrust: {ca_pin: [%q]}\njoin: {method: aws_ec2}\n",
			s.path(name), s.ports[0], pin[1]))
		cmd := exec.Command("credence", "agent", "run", "-c", config)
		cmd.Env = append(os.Environ(), "AWS_EC2_METADATA_SERVICE_ENDPOINT="+metadata.URL)
		return cmd
	}
	joined := func(p *process) *process {
		t.Helper()
		if _, err := p.await("msg=joined", 0); err != nil {
			t.Fatal(err)
		}
		return p
	}
	joined(startCmd(t, instance("one"))).kill()
	copied := startCmd(t, instance("copy"))
	if _, err := copied.await("(?i)refus|denied", 0); err != nil {
		t.Errorf("a copy of the document: %v", err)
	}
	copied.kill()
	if err := os.RemoveAll(s.path("one", "node")); err != nil { // all but the key that it joined by
		t.Fatal(err)
	}
	joined(startCmd(t, instance("one")))
	var nodes []struct {
		Name  string              `json:"name"`
		Facts map[string][]string `json:"facts"`
	}
	if err := json.Unmarshal([]byte(s.credence("", "node", "list", "-o", "json")), &nodes); err != nil {
		t.Fatal(err)
	}
	if len(nodes) != 1 || nodes[0].Name != "i-0abcdef0123456789" || nodes[0].Facts["node.aws_ec2.region"][0] != "eu-west-1" {
		t.Errorf("nodes %+v", nodes)
	}
}

// identityDocument is a document as instance metadata shows it: PKCS #7, with the
// content in it, in base64, and in its bag what is given.
func identityDocument(t *testing.T, key *rsa.PrivateKey, certificate []byte, content string, bag ...byte) string {
	t.Helper()
	parsed, err := x509.ParseCertificate(certificate)
	if err != nil {
		t.Fatal(err)
	}
	type signerInfo struct {
		Version      int
		SID          struct{ Issuer, Serial asn1.RawValue }
		Digest, With pkix.AlgorithmIdentifier
		Signature    []byte
	}
	type encapsulated struct {
		Kind    asn1.ObjectIdentifier
		Content []byte `asn1:"explicit,tag:0"`
	}
	type signedData struct {
		Version int
		Digests []pkix.AlgorithmIdentifier `asn1:"set"`
		Content encapsulated
		Bag     asn1.RawValue `asn1:"optional,tag:0"`
		Signers []signerInfo  `asn1:"set"`
	}
	pkcs7 := func(last int) asn1.ObjectIdentifier { return asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, last} }
	sha := pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}}
	info := signerInfo{Version: 1, Digest: sha, With: pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}, Parameters: asn1.NullRawValue}}
	info.SID.Issuer.FullBytes = parsed.RawIssuer
	info.SID.Serial.FullBytes, _ = asn1.Marshal(parsed.SerialNumber)
	sum := sha256.Sum256([]byte(content))
	if info.Signature, err = rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:]); err != nil {
		t.Fatal(err)
	}
	var carried asn1.RawValue
	if len(bag) > 0 {
		carried = asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: bag}
	}
	der, err := asn1.Marshal(struct {
		Kind asn1.ObjectIdentifier
		Data signedData `asn1:"explicit,tag:0"`
	}{pkcs7(2), signedData{1, []pkix.AlgorithmIdentifier{sha}, encapsulated{pkcs7(1), []byte(content)}, carried, []signerInfo{info}}})
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(der)
}
