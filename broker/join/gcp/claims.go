package gcp

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/credence-id/credence/broker/join/bearer"
)

// An account is the service account that a token is of.
type account struct{ id, email string }

// An instance is what a token says of the machine that asked for it.
type instance struct {
	project, projectNumber string
	zone, region           string
	id, name               string
	created                string
	confidential           bool
	licenses               []string // unknown where the node didn't ask for them
}

// What Google takes for these: facts go into SPIFFE IDs.
var (
	number         = regexp.MustCompile(`^[0-9]{1,24}$`)
	emailPattern   = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{0,127}@[a-z0-9][a-z0-9.-]{0,127}\.gserviceaccount\.com$`)
	projectPattern = regexp.MustCompile(`^([a-z0-9][a-z0-9.-]{0,62}:)?[a-z][a-z0-9-]{4,28}[a-z0-9]$`)
	zonePattern    = regexp.MustCompile(`^([a-z]{2,16}(-[a-z]{2,24})+[0-9]{1,2})-[a-z][a-z0-9]{0,7}$`)
	namePattern    = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`)
)

const maxLicenses = 64

// readAccount reads whose a verified token is: one account, as subject, as the party
// that it was made for, and by its e-mail address.
func readAccount(token bearer.Token) (account, error) {
	a := account{id: token.Subject}
	if !number.MatchString(a.id) {
		return account{}, fmt.Errorf("its subject is no account's ID: %.80q", a.id)
	}
	if azp, there := token.Claims["azp"]; there && azp != a.id {
		return account{}, fmt.Errorf("it was made for %.80q to show, and is of %s", fmt.Sprint(azp), a.id)
	}
	a.email, _ = token.Claims["email"].(string)
	if !emailPattern.MatchString(a.email) || strings.Contains(a.email, "..") {
		return account{}, fmt.Errorf("its e-mail address is no service account's: %.200q", fmt.Sprint(token.Claims["email"]))
	}
	if token.Claims["email_verified"] != true {
		return account{}, errors.New("its e-mail address is not verified")
	}
	return a, nil
}

// readInstance reads the claims of format full. named is false where there are none.
func readInstance(token bearer.Token) (i instance, named bool, err error) {
	google, there := token.Claims["google"]
	if !there {
		return instance{}, false, nil
	}
	claims, ok := google.(map[string]any)
	if !ok {
		return instance{}, false, errors.New("its claim google is no object")
	}
	engine, there := claims["compute_engine"]
	if !there {
		return instance{}, false, nil
	}
	if claims, ok = engine.(map[string]any); !ok {
		return instance{}, false, errors.New("its claim google.compute_engine is no object")
	}
	for _, f := range []struct {
		name string
		to   *string
		form *regexp.Regexp
	}{
		{"project_id", &i.project, projectPattern}, {"project_number", &i.projectNumber, number}, {"zone", &i.zone, zonePattern},
		{"instance_id", &i.id, number}, {"instance_name", &i.name, namePattern}, {"instance_creation_timestamp", &i.created, number},
	} {
		if *f.to = text(claims[f.name]); !f.form.MatchString(*f.to) {
			return instance{}, false, fmt.Errorf("its %s is none: %.80q", f.name, fmt.Sprint(claims[f.name]))
		}
	}
	i.region = zonePattern.FindStringSubmatch(i.zone)[1]
	i.confidential = text(claims["instance_confidentiality"]) == "1"
	if i.licenses, err = readLicenses(claims["license_id"]); err != nil {
		return instance{}, false, err
	}
	return i, true, created(i.created, token.Issued)
}

// created refuses an instance that was made after its token.
func created(seconds string, issued time.Time) error {
	n, err := json.Number(seconds).Int64()
	if err != nil || time.Unix(n, 0).After(issued.Add(bearer.Skew)) {
		return fmt.Errorf("its instance was made at %.40s, after the token", seconds)
	}
	return nil
}

func readLicenses(claim any) (all []string, err error) {
	list, ok := claim.([]any)
	if (claim != nil && !ok) || len(list) > maxLicenses {
		return nil, fmt.Errorf("its license_id is no list of at most %d", maxLicenses)
	}
	for _, v := range list {
		id := text(v)
		if !number.MatchString(id) {
			return nil, fmt.Errorf("its license_id has %.80q", fmt.Sprint(v))
		}
		all = append(all, id)
	}
	return all, nil
}

// text is a string or a number as it is written: Google writes IDs as either.
func text(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case json.Number:
		return v.String()
	}
	return ""
}

func (i instance) facts(m map[string][]string) {
	for name, value := range map[string]string{
		"project": i.project, "project_number": i.projectNumber, "zone": i.zone, "region": i.region,
		"instance_id": i.id, "instance_name": i.name, "instance_creation_timestamp": i.created,
	} {
		m[prefix+"."+name] = []string{value}
	}
	if i.confidential {
		m[prefix+".confidential"] = []string{"true"}
	}
	if len(i.licenses) > 0 {
		m[prefix+".license_id"] = i.licenses
	}
}
