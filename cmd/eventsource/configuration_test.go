package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/railsmechanic/eventsource/source/webhook"
)

func TestBadConfigurationIsToldWithItsPlaceAndWhatWouldBeRight(t *testing.T) {
	const rule = "a channel name is 1 to 255 bytes of A-Z a-z 0-9 - _ ~ : @ + | in tokens joined by . or /"
	for _, test := range []struct {
		name string
		file string
		env  []string
		args []string
		want []string // FILE stands for the file
	}{
		{name: "unknown key", file: "host: localhost\nprot: 8080\n",
			want: []string{`FILE:2: unknown key "prot"; the nearest one is "port"`}},
		{name: "unknown section", file: "histroy: {events: 1}\n",
			want: []string{`FILE:1: unknown key "histroy"; the nearest one is "history"`}},
		{name: "unknown key in a section", file: "history:\n  age: 5m\n  evnets: 1\n",
			want: []string{`FILE:3: unknown key "history.evnets"; the nearest one is "history.events"`}},
		{name: "key outside of its section", file: "channels_per_consumer: 1\n",
			want: []string{`FILE:1: unknown key "channels_per_consumer"; the nearest one is "limits.channels_per_consumer"`}},
		{name: "a section that is a value", file: "cors: '*'\n",
			want: []string{`FILE:1: cors: "*" stands where its keys belong: allow_origin, allow_method, allow_headers, allow_credentials`}},
		{name: "a key that is a section", file: "port: {a: 1}\n",
			want: []string{`FILE:1: port: a set of keys is no whole number`}},
		{name: "no keys", file: "- 1\n",
			want: []string{`FILE: holds no keys; begin with one such as port: 8080`}},
		{name: "no YAML", file: "port: 1\npublic: [a\nhost: b",
			want: []string{`FILE:3: no YAML: ',' or ']' must be specified`}},
		{name: "a key twice", file: "port: 1\nport: 2\n",
			want: []string{`FILE:2: no YAML: mapping key "port" already defined at [1:1]`}},
		{name: "a secret taken for an alias", file: "auth_token: *geheim\n", want: []string{`FILE:1: no YAML: could not find alias`}},
		{name: "a secret taken for one that is merged", file: "<<: *geheim\n",
			want: []string{`FILE: no YAML: what begins with * or & and is text belongs in quotes`}},
		{name: "a secret taken for a block's header", file: "auth_token: |geheim\n", want: []string{`FILE:1: no YAML: invalid header option`}},
		{name: "a secret with a tag", file: "auth_token: !!bool geheim\n", want: []string{`FILE:1: no YAML: cannot convert`}},
		{name: "two documents", file: "port: 1\n---\nport: 2\n",
			want: []string{`FILE: has 2 YAML documents; one is read`}},
		{name: "no file", args: []string{"-c", "/nowhere/x.yml"},
			want: []string{`--config: there is no file /nowhere/x.yml`}},

		{name: "port", file: "port: 65536\n", want: []string{`FILE:1: port: 65536 is not between 0 and 65535`}},
		{name: "port as a word", env: []string{"EVENTSOURCE_PORT=http"}, want: []string{`EVENTSOURCE_PORT: "http" is no whole number`}},
		{name: "port by flag", args: []string{"--port", "-1"}, want: []string{`--port: -1 is not between 0 and 65535`}},
		{name: "host", file: "host: 8\n", want: []string{`FILE:1: host: 8 is no text; write it in quotes, "8"`}},
		{name: "base_path", file: "base_path: subscribe\n", want: []string{`FILE:1: base_path: "subscribe" is no path such as /subscribe`}},
		{name: "operations", file: "operations: here\n", want: []string{`FILE:1: operations: "here" is no address; give one such as 127.0.0.1:9090 or :9090`}},
		{name: "operations' port", file: "operations: a:b\n",
			want: []string{`FILE:1: operations: "a:b" has no port between 0 and 65535; give an address such as 127.0.0.1:9090`}},
		{name: "no unit", file: "timeout: 5\n", want: []string{`FILE:1: timeout: 5 has no unit; give a duration such as 5s`}},
		{name: "no timeout", file: "timeout: 0\n", want: []string{`FILE:1: timeout: 0 would cut everybody off; give a duration such as 5s`}},
		{name: "no retry", file: "retry: 0s\n",
			want: []string{`FILE:1: retry: 0 would have consumers come back without a pause; give a duration such as 3s`}},
		{name: "no drain", file: "drain: 0\n", want: []string{`FILE:1: drain: 0 would cut publishes off; give a duration such as 10s`}},
		{name: "none where there must be one", file: "retry: none\n",
			want: []string{`FILE:1: retry: "none" is no duration; give one such as 5s, 1m30s or 250ms`}},
		{name: "negative duration", file: "heartbeat: -5s\n",
			want: []string{`FILE:1: heartbeat: -5s is negative; give a duration such as 5s, or "none"`}},
		{name: "no duration", env: []string{"EVENTSOURCE_HEARTBEAT=fast"},
			want: []string{`EVENTSOURCE_HEARTBEAT: "fast" is no duration; give one such as 5s, 1m30s or 250ms, or "none"`}},
		{name: "what the library refuses", file: "port: 1\nheartbeat: 5ms\n", want: []string{`FILE:2: heartbeat: 5ms is below 10ms`}},
		{name: "a token that is a number", file: "auth_token: 12345\n", want: []string{`FILE:1: auth_token: is no text; write it in quotes`}},
		{name: "a token for no header", env: []string{"EVENTSOURCE_AUTH_TOKEN=a\nb"},
			want: []string{`EVENTSOURCE_AUTH_TOKEN: it has control characters and could not come in a header`}},
		{name: "public", file: "public: ['a b']\n", want: []string{`FILE:1: public: "a b" holds ' ': ` + rule}},
		{name: "public as a set", file: "public: {a: b}\n", want: []string{`FILE:1: public: a set of keys is no list; give one such as ["a", "b"]`}},
		{name: "a number in a list", file: "public: [5]\n", want: []string{`FILE:1: public: 5 in the list is no text; write it in quotes, "5"`}},
		{name: "half a list", env: []string{"EVENTSOURCE_PUBLIC=[a"},
			want: []string{`EVENTSOURCE_PUBLIC: is no list; give one such as "a, b" or ["a", "b"]`}},
		{name: "origin", file: "cors:\n  allow_origin: [https://a.example, https://b.example/]\n",
			want: []string{`FILE:2: cors.allow_origin: "https://b.example/" is no origin such as https://example.org, without a path, or "*"`}},
		{name: "credentials for all", file: "cors:\n  allow_origin: '*'\n  allow_credentials: true\n",
			want: []string{`FILE:3: cors.allow_credentials: needs origins that are listed by name, not "*"`}},
		{name: "credentials", file: "cors: {allow_credentials: perhaps}\n",
			want: []string{`FILE:1: cors.allow_credentials: "perhaps" is neither true nor false`}},
		{name: "headers", file: "headers: [a]\n",
			want: []string{`FILE:1: headers: a list is no set of names and values; give one such as {X-Name: value}`}},
		{name: "a header's value", file: "headers: {X-A: 5}\n", want: []string{`FILE:1: headers: X-A: 5 is no text; write it in quotes, "5"`}},
		{name: "a header of the server's", file: "headers: {content-type: a}\n",
			want: []string{`FILE:1: headers: content-type is the server's to set`}},
		{name: "events", file: "history: {events: many}\n",
			want: []string{`FILE:1: history.events: "many" is no number of events; give one such as 256, or 0 to keep none`}},
		{name: "negative events", file: "history: {events: -2}\n",
			want: []string{`FILE:1: history.events: -2 is below 0, which keeps none`}},
		{name: "no age", file: "history:\n\n  age: 0\n",
			want: []string{`FILE:3: history.age: 0 would keep nothing; for that set history.events to 0, for no bound give "none"`}},
		{name: "size", env: []string{"EVENTSOURCE_HISTORY__BYTES=64XB"},
			want: []string{`EVENTSOURCE_HISTORY__BYTES: "64XB" is no size; give one such as 64MiB, 16KiB or 4096`}},
		{name: "too large a size", file: "limits: {head: 99999999999GiB}\n",
			want: []string{`FILE:1: limits.head: "99999999999GiB" is no size; give one such as 64MiB, 16KiB or 4096`}},
		{name: "no size", file: "limits: {body: 0}\n", want: []string{`FILE:1: limits.body: 0 is below 1; give a size such as 64MiB, 16KiB or 4096`}},
		{name: "the library's bound", file: "limits: {body: 2GiB}\n", want: []string{`FILE:1: limits.body: 2147483648 is above 1 GiB`}},
		{name: "no channels", file: "limits: {channels: 0}\n", want: []string{`FILE:1: limits.channels: 0 is below 1`}},
		{name: "no consumers", file: "limits: {consumers: 0}\n", want: []string{`FILE:1: limits.consumers: 0 is below 1, or "none"`}},
		{name: "half a consumer", file: "limits: {consumers: 0.5}\n", want: []string{`FILE:1: limits.consumers: 0.5 is no whole number, or "none"`}},
		{name: "backend", file: "backend: redis://:geheim@redis\n",
			want: []string{`FILE:1: backend: there is no backend "redis:" in this version; there are "memory:" and "sqlite:FILE"`}},
		{name: "backend by flag", args: []string{"--backend", "geheim"}, want: []string{`--backend: is no URL; there are "memory:" and "sqlite:FILE"`}},
		{name: "level", args: []string{"--log-level", "loud"}, want: []string{`--log-level: "loud" is none of debug, info, warn, error`}},
		{name: "format", file: "log: {format: xml}\n", want: []string{`FILE:1: log.format: "xml" is none of text, json`}},

		{name: "sources", file: "sources: webhook\n",
			want: []string{`FILE:1: sources: a text is no list; give one such as [{type: webhook, channel: updates}]`}},
		{name: "a source that is none", file: "sources: [webhook]\n",
			want: []string{`FILE:1: sources[0]: a text is no source; give one such as {type: webhook, channel: updates}`}},
		// The text was quoted, with the password or the secret in it.
		{name: "sources that are broken", env: []string{`EVENTSOURCE_SOURCES=[{"type":"webhook","secret":"geheim"`},
			want: []string{`EVENTSOURCE_SOURCES: a text is no list; give one such as [{type: webhook, channel: updates}]`}},
		{name: "a source that is a URL", file: "sources: ['redis://u:geheim@h']\n",
			want: []string{`FILE:1: sources[0]: a text is no source; give one such as {type: webhook, channel: updates}`}},
		{name: "queues that are a URL", file: "queues: amqp://u:geheim@h\n",
			want: []string{`FILE:1: queues: a URL stands where its keys belong: path, nodes, pattern, expires, headers, event`}},
		{name: "a source without a type", file: "sources:\n  - channel: a\n",
			want: []string{`FILE:2: sources[0]: has no type; there are: amqp, nats, redis, webhook`}},
		{name: "another type", file: "sources:\n  - channel: a\n    type: kafka\n",
			want: []string{`FILE:3: sources[0].type: there is no source "kafka" in this version; there are: amqp, nats, redis, webhook`}},
		{name: "a source's key", file: "sources:\n  - type: webhook\n    channel: a\n    chanel: b\n",
			want: []string{`FILE:4: sources[0].chanel: unknown key; the nearest one is "channel"`}},
		{name: "a source's channel", file: "sources: [{type: webhook, channel: 'a b'}]\n",
			want: []string{`FILE:1: sources[0]: channel: "a b" holds ' ': ` + rule}},
		{name: "a source without a channel", env: []string{"EVENTSOURCE_SOURCES=[{type: webhook}]"},
			want: []string{`EVENTSOURCE_SOURCES: [0]: channel: none is given; name the one that events go to`}},
		{name: "a secret that is none", file: "sources: [{type: webhook, channel: a, secret: 5}]\n",
			want: []string{`FILE:1: sources[0].secret: is no text; write it in quotes`}},
		{name: "Redis with nothing to follow", file: "sources:\n  - type: redis\n    channel: a\n",
			want: []string{`FILE:2: sources[0]: it has nothing to follow: give subscribe, psubscribe or streams`}},
		{name: "Redis elsewhere", file: "sources:\n  - type: redis\n    url: https://:geheim@redis\n",
			want: []string{`FILE:3: sources[0].url: is no URL that begins with redis:// or rediss:// or unix://; give one such as redis://localhost:6379`}},
		{name: "a database of Redis", file: "sources: [{type: redis, url: 'redis://:geheim@redis/geheim', subscribe: a, channel: a}]\n",
			want: []string{`FILE:1: sources[0]: url: it is no URL of Redis; give one such as redis://localhost:6379/0, rediss://user:password@localhost or unix:///run/redis/redis.sock?db=0`}},
		{name: "a wildcard that no pattern has", file: "sources: [{type: redis, psubscribe: 'a.*', channel: 'b.{2}'}]\n",
			want: []string{`FILE:1: sources[0]: channel: "b.{2}": there is no {2} here; there are {name}, {1}`}},
		{name: "streams and channels of Redis", file: "sources: [{type: redis, subscribe: [a], streams: [b], channel: a}]\n",
			want: []string{`FILE:1: sources[0]: streams: they have a source of their own; leave out subscribe and psubscribe`}},
		{name: "a claim at once", file: "sources:\n  - type: redis\n    streams: [b]\n    claim: 0\n",
			want: []string{`FILE:4: sources[0].claim: 0 would take entries from whoever is at work on them; give a duration such as 1m`}},
		{name: "a claim within a roll-up", file: "sources: [{type: redis, streams: [b], channel: a, claim: 5s, rollup: 10s}]\n",
			want: []string{`FILE:1: sources[0]: claim: 5s is not twice as long as rollup, which is 10s: what is counted would be taken over`}},
		{name: "a roll-up without a unit", file: "sources: [{type: redis, subscribe: [b], channel: a, rollup: 17}]\n",
			want: []string{`FILE:1: sources[0].rollup: 17 has no unit; give a duration such as 17s, or "none"`}},
		{name: "a key of Redis", file: "sources:\n  - type: redis\n    stream: a\n",
			want: []string{`FILE:3: sources[0].stream: unknown key; the nearest one is "streams"`}},
		{name: "a path twice", file: "sources: [{type: webhook, channel: a}, {type: webhook, channel: b}]\n",
			want: []string{`FILE:1: sources: path "/api/events" is taken twice`}},

		{name: "a webhook's signature", file: "sources:\n  - type: webhook\n    channel: a\n    secret: geheim\n    signature: gitlab\n",
			want: []string{`FILE:5: sources[0].signature: "gitlab" is none of github, stripe`}},
		{name: "a signature without a secret", file: "sources:\n  - {type: webhook, channel: a, signature: github}\n",
			want: []string{`FILE:2: sources[0]: secret: none is given; with a signature it is the key that both sides know`}},
		{name: "a webhook's channel with variables", file: "sources:\n  - {type: webhook, channel: 'a.{body:type}'}\n",
			want: []string{`FILE:2: sources[0]: channel: "a.{body:type}" has variables, and no grant is for that; give a secret`}},
		{name: "NATS nowhere", file: "sources:\n  - type: nats\n    channel: a\n    subjects: a\n    url: 'redis://joe:geheim@b'\n",
			want: []string{`FILE:5: sources[0].url: is no URL that begins with nats:// or tls://; give one such as nats://localhost:4222`}},
		{name: "one of several is not NATS", file: "sources:\n  - {type: nats, channel: a, subjects: a, url: ['nats://a', 'joe:geheim@b']}\n",
			want: []string{`FILE:2: sources[0].url[1]: is no URL that begins with nats:// or tls://; give one such as nats://localhost:4222`}},
		{name: "NATS without a way in", file: "sources:\n  - {type: nats, channel: a, url: nats://a}\n",
			want: []string{`FILE:2: sources[0]: subjects: none are given; give some such as [orders.*], or a stream and a consumer`}},
		{name: "a stream without a consumer", file: "sources:\n  - {type: nats, channel: a, url: nats://a, stream: S, ack_wait: 10s}\n",
			want: []string{`FILE:2: sources[0]: consumer: none is given; name the durable consumer of the stream that remembers what has been published`}},
		{name: "a stream's ack_wait", file: "sources:\n  - {type: nats, channel: a, url: nats://a, stream: S, consumer: c, ack_wait: 10}\n",
			want: []string{`FILE:2: sources[0].ack_wait: 10 has no unit; give a duration such as 10s, or "none"`}},
		{name: "a stream's max_ack_pending", file: "sources:\n  - {type: nats, channel: a, url: nats://a, stream: S, consumer: c, max_ack_pending: 0}\n",
			want: []string{`FILE:2: sources[0].max_ack_pending: 0 is not between 1 and 2147483647`}},
		{name: "a key of a source of NATS", file: "sources:\n  - {type: nats, subject: a}\n",
			want: []string{`FILE:2: sources[0].subject: unknown key; the nearest one is "subjects"`}},
		{name: "a broker of AMQP that is none", file: "sources:\n  - type: amqp\n    url: http://u:geheim@host\n",
			want: []string{`FILE:3: sources[0].url: is no URL that begins with amqp:// or amqps://; give one such as amqp://localhost:5672`}},
		{name: "one of several brokers", file: "sources:\n  - type: amqp\n    url:\n      - amqp://a\n      - redis://u:geheim@host\n",
			want: []string{`FILE:5: sources[0].url[1]: is no URL that begins with amqp:// or amqps://; give one such as amqp://localhost:5672`}},
		{name: "a broker without a queue", file: "sources:\n  - type: amqp\n    url: amqp://u:geheim@host\n    channel: a\n",
			want: []string{`FILE:2: sources[0]: queue: none is given, and no exchange; name a queue, an exchange, or both`}},
		{name: "a broker with much that is wrong", file: "sources:\n  - {type: amqp, url: 'amqp://h?heartbeat=x', queue: q, queue_type: pile, offset: 5, channel: '{nme}'}\n",
			want: []string{"FILE:2: sources[0]: url: is no URL of AMQP, or a value in it is none; give one such as amqp://user:password@localhost:5672/vhost, with %-escapes for what is special in a URL",
				`FILE:2: sources[0]: queue_type: "pile" is none of classic, quorum, stream`,
				`FILE:2: sources[0]: offset: only a stream has one; say queue_type: stream, or leave it out`,
				`FILE:2: sources[0]: channel: "{nme}": there is no {nme} here; there are {name}, {exchange}, {queue}, {type}, {message_id}, {app_id}, {header:NAME}`}},
		{name: "a prefetch", file: "sources: [{type: amqp, prefetch: 0}]\n", want: []string{`FILE:1: sources[0].prefetch: 0 is not between 1 and 65535`}},
		{name: "durable", file: "sources: [{type: amqp, durable: perhaps}]\n", want: []string{`FILE:1: sources[0].durable: "perhaps" is neither true nor false`}},
		{name: "an offset", file: "sources: [{type: amqp, offset: [1]}]\n", want: []string{`FILE:1: sources[0].offset: a list is no text; write it in quotes, "[1]"`}},

		{name: "keys that are none", env: []string{"EVENTSOURCE_KEYS=geheim"},
			want: []string{`EVENTSOURCE_KEYS: is no list; give one such as [{token: "…", publish: ["news.*"]}]`}},
		{name: "a key that is none", file: "keys: [geheim]\n",
			want: []string{`FILE:1: keys[0]: is no key; give one such as {token: "…", publish: ["news.*"]}`}},
		{name: "a key without a token", file: "keys:\n  - publish: a\n", want: []string{`FILE:2: keys[0].token: none is given`}},
		{name: "a key's member", file: "keys:\n  - token: a\n  - token: b\n    publsh: a\n",
			want: []string{`FILE:4: keys[1].publsh: unknown key; the nearest one is "publish"`}},
		{name: "a key's wildcard", file: "keys:\n  - token: a\n    publish:\n      - a.*\n      - a.*.b\n",
			want: []string{`FILE:5: keys[0].publish[1]: "a.*.b" holds '*': ` + rule}},
		{name: "a key's wildcard in a variable", env: []string{`EVENTSOURCE_KEYS=[{token: a, subscribe: "a.*.b"}]`},
			want: []string{`EVENTSOURCE_KEYS: [0].subscribe[0]: "a.*.b" holds '*': ` + rule}},
		{name: "a hash that is none", file: "keys: [{token: 'sha256:geheim'}]\n",
			want: []string{`FILE:1: keys[0].token: after "sha256:" belong 64 hexadecimal digits`}},
		{name: "a token that is a number in a key", file: "keys: [{token: 5, admin: perhaps}]\n",
			want: []string{`FILE:1: keys[0].admin: "perhaps" is neither true nor false`, `FILE:1: keys[0].token: is no text; write it in quotes`}},
		{name: "a token twice", file: "keys:\n  - token: a\n  - token: a\n",
			want: []string{`FILE:3: keys[1].token: it is that of keys[0], too: give each key one of its own`}},

		{name: "jwt that is none", file: "jwt: geheim\n",
			want: []string{`FILE:1: jwt: is no set of keys and no list of them; give one such as {key_file: issuer.pem, audience: events}`}},
		{name: "an issuer that is none", file: "jwt:\n  - geheim\n",
			want: []string{`FILE:2: jwt[0]: is no set of keys; give one such as {key_file: issuer.pem, audience: events}`}},
		{name: "jwt without a key", file: "jwt:\n  issuer: a\n",
			want: []string{`FILE:1: jwt: has no key to check signatures with; give key, key_file or jwks_url`}},
		{name: "jwt with two keys", file: "jwt:\n  key: a\n  jwks_url: http://b\n",
			want: []string{`FILE:2: jwt.key: there is jwks_url, too; give one of them`}},
		{name: "an issuer with two keys", file: "jwt:\n  - key: a\n    key_file: b\n",
			want: []string{`FILE:3: jwt[0].key_file: there is key, too; give one of them`}},
		{name: "jwt's key", file: "jwt:\n  kay: a\n", want: []string{`FILE:2: jwt.kay: unknown key; the nearest one is "key"`}},
		{name: "jwt's key in a variable", env: []string{"EVENTSOURCE_JWT={kay: a}"},
			want: []string{`EVENTSOURCE_JWT: kay: unknown key; the nearest one is "key"`}},
		{name: "a short secret", file: "jwt:\n  issuer: a\n  key: geheim\n",
			want: []string{`FILE:3: jwt.key: the secret has 6 bytes; give one of at least 32 (RFC 7518, 3.2)`}},
		{name: "a short secret of the second", file: "jwt:\n  - key: 0123456789012345678901234567890123456789\n  - {key: geheim, algorithm: HS512}\n",
			want: []string{`FILE:3: jwt[1].key: the secret has 6 bytes; give one of at least 64 (RFC 7518, 3.2)`}},
		{name: "a secret for RS256", file: "jwt:\n  key: geheim\n  algorithm: RS256\n",
			want: []string{`FILE:2: jwt.key: it is no key for RS256: a secret is for HS256, HS384 and HS512`}},
		{name: "an algorithm", file: "jwt:\n  key: geheim\n  algorithm: none\n",
			want: []string{`FILE:3: jwt.algorithm: "none" is none of HS256, HS384, HS512, RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA`}},
		{name: "a file that is not there", file: "jwt:\n  key_file: /nowhere/geheim.pem\n",
			want: []string{`FILE:2: jwt.key_file: open /nowhere/geheim.pem: no such file or directory`}},
		{name: "PEM that is none", file: "jwt:\n  key: |\n    -----BEGIN PUBLIC KEY-----\n    MAA=\n    -----END PUBLIC KEY-----\n",
			want: []string{`FILE:2: jwt.key: holds a broken PUBLIC KEY: asn1: syntax error: sequence truncated`}},
		{name: "a set's URL", file: "jwt:\n  - jwks_url: ftp://joe:geheim@a\n",
			want: []string{`FILE:2: jwt[0].jwks_url: is no URL such as https://login.example.org/jwks.json`}},
		{name: "a secret for a set", file: "jwt: {jwks_url: http://a, algorithm: HS256}\n",
			want: []string{`FILE:1: jwt.algorithm: HS256 has a secret and no public keys: give one such as RS256`}},
		{name: "leeway", file: "jwt: {key: geheim, leeway: 5}\n", want: []string{`FILE:1: jwt.leeway: 5 has no unit; give a duration such as 5s`}},
		{name: "subject", file: "jwt: {key: geheim, subject_claim: ''}\n", want: []string{`FILE:1: jwt.subject_claim: is empty; give a claim such as sub`}},

		{name: "consumers of a channel", file: "limits: {consumers_per_channel: 0}\n",
			want: []string{`FILE:1: limits.consumers_per_channel: 0 is below 1, or "none"`}},
		{name: "no rate", file: "limits: {publishes_per_second: 0}\n",
			want: []string{`FILE:1: limits.publishes_per_second: 0 is not above 0; give a number such as 100 or 0.5, or "none"`}},
		{name: "a rate that is none", env: []string{"EVENTSOURCE_LIMITS__CONNECTS_PER_SECOND=5/s"},
			want: []string{`EVENTSOURCE_LIMITS__CONNECTS_PER_SECOND: "5/s" is no number; give one such as 100 or 0.5, or "none"`}},
		{name: "a rate that is no number", file: "limits: {publishes_per_second: .nan}\n",
			want: []string{`FILE:1: limits.publishes_per_second: NaN is not above 0; give a number such as 100 or 0.5, or "none"`}},
		{name: "too high a rate", file: "limits: {publishes_per_second: 1e10}\n",
			want: []string{`FILE:1: limits.publishes_per_second: 1e+10 is not between 0 and a billion`}},
		{name: "proxies", file: "trusted_proxies:\n  - 10.0.0.0/8\n  - proxy\n",
			want: []string{`FILE:3: trusted_proxies[1]: "proxy" is no address and no network; give one such as 10.0.0.1 or 10.0.0.0/8`}},

		{name: "a certificate without a key", file: "tls:\n  cert: a\n",
			want: []string{`FILE:2: tls.cert: there is no tls.key beside it; give the file of its private key`}},
		{name: "a key without a certificate", env: []string{"EVENTSOURCE_TLS__KEY=a"},
			want: []string{`EVENTSOURCE_TLS__KEY: there is no tls.cert beside it; give the file of its certificate`}},
		{name: "files and domains", file: "tls:\n  cert: a\n  key: b\n  acme:\n    domains: [events.example.org]\n",
			want: []string{`FILE:5: tls.acme.domains: there are tls.cert and tls.key, too; give files or domains`}},
		{name: "a certificate that is not there", file: "tls: {cert: /nowhere/a, key: b}\n",
			want: []string{`FILE:1: tls.cert: open /nowhere/a: no such file or directory`}},
		{name: "a wildcard's certificate", file: "tls:\n  acme:\n    domains: '*.example.org'\n",
			want: []string{`FILE:3: tls.acme.domains: "*.example.org" is a wildcard, for which this program gets no certificate (TLS-ALPN-01); name each host`}},
		{name: "a host with a port", file: "tls: {acme: {domains: ['a.example:443']}}\n",
			want: []string{`FILE:1: tls.acme.domains: "a.example:443" is no name of a host such as events.example.org`}},
		{name: "a host in one word", file: "tls: {acme: {domains: [localhost]}}\n",
			want: []string{`FILE:1: tls.acme.domains: "localhost" is no name of a host such as events.example.org`}},
		{name: "a host in Unicode", file: "tls: {acme: {domains: [münchen.example]}}\n",
			want: []string{`FILE:1: tls.acme.domains: "münchen.example" is not ASCII; give the name in Punycode, xn--…`}},
		{name: "an address without domains", file: "tls: {acme: {email: a@b.example}}\n",
			want: []string{`FILE:1: tls.acme.email: there are no tls.acme.domains; name the hosts that certificates are for`}},
		{name: "an ACME server", file: "tls: {acme: {domains: a.example, directory: 'http://joe:geheim@a.example'}}\n",
			want: []string{`FILE:1: tls.acme.directory: "http://********@a.example" is no URL such as https://acme-staging-v02.api.letsencrypt.org/directory`}},
		{name: "a key of acme", file: "tls:\n  acme:\n    domain: a.example\n",
			want: []string{`FILE:3: unknown key "tls.acme.domain"; the nearest one is "tls.acme.domains"`}},
		{name: "acme as a key", file: "acme: {domains: a.example}\n",
			want: []string{`FILE:1: unknown key "acme"; the nearest one is "tls.acme"`}},
		{name: "tls that is a value", file: "tls: true\n",
			want: []string{`FILE:1: tls: true stands where its keys belong: cert, key, acme`}},

		{name: "unknown variable", env: []string{"EVENTSOURCE_HISTORY_EVENTS=5"},
			want: []string{`EVENTSOURCE_HISTORY_EVENTS: unknown variable; the nearest one is EVENTSOURCE_HISTORY__EVENTS`}},
		{name: "variable in lower case", env: []string{"EVENTSOURCE_port=5"},
			want: []string{`EVENTSOURCE_port: unknown variable; the nearest one is EVENTSOURCE_PORT`}},

		{name: "settings of channels", file: "channels:\n  - match: news.*.x\n    retention: {events: 0}\n  - history: {evnts: 3}\n  - a\n  - match: b\n    retention: 5\n    consumers: 0\n",
			want: []string{
				`FILE:3: channels[0].retention.events: 0 is not between 1 and 2147483647, or "none"`,
				`FILE:4: channels[1].history.evnts: unknown key; the nearest one is "events"`,
				`FILE:5: channels[2]: "a" has no match; give one such as {match: "users.*", retention: {age: 2160h}}`,
				`FILE:8: channels[3].consumers: 0 is not between 1 and 2147483647, or "none"`,
				`FILE:7: channels[3].retention: 5 has neither events nor age; give one such as {events: 1000}`}},
		{name: "settings of channels that match none", file: "channels: [{match: 'news.*.x'}, {retention: {age: 1h}}]",
			want: []string{
				`FILE:1: channels[0].match: "news.*.x" holds '*': a channel name is 1 to 255 bytes of A-Z a-z 0-9 - _ ~ : @ + | in tokens joined by . or /`,
				`FILE:1: channels[1].match: a channel name of 0 bytes: a channel name is 1 to 255 bytes of A-Z a-z 0-9 - _ ~ : @ + | in tokens joined by . or /`}},
		{name: "a file's parameter", file: "backend: sqlite:a.db?sync=off",
			want: []string{`FILE:1: backend: the one parameter after sqlite:FILE is ?synchronous=full or ?synchronous=normal`}},
		{name: "no retention", file: "retention: {events: 0, age: 0s}",
			want: []string{`FILE:1: retention.events: 0 is not between 1 and 2147483647, or "none"`, `FILE:1: retention.age: 0 would retain nothing; for no bound give "none"`}},

		{name: "all at once", file: "prot: 1\ntimeout: 5\n", env: []string{"EVENTSOURCE_PORT=x"}, args: []string{"--log-level", "x"},
			want: []string{
				`FILE:1: unknown key "prot"; the nearest one is "port"`,
				`EVENTSOURCE_PORT: "x" is no whole number`,
				`FILE:2: timeout: 5 has no unit; give a duration such as 5s`,
				`--log-level: "x" is none of debug, info, warn, error`,
			}},
	} {
		t.Run(test.name, func(t *testing.T) {
			args := append([]string{"config", "--check"}, test.args...)
			file := ""
			if test.file != "" {
				file = write(t, "config.yml", test.file)
				args = append(args, "-c", file)
			}
			want := "eventsource: configuration: " + test.want[0] + "\n"
			if len(test.want) > 1 {
				want = "eventsource: configuration:\n  " + strings.Join(test.want, "\n  ") + "\n"
			}
			run(t, test.env, "", args...).wants(t, statusUsage, "", strings.ReplaceAll(want, "FILE:", file+":"))
		})
	}
}

