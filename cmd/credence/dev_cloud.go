package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
	sandboxaws "github.com/credence-id/credence/exchangers/sandbox/aws"
	sandboxazure "github.com/credence-id/credence/exchangers/sandbox/azure"
	sandboxgcp "github.com/credence-id/credence/exchangers/sandbox/gcp"
)

// What a cloud admin would have made for the demo.
const (
	awsAccount     = "123456789012"
	awsRegion      = "us-east-1"
	awsAnchor      = "arn:aws:rolesanywhere:us-east-1:123456789012:trust-anchor/4f8e1c1e-6d0b-4b41-9d2c-5a3f0c6b7e21"
	awsProfile     = "arn:aws:rolesanywhere:us-east-1:123456789012:profile/9b7d2f60-1a5c-4c0e-8f3e-2d4b6a8c0e13"
	awsRole        = "arn:aws:iam::123456789012:role/demo-anywhere"
	awsWebRole     = "arn:aws:iam::123456789012:role/demo-web-identity"
	awsWebAudience = "sts.amazonaws.com"

	gcpProject  = "424242424242"
	gcpPool     = "demo-pool"
	gcpProvider = "credence"
	gcpAccount  = "demo@credence-sandbox.iam.gserviceaccount.com"
	gcpScope    = "https://www.googleapis.com/auth/cloud-platform"

	azureTenant = "6f1d1e0a-7c2b-4d6e-9a3f-0b1c2d3e4f50"
	azureClient = "b3a9c7d5-1e2f-4a6b-8c9d-0e1f2a3b4c5d"
	azureObject = "0d9e8f7a-6b5c-4d3e-9f1a-2b3c4d5e6f70"
	azureScope  = "https://management.azure.com/.default"
)

var targetNames = []string{"aws-roles-anywhere", "aws-web-identity", "gcp", "azure"}

// devCloud is the sandbox: the clouds' services, each with a listener of its
// own at its root, set up as a cloud admin would for the demo workload.
type devCloud struct {
	caFile  string
	servers []*http.Server

	RolesAnywhere, STS, GCPSTS, IAMCredentials, GCPWhoami, AzureLogin, AzureWhoami string // URLs
}

// lenient names what the sandbox lets through that the clouds would not.
func (c *devCloud) lenient() string {
	return "lenient_loopback_issuer: an issuer on loopback may have a port"
}

func openDevCloud(d *dev, ports *portList) (*devCloud, error) {
	c := &devCloud{caFile: d.web.file}
	issuer := d.own.broker.file.Issuer
	subject := "spiffe://" + devDomain + devWorkload
	aws, err := devAWS(d, issuer, subject)
	if err != nil {
		return nil, fmt.Errorf("sandbox aws: %w", err)
	}
	issuers := sandbox.IssuersConfig{Roots: d.web.roots, LenientLoopbackIssuer: true}
	gcp, err := devGCP(issuers, issuer, subject)
	if err != nil {
		return nil, fmt.Errorf("sandbox gcp: %w", err)
	}
	azure, err := sandboxazure.New(sandboxazure.Config{
		Issuers: issuers, Resources: []string{"https://management.azure.com"},
		Tenants: []sandboxazure.Tenant{{ID: azureTenant, Domain: "sandbox.example", Apps: []sandboxazure.App{{
			Kind: sandboxazure.Application, ClientID: azureClient, ObjectID: azureObject,
			Credentials: []sandboxazure.Credential{{Name: "credence-demo", Issuer: issuer, Subject: subject, Audience: sandboxazure.Audience}},
		}}}},
	})
	if err != nil {
		return nil, fmt.Errorf("sandbox azure: %w", err)
	}
	for _, s := range []struct {
		url     *string
		handler http.Handler
	}{
		{&c.RolesAnywhere, aws.RolesAnywhere()}, {&c.STS, aws.STS()},
		{&c.GCPSTS, gcp.STS()}, {&c.IAMCredentials, gcp.IAMCredentials()}, {&c.GCPWhoami, gcp.Whoami()},
		{&c.AzureLogin, azure.Login()}, {&c.AzureWhoami, azure.ARM()},
	} {
		l, err := ports.listen()
		if err != nil {
			c.close()
			return nil, err
		}
		*s.url = "https://" + l.Addr().String()
		c.serve(d, l, s.handler)
	}
	return c, nil
}

func (c *devCloud) serve(d *dev, l net.Listener, h http.Handler) {
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second, WriteTimeout: 30 * time.Second,
		MaxHeaderBytes: 64 << 10, ErrorLog: log.New(io.Discard, "", 0),
	}
	c.servers = append(c.servers, server)
	config := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*d.web.leaf}, NextProtos: []string{"h2", "http/1.1"}}
	d.running.Go(func() { _ = server.Serve(tls.NewListener(l, config)) }) // it ends by close
}

