package setup_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/aws"
	"github.com/credence-id/credence/exchangers/azure"
	"github.com/credence-id/credence/exchangers/gcp"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
	"github.com/credence-id/credence/exchangers/sandbox/setup"
)

// written is a plan for each cloud, as text.
func written(t testing.TB) (all []string) {
	w := &world{t: t, root: issuertest.NewCA(t, "root", time.Now(), nil)}
	w.issuing = w.root
	w.sub = w.root
	for _, target := range []exchangers.Target{
		anywhere(func(s *aws.RolesAnywhere) {
			s.AssumeRole = &aws.AssumeRole{Role: "arn:aws:iam::123456789012:role/second"}
		}),
		webIdentity(func(*aws.WebIdentity) {}),
		google(func(s *gcp.Settings) { s.QuotaProject = "proj-ect" }),
		google(func(s *gcp.Settings) { s.SVID = "x509" }),
		entra(func(*azure.Settings) {}),
	} {
		plan, err := target.Settings.(exchangers.Planner).Setup(w.facts(target, false, orders), exchangers.Choices{})
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(plan)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, string(text))
	}
	return all
}

func TestReadIsStrict(t *testing.T) {
	texts := written(t)
	const awsPlan, webPlan, gcpPlan, x509Plan, azurePlan = 0, 1, 2, 3, 4
	for name, c := range map[string]struct {
		plan          int
		old, new, say string
	}{
		"a type":               {awsPlan, `"aws_rolesanywhere_profile"`, `"aws_s3_bucket"`, "not emulated"},
		"a value":              {awsPlan, `"enabled":`, `"notification_settings":`, `"notification_settings" is not known here`},
		"a value in a block":   {awsPlan, `"source_type":`, `"acm_pca_arn": "x", "source_type":`, `"acm_pca_arn" is not known here`},
		"another source":       {awsPlan, `CERTIFICATE_BUNDLE`, `AWS_ACM_PCA`, "is not emulated"},
		"a field":              {awsPlan, `"flow":`, `"comment": "", "flow":`, "unknown field"},
		"a field twice":        {awsPlan, `"flow":`, `"flow": "x", "flow":`, "twice"},
		"a cloud":              {awsPlan, `"name": "aws"`, `"name": "oci"`, "not emulated"},
		"a reference":          {awsPlan, `{"ref": "aws_rolesanywhere_trust_anchor.credence_aws-orders.arn"}`, `{"ref": "aws_rolesanywhere_trust_anchor.x.arn"}`, "leads nowhere"},
		"a reference and more": {awsPlan, `{"ref": "aws_rolesanywhere_trust_anchor.credence_aws-orders.arn"}`, `{"ref": "aws_rolesanywhere_trust_anchor.credence_aws-orders.arn", "x": "y"}`, "leads nowhere"},
		"more after it":        {awsPlan, `"notes":`, `"notes": [`, ""},
		"a text for a number":  {awsPlan, `"max_session_duration": 3600`, `"max_session_duration": "3600"`, "another type"},
		"half a second":        {awsPlan, `"duration_seconds": 3600`, `"duration_seconds": 3600.5`, "another type"},
		"no certificate":       {awsPlan, `-----BEGIN CERTIFICATE-----`, `-----BEGIN RSA KEY-----`, "PEM of certificates"},
		"another permission":   {awsPlan, `{"name": "credence-assume-role"`, `{"name": ""`, "missing or empty"},
		"another account":      {awsPlan, `{"type":"aws_iam_role","label":"credence_aws-orders_second"`, `{"type":"aws_iam_role","account":"210987654321","label":"credence_aws-orders_second"`, "the sandbox has one"},
		"a role twice":         {awsPlan, `"name": "second"`, `"name": "orders", "path": "/team/", "x": "y"`, ""},
		"one that is there":    {webPlan, `"type":"aws_iam_openid_connect_provider"`, `"read":true,"type":"aws_iam_openid_connect_provider"`, "there already"},
		"no client ID":         {webPlan, `"client_id_list": ["sts.amazonaws.com"]`, `"client_id_list": []`, "another type"},
		"gcp: a value":         {gcpPlan, `"attribute_condition":`, `"disabled": true, "attribute_condition":`, `"disabled" is not known here`},
		"gcp: no pool":         {gcpPlan, `"workload_identity_pool_id": "pool-a","display_name"`, `"workload_identity_pool_id": "","display_name"`, "missing or empty"},
		"gcp: a role":          {gcpPlan, `roles/serviceusage.serviceUsageConsumer`, `roles/owner`, "not emulated"},
		"gcp: two stores":      {x509Plan, `"trust_store": [`, `"trust_store": [{}, `, "more than once"},
		"azure: a cloud":       {azurePlan, `"partition":"public"`, `"partition":"moon"`, "none of Microsoft's"},
		"azure: two audiences": {azurePlan, `"audiences": [`, `"audiences": ["x", `, "exactly one"},
	} {
		t.Run(name, func(t *testing.T) {
			text := texts[c.plan]
			changed := strings.Replace(text, c.old, c.new, 1)
			if changed == text {
				text = strings.ReplaceAll(text, `":`, `": `) // as it is written elsewhere
				if changed = strings.Replace(text, c.old, c.new, 1); changed == text {
					t.Fatalf("there is no %s in %s", c.old, text)
				}
			}
			if _, err := setup.Read([]byte(changed)); err == nil || !strings.Contains(err.Error(), c.say) {
				t.Errorf("%v", err)
			}
		})
	}
	if _, err := setup.Read([]byte(texts[0]), []byte(strings.ReplaceAll(texts[1], "123456789012", "210987654321"))); err == nil || !strings.Contains(err.Error(), "the sandbox has one of each") {
		t.Errorf("two accounts: %v", err)
	}
	if _, err := setup.Read([]byte(texts[0]), []byte(texts[0])); err == nil || !strings.Contains(err.Error(), "there already") {
		t.Errorf("the same twice: %v", err)
	}
	if _, err := setup.Read([]byte(`{"x":"` + strings.Repeat("a", 1<<20) + `"}`)); err == nil {
		t.Error("a plan without end is read")
	}
}

// Whatever is read is read to its end, or refused.
func FuzzRead(f *testing.F) {
	for _, text := range written(f) {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := setup.Read(text)
		if (err == nil) != (c != nil) {
			t.Errorf("%v beside %v", c, err)
		}
	})
}