func TestLaterLayersWin(t *testing.T) {
	first := write(t, "first.yml", "port: 1\nhost: first\ntimeout: 1s\nhistory: {events: 1, age: 1m}\nheaders: {X-A: a}\nlog: {level: debug}\n")
	second := write(t, "second.yml", "port: 2\nhost: second\ntimeout: 2s\nhistory: {events: 2}\nheaders: {X-B: b}\nretry:\n")
	var stdout, stderr strings.Builder
	m := &Main{Stdout: &stdout, Stderr: &stderr, Files: []string{first, "/nowhere/config.yml", second},
		Env: []string{"EVENTSOURCE_PORT=3", "EVENTSOURCE_HOST=third", "EVENTSOURCE_CORS__ALLOW_METHOD=GET, POST", "EVENTSOURCE_URL=http://a"}}
	if status := m.Run(t.Context(), []string{"config", "--port", "4"}); status != 0 {
		t.Fatalf("ended with %d: %s", status, &stderr)
	}
	for _, want := range []string{
		"# --port\nport: 4\n",
		"# EVENTSOURCE_HOST\nhost: third\n",
		"# " + second + ":3\ntimeout: 2s\n",
		"\nretry: 3s\n", // empty in a file is absent
		"  # " + second + ":4\n  events: 2\n",
		"  # " + first + ":4\n  age: 1m\n",
		"  # EVENTSOURCE_CORS__ALLOW_METHOD\n  allow_method:\n    - GET\n    - POST\n",
		"headers:\n  X-B: b\n", // a set is replaced whole
		"  level: debug\n",
	} {
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("%q is not in:\n%s", want, &stdout)
		}
	}
	if strings.Contains(stdout.String(), "X-A") {
		t.Errorf("the header of the first file is still there:\n%s", &stdout)
	}

	named := write(t, "named.yml", "host: named\n")
	stdout.Reset()
	m.Env = nil
	if status := m.Run(t.Context(), []string{"config", "-c", named}); status != 0 {
		t.Fatalf("ended with %d: %s", status, &stderr)
	}
	if !strings.Contains(stdout.String(), "host: named\n") || !strings.Contains(stdout.String(), "\nport: 8080\n") {
		t.Errorf("--config is not read in place of the files:\n%s", &stdout)
	}
}

