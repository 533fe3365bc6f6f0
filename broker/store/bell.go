package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// How the bell is rung.
const (
	bellName  = "credence"
	bellTime  = time.Second
	bellAgain = 5 * time.Second
)

// Bell calls ring each time a broker over this database has changed something,
// until ctx ends; for a database that is one broker's alone it returns at once. It
// is a kindness: it may miss what Revision tells, and an engine need not have it.
func (s *Store) Bell(ctx context.Context, ring func()) {
	for s.bell != nil && ctx.Err() == nil {
		s.listen(ctx, ring)
		select {
		case <-ctx.Done():
		case <-time.After(bellAgain):
		}
	}
}

// listen is Bell as long as one connection lasts.
func (s *Store) listen(ctx context.Context, ring func()) {
	conn, err := pgx.ConnectConfig(ctx, s.bell.Copy())
	if err != nil {
		return
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, "LISTEN "+bellName); err != nil {
		return
	}
	for {
		if _, err := conn.WaitForNotification(ctx); err != nil {
			return
		}
		ring()
	}
}

// ring tells all that listen. That it cannot is no error: they look each second.
func (s *Store) ring(ctx context.Context) {
	if s.bell == nil || s.silent.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), bellTime)
	defer cancel()
	_, err := s.write.now.Load().ExecContext(ctx, "NOTIFY "+bellName)
	switch pgCode(err) {
	case "0A000", "42601": // feature_not_supported, syntax_error: the engine has none
		s.silent.Store(true)
	}
}
