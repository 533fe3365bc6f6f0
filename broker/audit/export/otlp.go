package export

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	resource "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/credence-id/credence/broker/audit"
)

const scopeName = "credence.audit"

// logsOf encodes records, or heads, as an ExportLogsServiceRequest, which on the wire is a
// LogsData (opentelemetry-proto, collector/logs/v1). The body of each log record
// is the record's line as it stands.
func logsOf[T any](about map[string]string, batch []T, logOf func(T) (*logs.LogRecord, error)) ([]byte, error) {
	scope := &logs.ScopeLogs{Scope: &common.InstrumentationScope{Name: scopeName}}
	for _, r := range batch {
		one, err := logOf(r)
		if err != nil {
			return nil, err
		}
		scope.LogRecords = append(scope.LogRecords, one)
	}
	of := &resource.Resource{}
	for _, name := range slices.Sorted(maps.Keys(about)) {
		of.Attributes = append(of.Attributes, attribute(name, about[name]))
	}
	return proto.Marshal(&logs.LogsData{ResourceLogs: []*logs.ResourceLogs{{Resource: of, ScopeLogs: []*logs.ScopeLogs{scope}}}})
}

func logOf(r audit.Record) (*logs.LogRecord, error) {
	line, err := r.Line()
	if err != nil {
		return nil, err
	}
	one := &logs.LogRecord{
		TimeUnixNano: uint64(max(r.Time.UnixNano(), 0)), SeverityNumber: logs.SeverityNumber_SEVERITY_NUMBER_INFO, SeverityText: "INFO",
		EventName: scopeName + "." + r.Kind, Body: &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: string(line)}},
	}
	one.ObservedTimeUnixNano = one.TimeUnixNano
	if !r.OK {
		one.SeverityNumber, one.SeverityText = logs.SeverityNumber_SEVERITY_NUMBER_WARN, "WARN"
	}
	for _, a := range [][2]string{
		{"credence.record", r.Ref().ID()}, {"credence.sequence", strconv.FormatUint(r.Sequence, 10)}, {"credence.hash", r.Hash},
		{"credence.kind", r.Kind}, {"credence.ok", strconv.FormatBool(r.OK)}, {"credence.node", r.Node}, {"credence.spiffe_id", r.SPIFFEID},
		{"credence.identity", r.Identity}, {"credence.serial", r.Serial}, {"credence.target", r.Target}, {"credence.actor", r.Actor}, {"credence.code", r.Code},
	} {
		if a[1] != "" {
			one.Attributes = append(one.Attributes, attribute(a[0], a[1]))
		}
	}
	return one, nil
}

// logOfHead is a head's log record; no record is of kind "head".
func logOfHead(h audit.Head) (*logs.LogRecord, error) {
	line, err := h.Line()
	if err != nil {
		return nil, err
	}
	one := &logs.LogRecord{
		TimeUnixNano: uint64(max(h.Time.UnixNano(), 0)), SeverityNumber: logs.SeverityNumber_SEVERITY_NUMBER_INFO, SeverityText: "INFO",
		EventName: scopeName + ".head", Body: &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: string(line)}},
		Attributes: []*common.KeyValue{attribute("credence.sequence", strconv.FormatUint(h.Sequence, 10)), attribute("credence.hash", h.Hash)},
	}
	one.ObservedTimeUnixNano = one.TimeUnixNano
	return one, nil
}

func attribute(name, value string) *common.KeyValue {
	return &common.KeyValue{Key: name, Value: &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: value}}}
}

// partialSuccess reads an ExportLogsServiceResponse: in field 1 an
// ExportLogsPartialSuccess with rejected_log_records (1) and error_message (2).
// What was rejected is sent again, in smaller parts, since nothing may be lost.
// OTLP would have a client drop it.
func partialSuccess(answer []byte) error {
	rejected, message, err := parseAnswer(answer)
	if err != nil {
		return err
	}
	if rejected == 0 {
		return nil // a message alone is a warning
	}
	return &Refusal{Err: fmt.Errorf("the collector rejected %d of the records: %.200q", rejected, message), Split: true}
}

func parseAnswer(answer []byte) (rejected int64, message string, err error) {
	wrong := errors.New("the collector's answer is no ExportLogsServiceResponse: is this an OTLP endpoint?")
	err = fields(answer, wrong, func(n protowire.Number, v []byte, _ uint64) error {
		if n != 1 {
			return nil
		}
		if v == nil {
			return wrong
		}
		return fields(v, wrong, func(n protowire.Number, v []byte, x uint64) error {
			switch {
			case n == 1 && v == nil:
				rejected = int64(x)
			case n == 2 && v != nil:
				message = strings.ToValidUTF8(string(v), "\uFFFD")
			case n == 1, n == 2:
				return wrong
			}
			return nil
		})
	})
	return rejected, message, err
}

// fields goes through a message; a value that is not bytes is nil.
func fields(b []byte, wrong error, fn func(protowire.Number, []byte, uint64) error) error {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return wrong
		}
		b = b[n:]
		var value []byte
		var x uint64
		switch kind {
		case protowire.BytesType:
			value, n = protowire.ConsumeBytes(b)
			value = append([]byte{}, value...)
		case protowire.VarintType:
			x, n = protowire.ConsumeVarint(b)
		default:
			n = protowire.ConsumeFieldValue(number, kind, b)
		}
		if n < 0 {
			return wrong
		}
		b = b[n:]
		if err := fn(number, value, x); err != nil {
			return err
		}
	}
	return nil
}