func TestConfigMasksSecretsAndReadsBackTheSame(t *testing.T) {
	cert, key := certificateFiles(t, t.TempDir(), "a.example")
	file := write(t, "config.yml", `auth_token: geheim
keys:
  - {token: geheim1, subscribe: [a, "b.*"], publish: all}
  - {token: "sha256:`+strings.Repeat("5ec7e7", 10)+`dead", admin: true}
jwt:
  - {jwks_url: "https://joe:geheim@login.example/keys?key=geheim", issuer: https://login.example, audience: [a, b], leeway: 90s}
  - {key_file: `+key+`, algorithm: ES256, require_expiry: false, subject_claim: email}
trusted_proxies: [10.1.2.3/8, "::1", "::ffff:1.2.3.4"]
tls: {cert: `+cert+`, key: `+key+`}
heartbeat: none
history: {events: 0, age: none, bytes: 1000}
limits: {consumers: 5, body: 512KiB, consumers_per_address: 7, publishes_per_second: 0.5, connects_per_second: 100}
cors: {allow_origin: [https://a.example, https://b.example]}
headers: {X-A.b: "5"}
public: []
sources:
  - {type: webhook, channel: a, secret: geheim2, event: e}
  - {type: webhook, path: /hook, channel: "a.{body:type}", id: "{body:id}", secret: geheim3, signature: stripe}
  - {type: nats, url: "nats://joe:geheim4@a:4222, tls://geheim5@b", subjects: [a.*, "b.>"], queue_group: g, channel: "{1}", json: true}
  - {type: nats, url: nats://a, stream: S, consumer: c, filter: a.*, deliver: "5", ack_wait: 20s, max_ack_pending: 500, dead_letter: dead, channel: "{1}", rollup: 17ms}
  - {type: redis, url: "rediss://joe:geheim@redis:6380/3", psubscribe: "a.*", channel: "b.{1}", rollup: 17ms}
  - {type: redis, streams: [s, t], group: g, consumer: c, start: "0", field: f, claim: 90s, dead_letter: d, channel: all, id: "{id}", json: true}
  - {type: amqp, url: "amqp://joe:geheim@host/v?cacertfile=geheim", queue: q, durable: false, channel: a}
  - {type: amqp, url: ["amqp://joe:geheim@one", "amqps://joe:geheim@two"], queue: s, queue_type: stream, offset: 7, prefetch: 9, channel: "{name}"}
queues: {path: /, nodes: ["amqp://joe:geheim@broker/v%2Fh?heartbeat=5", amqps://broker2], pattern: "q-${query:id}", expires: 1800, headers: {X-B: c}, event: "{type}"}
`)
	comments := regexp.MustCompile(`(?m)^ *#.*\n`)
	r := run(t, nil, "", "config", "-c", file)
	if r.status != 0 {
		t.Fatalf("ended with %d: %s", r.status, r.stderr)
	}
	if strings.Contains(r.stdout, "geheim") || strings.Contains(r.stdout, "5ec7e7") || strings.Contains(r.stdout, "joe") {
		t.Errorf("a secret is shown:\n%s", r.stdout)
	}
	for _, want := range []string{"\n  - 10.0.0.0/8\n  - ::1\n  - 1.2.3.4\n", "\n  publishes_per_second: 0.5\n", "\n  connects_per_second: 100\n",
		"https://********@login.example/keys?********", "\n    - amqp://********@broker/v%2Fh?********\n    - amqps://broker2\n",
		"\n  pattern: q-${query:id}\n", "\n  expires: 30m\n", "    leeway: 1m30s\n", "    require_expiry: false\n",
		"  url: rediss://********@redis:6380/3\n", "  psubscribe:\n", "  rollup: 17ms\n", "  claim: 1m30s\n", "  url: redis://localhost:6379\n",
		"    url: amqp://********@host/v?********\n", "    durable: false\n", "      - amqp://********@one\n      - amqps://********@two\n", "    offset: \"7\"\n", "    prefetch: 9\n"} {
		if !strings.Contains(comments.ReplaceAllString(r.stdout, ""), want) {
			t.Errorf("%q is not in:\n%s", want, r.stdout)
		}
	}
	again := run(t, nil, "", "config", "-c", write(t, "config.yml", r.stdout))
	if got, want := comments.ReplaceAllString(again.stdout, ""), comments.ReplaceAllString(r.stdout, ""); got != want {
		t.Errorf("read back it is\n%s\nand was\n%s\n%s", got, want, again.stderr)
	}
	run(t, nil, "", "config", "--check", "-c", file).wants(t, 0, "the configuration is right\n", "")
}

