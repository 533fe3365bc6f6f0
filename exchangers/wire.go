package exchangers

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

const maxWire = 64 << 10

// Wire is a Target's exchange as the broker sends it to an agent: JSON, and no
// secret in it. Name and revision go beside it.
type Wire struct {
	Flow     string          `json:"flow"`
	Settings json.RawMessage `json:"settings"`
	Endpoint string          `json:"endpoint,omitempty"`
	CAFile   string          `json:"ca_file,omitempty"`
}

// Wire writes what ParseWire reads. It refuses a Target that does not validate.
func (t Target) Wire() ([]byte, error) {
	if err := t.validate(); err != nil {
		return nil, fmt.Errorf("target %s: %w", t.Name, err)
	}
	settings, err := json.Marshal(t.Settings)
	if err != nil {
		return nil, fmt.Errorf("writing the settings of target %s: %w", t.Name, err)
	}
	return json.Marshal(Wire{Flow: t.Flow, Settings: settings, Endpoint: t.Endpoint, CAFile: t.CAFile})
}

// ParseWire reads at most 64 KiB, strictly: unknown fields and trailing bytes
// refuse. settings is a pointer to the empty settings of the flow the caller
// expects. The Target has neither name nor revision.
func ParseWire(data []byte, settings Settings) (Target, error) {
	if len(data) > maxWire {
		return Target{}, fmt.Errorf("target of %d bytes: at most %d are read", len(data), maxWire)
	}
	var w Wire
	if err := strict(data, &w); err != nil {
		return Target{}, fmt.Errorf("reading the target: %w", err)
	}
	if len(w.Settings) == 0 || w.Settings[0] != '{' {
		return Target{}, errors.New("reading the target: it has no settings")
	}
	if err := strict(w.Settings, settings); err != nil {
		return Target{}, fmt.Errorf("reading the settings of %s: %w", w.Flow, err)
	}
	t := Target{Flow: w.Flow, Settings: settings, Endpoint: w.Endpoint, CAFile: w.CAFile}
	if err := t.validate(); err != nil {
		return Target{}, fmt.Errorf("reading the target: %w", err)
	}
	return t, nil
}

func (t Target) validate() error {
	if t.Flow == "" || t.Settings == nil {
		return errors.New("it has no flow, or no settings")
	}
	if err := CheckEndpoint("endpoint", t.Endpoint); err != nil {
		return err
	}
	return t.Settings.Validate()
}

func strict(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is more after the JSON object")
	}
	return nil
}
