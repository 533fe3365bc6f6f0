package s3_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/credence-id/credence/federation/publish"
	"github.com/credence-id/credence/federation/publish/publishtest"
	"github.com/credence-id/credence/federation/publish/s3"
)

func store(service *publishtest.S3, secret string) s3.Store {
	return s3.Store{Bucket: publishtest.Bucket, Prefix: "td/", Client: awss3.New(awss3.Options{
		Region: publishtest.Region, BaseEndpoint: &service.URL, UsePathStyle: true, HTTPClient: service.Client,
		Credentials: credentials.NewStaticCredentialsProvider(publishtest.AccessKey, secret, ""), RetryMaxAttempts: 2,
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenRequired, ResponseChecksumValidation: aws.ResponseChecksumValidationWhenRequired,
	})}
}

func TestStore(t *testing.T) {
	service := publishtest.NewS3(t)
	publishtest.RunStore(t, store(service, publishtest.SecretKey))
	if refused := service.Refused(); len(refused) > 0 {
		t.Errorf("refused: %s", refused)
	}
	if body, kind, cache := service.Object("td/" + publish.DiscoveryName); body == "" || kind != "application/json" || cache != "public, max-age=300" {
		t.Errorf("%q, %q, %q", body, kind, cache)
	}
}

// Some that speak the protocol know no conditions.
func TestWithoutConditions(t *testing.T) {
	service := publishtest.NewS3(t)
	service.NoConditions = true
	s := store(service, publishtest.SecretKey)
	for n := range 2 {
		held, err := s.Get(t.Context(), publish.KeysName)
		if err == nil {
			err = s.Put(t.Context(), publish.Document{Name: publish.KeysName, Body: []byte(strings.Repeat("x", n+1))}, held)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if body, _, _ := service.Object("td/" + publish.KeysName); body != "xx" {
		t.Errorf("there is %q", body)
	}
}

func TestFailures(t *testing.T) {
	service := publishtest.NewS3(t)
	doc := publish.Document{Name: publish.KeysName, Body: []byte("{}")}
	wrong := store(service, "another")
	elsewhere := store(service, publishtest.SecretKey)
	elsewhere.Bucket = "another"
	for name, s := range map[string]s3.Store{"another's credentials": wrong, "no such bucket": elsewhere} {
		if err := s.Put(t.Context(), doc, nil); err == nil || errors.Is(err, publish.ErrConflict) {
			t.Errorf("%s: put: %v", name, err)
		}
		if held, err := s.Get(t.Context(), doc.Name); err == nil || !strings.Contains(err.Error(), "s3://"+s.Bucket+"/td/keys") {
			t.Errorf("%s: get: %v, %v", name, held, err)
		}
	}
	n := 0
	service.Fault(func(*http.Request) int {
		if n++; n == 1 {
			return http.StatusServiceUnavailable
		}
		return 0
	})
	if err := store(service, publishtest.SecretKey).Put(t.Context(), doc, nil); err != nil || n != 2 {
		t.Errorf("one refusal of a busy service: %v after %d requests", err, n)
	}
}