func TestNoneAndZeroReachTheSettings(t *testing.T) {
	file := write(t, "config.yml", "heartbeat: 0\nhistory: {events: 0, age: -1}\npublic: []\nport: 0\n")
	m := &Main{Env: []string{`EVENTSOURCE_SOURCES=[{"type": "webhook", "channel": "a"}]`, "EVENTSOURCE_HEADERS={X-A: b}", "EVENTSOURCE_LIMITS__CONSUMERS=none"}}
	cmd := m.serveCommand()
	if err := cmd.ParseFlags([]string{"-c", file}); err != nil {
		t.Fatal(err)
	}
	c, err := m.configure(cmd.Flags())
	if err != nil {
		t.Fatal(err)
	}
	s := c.settings
	if s.Heartbeat != -1 || s.History.Events != -1 || s.History.Age != -1 || s.Public == nil || len(s.Public) != 0 || s.Limits.Consumers != 0 {
		t.Errorf("the settings are %+v", s)
	}
	if c.address() != "127.0.0.1:0" || s.Headers["X-A"] != "b" || len(s.Sources) != 1 {
		t.Errorf("the configuration is %+v", c)
	}
	if src, ok := s.Sources[0].(*webhook.Source); !ok || src.Path() != "/api/events" || src.Channel() != "a" {
		t.Errorf("the source is %+v", s.Sources[0])
	}
}

