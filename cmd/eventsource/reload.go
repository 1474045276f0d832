package main

import (
	"errors"
	"log/slog"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/jwks"
)

// A reloading has a server that runs take over a changed configuration. Its methods
// are called by one goroutine.
type reloading struct {
	// Set when made.
	main    *Main
	flags   *pflag.FlagSet
	server  *eventsource.Server
	started *config // what the server was started with
	sets    *keySets
	level   *slog.LevelVar
	log     *slog.Logger

	now *config // what it was last told
}

// reloadable reports whether a changed key counts without a restart.
func reloadable(key string) bool {
	return slices.Contains([]string{"auth_token", "keys", "jwt", "public", "trusted_proxies", "log.level"}, key) ||
		strings.HasPrefix(key, "cors.") ||
		strings.HasPrefix(key, "limits.") && key != "limits.head"
}

// reload reads the configuration again. One that is wrong changes nothing.
func (r *reloading) reload() {
	next, err := r.main.configure(r.flags)
	if err == nil && r.now.asks() && !next.asks() {
		// A file that is empty for a moment must not open the server to everybody.
		err = errors.New("it has no auth_token, no keys and no jwt, so that nobody would be asked for a token any more; restart to have it so")
	}
	if err == nil {
		err = r.apply(next)
	}
	if err != nil {
		r.log.Error("not reloaded: the configuration is wrong, and everything stays as it was", "error", err)
		return
	}
	changed := []string{}
	for _, key := range changedKeys(r.now, next) {
		if reloadable(key) {
			changed = append(changed, key)
		}
	}
	r.now = next
	r.level.Set(next.level())
	if c := r.started.certificate; c != nil {
		c.reload()
	}
	r.log.Info("reloaded", "changed", changed, "keys", len(next.settings.Keys), "jwt", len(next.settings.Issuers))
	for _, key := range changedKeys(r.started, next) {
		if !reloadable(key) {
			r.log.Warn("changed, but wants a restart to count", "key", key)
		}
	}
}

// apply hands settings to the server.
func (r *reloading) apply(next *config) error {
	if err := r.sets.open(next); err != nil {
		return err
	}
	err := r.server.Reload(&next.settings)
	if err != nil {
		r.sets.keep(r.now)
		return err
	}
	r.sets.keep(next)
	return nil
}

// changedKeys returns the names of the keys that differ.
func changedKeys(before, after *config) []string {
	var names []string
	old := before.keys()
	for i, k := range after.keys() {
		if !reflect.DeepEqual(old[i].value, k.value) {
			names = append(names, k.name)
		}
	}
	return names
}

// A keySets is the JWK sets that are open, by their URLs. Its methods are called by
// one goroutine.
type keySets struct {
	log  *slog.Logger
	sets map[string]*jwks.Set
}

func newKeySets(log *slog.Logger) *keySets { return &keySets{log: log, sets: map[string]*jwks.Set{}} }

// open has the issuers of a configuration ask the sets that are configured, which it
// opens where they are not yet.
func (k *keySets) open(c *config) error {
	for i, j := range c.jwt.all {
		if j.jwksURL == "" {
			continue
		}
		set := k.sets[j.jwksURL]
		if set == nil {
			var err error
			if set, err = jwks.Open(jwks.Config{URL: j.jwksURL, Logger: k.log}); err != nil {
				return err
			}
			k.sets[j.jwksURL] = set
		}
		c.settings.Issuers[i].Keys = set.Keys
	}
	return nil
}

// keep closes the sets that a configuration does not name.
func (k *keySets) keep(c *config) {
	for url, set := range k.sets {
		if !slices.ContainsFunc(c.jwt.all, func(j jwtConfig) bool { return j.jwksURL == url }) {
			set.Close()
			delete(k.sets, url)
		}
	}
}

// close closes all of them.
func (k *keySets) close() { k.keep(&config{}) }