func (c *devCloud) close() {
	for _, s := range c.servers {
		_ = s.Close()
	}
}

// devAWS is an account with a trust anchor that holds our root, a profile, and
// two roles that trust the demo workload alone.
func devAWS(d *dev, issuer, subject string) (*sandboxaws.Cloud, error) {
	bundle, err := d.own.broker.authority.GetX509BundleForTrustDomain(d.own.trustDomain())
	if err != nil {
		return nil, err
	}
	provider := issuer[len("https://"):]
	return sandboxaws.New(sandboxaws.Config{
		Account: awsAccount, Region: awsRegion, Roots: d.web.roots, LenientLoopbackIssuer: true,
		TrustAnchors:  []sandboxaws.TrustAnchor{{ARN: awsAnchor, Certificates: bundle.X509Authorities(), Enabled: true}},
		Profiles:      []sandboxaws.Profile{{ARN: awsProfile, RoleARNs: []string{awsRole}, Enabled: true}},
		OIDCProviders: []sandboxaws.OIDCProvider{{URL: issuer, ClientIDs: []string{awsWebAudience}}},
		Roles: []sandboxaws.Role{{ARN: awsRole, TrustPolicy: fmt.Sprintf(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow",
			"Principal":{"Service":"rolesanywhere.amazonaws.com"},"Action":["sts:AssumeRole","sts:TagSession","sts:SetSourceIdentity"],
			"Condition":{"StringEquals":{"aws:PrincipalTag/x509SAN/URI":%q},"ArnEquals":{"aws:SourceArn":%q}}}]}`, subject, awsAnchor)}, {
			ARN: awsWebRole, TrustPolicy: fmt.Sprintf(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow",
			"Principal":{"Federated":"arn:aws:iam::%s:oidc-provider/%s"},"Action":"sts:AssumeRoleWithWebIdentity",
			"Condition":{"StringEquals":{"%s:sub":%q,"%s:aud":%q}}}]}`, awsAccount, provider, provider, subject, provider, awsWebAudience),
		}},
	})
}

// devGCP is a workload identity pool that takes our issuer, and a service
// account that the demo workload may impersonate.
func devGCP(issuers sandbox.IssuersConfig, issuer, subject string) (*sandboxgcp.Cloud, error) {
	pool := sandboxgcp.Pool{Project: gcpProject, ID: gcpPool, Providers: []sandboxgcp.Provider{{
		ID: gcpProvider, Issuer: issuer, AttributeMapping: map[string]string{"google.subject": "assertion.sub"},
	}}}
	return sandboxgcp.New(sandboxgcp.Config{
		Issuers: issuers, Pools: []sandboxgcp.Pool{pool},
		ServiceAccounts: []sandboxgcp.ServiceAccount{{
			Email: gcpAccount, UniqueID: "100000000000000000042",
			Bindings: []sandboxgcp.Binding{{
				Role:    sandboxgcp.WorkloadIdentityUser,
				Members: []string{"principal://iam.googleapis.com/" + pool.Name() + "/subject/" + subject},
			}},
		}},
	})
}

func gcpAudience() string {
	return "//iam.googleapis.com/projects/" + gcpProject + "/locations/global/workloadIdentityPools/" + gcpPool + "/providers/" + gcpProvider
}

// targets are the Target resources that lead to the sandbox.
func (c *devCloud) targets() string {
	return fmt.Sprintf(`kind: Target
name: aws-roles-anywhere
aws_roles_anywhere: {role: "%s", trust_anchor: "%s", profile: "%s"}
endpoint: %s
ca_file: %q
---
kind: Target
name: aws-web-identity
aws_web_identity: {role: "%s", audience: %s, region: %s}
endpoint: %s
ca_file: %q
---
kind: Target
name: gcp
gcp: {audience: "%s", service_account: %s, scopes: ["%s"], impersonation_endpoint: "%s"}
endpoint: %s
ca_file: %q
---
kind: Target
name: azure
azure: {tenant: %s, client_id: %s, scope: "%s"}
endpoint: %s
ca_file: %q
`, awsRole, awsAnchor, awsProfile, c.RolesAnywhere, c.caFile,
		awsWebRole, awsWebAudience, awsRegion, c.STS, c.caFile,
		gcpAudience(), gcpAccount, gcpScope, c.IAMCredentials, c.GCPSTS, c.caFile,
		azureTenant, azureClient, azureScope, c.AzureLogin, c.caFile)
}