// Kubernetes gives every container of a namespace variables for each service,
// and a service is easily called eventsource.
func TestVariablesOfKubernetesArePassedOver(t *testing.T) {
	env := []string{
		"EVENTSOURCE_SERVICE_HOST=10.0.0.1", "EVENTSOURCE_SERVICE_PORT=80", "EVENTSOURCE_SERVICE_PORT_HTTP=80",
		"EVENTSOURCE_PORT=tcp://10.0.0.1:80", "EVENTSOURCE_PORT_80_TCP=tcp://10.0.0.1:80",
		"EVENTSOURCE_PORT_80_TCP_ADDR=10.0.0.1", "EVENTSOURCE_PORT_80_TCP_PORT=80", "EVENTSOURCE_PORT_80_TCP_PROTO=tcp",
	}
	run(t, env, "", "config", "--check").wants(t, 0, "the configuration is right\n", "")
}

func TestEveryKeyIsDocumentedAndEveryDocumentedKeyExists(t *testing.T) {
	page, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z_.]+)` \\| (.*?) \\| `(EVENTSOURCE_[A-Z_]+)` \\| .+ \\|$").FindAllStringSubmatch(string(page), -1) {
		documented = append(documented, fmt.Sprintf("%s %s %s", row[1], row[3], row[2]))
	}
	c := &config{}
	var keys []string
	for _, k := range c.keys() {
		if err := k.value.set(k.initial); err != nil {
			t.Fatal(k.name, err)
		}
		initial := fmt.Sprint(k.value.show())
		switch k.value.show().(type) {
		case []string:
			initial = strings.ReplaceAll(strings.ReplaceAll(initial, "*", `"*"`), " ", ", ")
		case map[string]string:
			initial = "{}"
		}
		if initial == "" || initial == "memory:" {
			initial = `"` + initial + `"`
		}
		keys = append(keys, fmt.Sprintf("%s %s `%s`", k.name, variable(k.name), initial))
	}
	slices.Sort(keys)
	slices.Sort(documented)
	for _, k := range keys {
		if !slices.Contains(documented, k) {
			t.Errorf("docs/configuration.md has no row for: %s", k)
		}
	}
	for _, d := range documented {
		if !slices.Contains(keys, d) {
			t.Errorf("docs/configuration.md has a row for what is not so: %s", d)
		}
	}
	for what, members := range map[string][]string{
		"a key's":     {"token", "subscribe", "publish", "admin"},
		"a channel's": {"match", "history", "retention", "consumers"},
		"jwt's":       {"algorithm", "key", "key_file", "jwks_url", "issuer", "audience", "subject_claim", "leeway", "require_expiry"},
	} {
		for _, member := range members {
			if !strings.Contains(string(page), "\n| `"+member+"` | ") {
				t.Errorf("docs/configuration.md says nothing of %s %s", what, member)
			}
		}
	}
}

func TestEveryKeyOfASourceIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/sources.md")
	if err != nil {
		t.Fatal(err)
	}
	for kind, title := range map[string]string{"redis": "Redis", "amqp": "AMQP", "nats": "NATS", "webhook": "Webhook"} {
		_, chapter, found := strings.Cut(string(page), "\n## "+title+"\n")
		chapter, _, _ = strings.Cut(chapter, "\n## ")
		if !found {
			t.Errorf("docs/sources.md has no chapter on %s", title)
			continue
		}
		for _, m := range (&sourceConfig{kind: kind}).members() {
			if !regexp.MustCompile("(?m)^\\| .*`" + m.name + "`").MatchString(chapter) {
				t.Errorf("docs/sources.md has no row for the key %s of %s", m.name, kind)
			}
		}
	}
}

func TestExamplesAreRight(t *testing.T) {
	files, err := filepath.Glob("../../examples/*.yml")
	if err != nil || len(files) < 2 {
		t.Fatal(files, err)
	}
	for i := range files {
		if files[i], err = filepath.Abs(files[i]); err != nil {
			t.Fatal(err)
		}
	}
	// What is to be where mercurio was.
	t.Chdir(t.TempDir())
	if err := errors.Join(os.Mkdir("auth", 0o700), os.WriteFile("auth/private-key", []byte(strings.Repeat("secret", 10)), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		run(t, nil, "", "config", "--check", "-c", file).wants(t, 0, "the configuration is right\n", "")
	}
}

func FuzzConfigurationIsReadOrRefused(f *testing.F) {
	for _, seed := range []string{"", "port: 1\n", "history: {events: 0}\n", "sources:\n  - type: webhook\n    channel: a\n",
		"a: &b [1]\npublic: *b\n", "headers: {? [a] : b}\n", "port: !!str 5\n", "<<: {port: 5}\n",
		"keys: [{token: a, publish: b}]\njwt: {key: a}\n", "jwt: [{jwks_url: 'http://a@b?c'}]\n", "tls: {acme: {domains: a.b}}\ntrusted_proxies: ::1\n",
		"limits: {publishes_per_second: 1e3}\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		c, wrong := &config{}, &configError{}
		keys := c.keys()
		for name, s := range readFile("config.yml", content, keys, wrong) {
			i := slices.IndexFunc(keys, func(k key) bool { return k.name == name })
			if err := keys[i].value.set(s.value); err == nil {
				keys[i].value.show()
			}
			s.origin.at(name)
		}
	})
}
