package agent

import (
	"context"
	mathrand "math/rand/v2"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/credence-id/credence/agent/spool"
	"github.com/credence-id/credence/broker/api"
)

// What goes to the broker in one call, and how often the spool is looked after.
const (
	shipAtOnce = 128
	shipBytes  = 1 << 20
	tendSpool  = time.Minute
)

// ship hands spooled reports to the broker, until ctx ends. What could not be
// shipped is on disk for the next time. Nothing else waits for it.
func (a *Agent) ship(ctx context.Context) error {
	told := spool.Stats{Lost: a.reports.Stats().Lost}
	for {
		a.pulses.ship.work(a.cfg.Now())
		wait := tendSpool
		if err := a.shipPending(ctx); err != nil && ctx.Err() == nil {
			a.cfg.Log.WarnContext(ctx, "reports not shipped", "error", err, "waiting", a.reports.Stats().Backlog)
			wait = maxPause/2 + mathrand.N(maxPause)
		}
		told = a.tellLosses(ctx, told)
		a.pulses.ship.rest()
		select {
		case <-ctx.Done():
			return nil
		case <-a.reports.Wake():
		case <-time.After(wait):
		}
		a.pulses.ship.work(a.cfg.Now())
		a.reports.fold(a.cfg.Now())
		a.reports.flush(ctx)
	}
}

// tellLosses logs what was lost since the last time, and has what is not told
// yet tried again.
func (a *Agent) tellLosses(ctx context.Context, before spool.Stats) spool.Stats {
	now := a.reports.Stats()
	if now.Lost > before.Lost {
		a.cfg.Log.ErrorContext(ctx, "reports were lost: the broker's record will tell how many", "reports", now.Lost-before.Lost,
			"full", now.Full, "waiting", now.Backlog, "bytes", now.Bytes, "trouble", now.Trouble)
	}
	if now.Untold > 0 && !now.Full {
		ctx, cancel := context.WithTimeout(ctx, dropPatience)
		defer cancel()
		_ = a.reports.Room(ctx) // it writes the gap, or says so in Stats
	}
	return now
}

func (a *Agent) shipPending(ctx context.Context) error {
	for n := shipAtOnce; ; {
		a.pulses.ship.work(a.cfg.Now())
		records, err := a.reports.Next(n, shipBytes)
		if err != nil || len(records) == 0 {
			return err
		}
		switch err := a.shipSome(ctx, records); {
		case err == nil:
			a.reports.Arrived(records)
			n = min(2*n, shipAtOnce)
		case status.Code(err) != codes.InvalidArgument:
			return err
		case len(records) > 1: // one of them is what the broker refuses
			n = 1
		default:
			// What it refuses as malformed it would refuse for ever.
			a.cfg.Log.ErrorContext(ctx, "the broker refuses a report", "error", err, "report", api.ReportID(a.reports.ID(), records[0].Sequence))
			if records[0].Gap == nil { // else each gap would be the reason for the next
				a.reports.Lose(1, spool.LostRefused)
			}
			a.reports.Arrived(records)
		}
	}
}

func (a *Agent) shipSome(ctx context.Context, records []spool.Record) error {
	request := &api.ReportRequest{}
	for _, r := range records {
		a.add(request, r)
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	_, err := api.NewNodeClient(a.link.Load().conn).Report(ctx, request)
	return err
}

// add puts a record of the spool into a request, under its name.
func (a *Agent) add(request *api.ReportRequest, r spool.Record) {
	id := api.ReportID(a.reports.ID(), r.Sequence)
	if g := r.Gap; g != nil {
		request.Gaps = append(request.Gaps, &api.Gap{Id: id, Since: g.Since.Unix(), Lost: g.Lost, Why: g.Why, Total: g.Total})
		return
	}
	one := &api.ReportRequest{}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(r.Data, one); err != nil || len(one.Exchanges)+len(one.Refusals)+len(one.HandOuts) != 1 {
		// Of another version, perhaps: it is told as lost, in its place.
		request.Gaps = append(request.Gaps, &api.Gap{Id: id, Since: a.cfg.Now().Unix(), Lost: 1, Why: spool.LostDamaged})
		return
	}
	for _, e := range one.Exchanges {
		e.Id = id
		request.Exchanges = append(request.Exchanges, e)
	}
	for _, h := range one.HandOuts {
		h.Id = id
		request.HandOuts = append(request.HandOuts, h)
	}
	for _, f := range one.Refusals {
		f.Id = id
		request.Refusals = append(request.Refusals, f)
	}
}
