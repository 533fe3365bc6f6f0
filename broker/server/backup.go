package server

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"strings"

	"google.golang.org/grpc"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/audit"
)

// Bounds of a backup's recipients, and of what one message of it holds.
const (
	maxRecipients    = 32
	maxRecipientText = 4 << 10 // those that are safe from quantum computers are long
	backupPart       = 256 << 10
)

// Backup sends a backup. That it was asked for is recorded before, and that it
// went, after.
func (a adminService) Backup(r *api.BackupRequest, stream grpc.ServerStreamingServer[api.BackupResponse]) error {
	ctx, cancel := a.untilClosing(stream.Context())
	defer cancel()
	return a.fail(ctx, func() error {
		if a.s.cfg.Backup == nil {
			return fmt.Errorf("%w: this broker makes no backups", broker.ErrRequest)
		}
		text := strings.Join(r.GetRecipients(), " ")
		if len(r.GetRecipients()) > maxRecipients || len(text) > maxRecipients*maxRecipientText {
			return fmt.Errorf("%w: at most %d recipients are taken", broker.ErrRequest, maxRecipients)
		}
		event := audit.Event{Kind: "backup", OK: true, Actor: a.s.actor(ctx), Code: "begun", Detail: map[string]string{"recipients": fmt.Sprintf("%.1000s", text)}}
		if _, err := a.s.cfg.Audit.Append(ctx, event); err != nil {
			return err
		}
		w := &backupStream{stream: stream, sum: sha256.New()}
		manifest, err := a.s.cfg.Backup(ctx, w, r.GetRecipients())
		if err == nil {
			err = w.flush()
		}
		event.Code, event.OK = "made", err == nil
		event.Detail["sha256"] = hex.EncodeToString(w.sum.Sum(nil))
		if err != nil {
			event.Code, event.Reason = "failed", err.Error()
		}
		if _, failed := a.s.cfg.Audit.Append(ctx, event); err == nil {
			err = failed
		}
		if err != nil {
			return err
		}
		return stream.Send(&api.BackupResponse{Manifest: manifest})
	}())
}

// A backupStream sends what is written.
type backupStream struct {
	stream grpc.ServerStreamingServer[api.BackupResponse]
	sum    hash.Hash
	held   []byte
}

func (s *backupStream) Write(p []byte) (int, error) {
	s.held = append(s.held, p...)
	if len(s.held) < backupPart {
		return len(p), nil
	}
	return len(p), s.flush()
}

func (s *backupStream) flush() error {
	if len(s.held) == 0 {
		return nil
	}
	s.sum.Write(s.held)
	err := s.stream.Send(&api.BackupResponse{Data: s.held})
	s.held = nil // the message keeps it
	return err
}
