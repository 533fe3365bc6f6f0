package main

import (
	"context"
	"fmt"
	"net"
	"strings"

	"github.com/credence-id/credence/exchangers/sandbox/clouds"
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

// devCloud is the sandbox, set up as a cloud admin would for the demo workload.
type devCloud struct {
	*clouds.Clouds
	caFile string
	socket string // of the switchboard

	RolesAnywhere, STS, GCPSTS, IAMCredentials, GCPWhoami, AzureLogin, AzureWhoami string // URLs
}

// lenient names what the sandbox lets through that the clouds would not.
func (c *devCloud) lenient() string {
	return "lenient_loopback_issuer: an issuer on loopback may have a port"
}

func openDevCloud(ctx context.Context, d *dev, ports *portList) (*devCloud, error) {
	bundle, err := d.own.broker.authority.GetX509BundleForTrustDomain(d.own.trustDomain())
	if err != nil {
		return nil, err
	}
	roots, err := bundle.Marshal()
	if err != nil {
		return nil, err
	}
	config := devClouds(d.web.file, d.own.broker.file.Issuer, "spiffe://"+devDomain+devWorkload, string(roots))
	if err := config.Check(); err != nil {
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	c := &devCloud{caFile: d.web.file, socket: d.own.socket("sandbox")}
	if c.Clouds, err = clouds.New(config, nil); err != nil {
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	if err := c.Serve(*d.web.leaf, func(string) (net.Listener, error) { return ports.listen() }); err != nil {
		return nil, err
	}
	urls := c.URLs()
	c.RolesAnywhere, c.STS = urls["rolesanywhere"], urls["sts"]
	c.GCPSTS, c.IAMCredentials, c.GCPWhoami = urls["gcp_sts"], urls["gcp_iamcredentials"], urls["gcp_whoami"]
	c.AzureLogin, c.AzureWhoami = urls["entra"], urls["azure_arm"]
	l, err := listenSwitchboard(c.socket)
	if err != nil {
		c.Close()
		return nil, err
	}
	d.running.Go(func() { serveSwitchboard(ctx, l, c.Switchboard(), ourselves()) })
	return c, nil
}

// devClouds is an account of each cloud: with a trust anchor that holds our root
// and two roles, a workload identity pool and a service account, a tenant with
// an app. Each trusts the demo workload alone.
func devClouds(webCA, issuer, subject, roots string) clouds.Config {
	provider := strings.TrimPrefix(issuer, "https://")
	pool := "projects/" + gcpProject + "/locations/global/workloadIdentityPools/" + gcpPool
	return clouds.Config{
		Issuers: clouds.Issuers{CAFile: webCA, LenientLoopbackIssuer: true},
		AWS: &clouds.AWS{
			Account: awsAccount, Region: awsRegion,
			TrustAnchors:  []clouds.TrustAnchor{{ARN: awsAnchor, Certificates: roots}},
			Profiles:      []clouds.Profile{{ARN: awsProfile, Roles: []string{awsRole}}},
			OIDCProviders: []clouds.Provider{{URL: issuer, ClientIDs: []string{awsWebAudience}}},
			Roles: []clouds.Role{{ARN: awsRole, TrustPolicy: clouds.Policy(fmt.Sprintf(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow",
				"Principal":{"Service":"rolesanywhere.amazonaws.com"},"Action":["sts:AssumeRole","sts:TagSession","sts:SetSourceIdentity"],
				"Condition":{"StringEquals":{"aws:PrincipalTag/x509SAN/URI":%q},"ArnEquals":{"aws:SourceArn":%q}}}]}`, subject, awsAnchor))}, {
				ARN: awsWebRole, TrustPolicy: clouds.Policy(fmt.Sprintf(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow",
				"Principal":{"Federated":"arn:aws:iam::%s:oidc-provider/%s"},"Action":"sts:AssumeRoleWithWebIdentity",
				"Condition":{"StringEquals":{"%s:sub":%q,"%s:aud":%q}}}]}`, awsAccount, provider, provider, subject, provider, awsWebAudience)),
			}},
		},
		GCP: &clouds.GCP{
			Pools: []clouds.Pool{{Project: gcpProject, ID: gcpPool, Providers: []clouds.PoolProvider{{
				ID: gcpProvider, OIDC: &clouds.OIDC{Issuer: issuer}, AttributeMapping: map[string]string{"google.subject": "assertion.sub"},
			}}}},
			ServiceAccounts: []clouds.ServiceAccount{{
				Email: gcpAccount, UniqueID: "100000000000000000042",
				Bindings: []clouds.Binding{{Role: "roles/iam.workloadIdentityUser", Members: []string{"principal://iam.googleapis.com/" + pool + "/subject/" + subject}}},
			}},
		},
		Azure: &clouds.Azure{Tenants: []clouds.Tenant{{ID: azureTenant, Domain: "sandbox.example", Apps: []clouds.App{{
			ClientID: azureClient, ObjectID: azureObject,
			Credentials: []clouds.Credential{{Name: "credence-demo", Issuer: issuer, Subject: subject}},
		}}}}},
	}
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
