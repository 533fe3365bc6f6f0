package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/credence-id/credence/broker/server"
	"github.com/credence-id/credence/cmd/cli"
)

// reloadable are the keys of broker.yaml that a broker takes over while it runs.
var reloadable = []string{"allow_networks", "dns_suffixes", "limits", "login", "min_ttl", "roles", "subjects"}

// settings are those of a file.
func (p *brokerParts) settings(f brokerFile) (s server.Settings, err error) {
	s.DNSSuffixes, s.Subjects, s.Limits = f.DNSSuffixes, f.Subjects, f.limits()
	if s.MinTTL, err = f.minTTL(); err != nil {
		return s, err
	}
	if s.Roles, err = f.roles(); err != nil {
		return s, err
	}
	s.Login, err = loginOf(f.Login, p.methods)
	return s, err
}

// reloadOn reloads at each hangup until ctx ends.
func (p *brokerParts) reloadOn(hangups <-chan os.Signal, path string, log *slog.Logger) func(context.Context) error {
	return func(ctx context.Context) error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-hangups:
				p.reload(ctx, path, log)
			}
		}
	}
}

// reload takes over what can change while the broker runs of what the file says
// now, and names the rest. A file that does not do changes nothing.
func (p *brokerParts) reload(ctx context.Context, path string, log *slog.Logger) {
	next, err := loadBroker(path)
	if err != nil {
		log.ErrorContext(ctx, "reload refused", "error", err)
		return
	}
	var taken []string
	for _, key := range changedKeys(p.file, next) {
		if first, _, _ := strings.Cut(key, "."); slices.Contains(reloadable, first) {
			taken = append(taken, key)
			continue
		}
		log.WarnContext(ctx, "needs a restart", "key", key)
	}
	if len(taken) > 0 {
		err = p.takeOver(ctx, path, next, taken)
	}
	if errors.Is(err, server.ErrNotInForce) {
		log.ErrorContext(ctx, "reloaded, not yet in force", "changed", strings.Join(taken, " "), "error", err)
		return
	}
	if err != nil {
		log.ErrorContext(ctx, "reload refused", "error", err)
		return
	}
	log.InfoContext(ctx, "reloaded", "changed", strings.Join(taken, " "))
}

func (p *brokerParts) takeOver(ctx context.Context, path string, next brokerFile, changed []string) error {
	networks, err := next.networks()
	if err != nil {
		return cli.InFile(path, err)
	}
	settings, err := p.settings(next)
	if err != nil {
		return cli.InFile(path, err)
	}
	err = p.server.Reload(ctx, "SIGHUP", changed, settings)
	if err != nil && !errors.Is(err, server.ErrNotInForce) {
		return err
	}
	p.networks.Store(&networks)
	from, to := reflect.ValueOf(&next).Elem(), reflect.ValueOf(&p.file).Elem()
	for i := range from.NumField() {
		if slices.Contains(reloadable, from.Type().Field(i).Tag.Get("yaml")) {
			to.Field(i).Set(from.Field(i))
		}
	}
	return err
}

// changedKeys are the keys of broker.yaml, those of listen one by one, whose values
// differ in two complete files.
func changedKeys(a, b brokerFile) []string {
	return differing("", reflect.ValueOf(a), reflect.ValueOf(b))
}

func differing(prefix string, a, b reflect.Value) (keys []string) {
	for i := range a.NumField() {
		name, inline := strings.CutSuffix(a.Type().Field(i).Tag.Get("yaml"), ",inline")
		x, y := a.Field(i), b.Field(i)
		switch {
		case inline:
			keys = append(keys, differing(prefix, x, y)...)
		case x.Kind() == reflect.Struct:
			keys = append(keys, differing(prefix+name+".", x, y)...)
		case !reflect.DeepEqual(x.Interface(), y.Interface()) && (x.Kind() != reflect.Slice || x.Len()+y.Len() > 0):
			keys = append(keys, prefix+name)
		}
	}
	return keys
}
