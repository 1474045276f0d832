package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/queue"
)

// A config is what the program serves with: defaults, then files, then
// variables, then flags.
type config struct {
	settings   eventsource.Settings
	port       uint // as configured: 0 is any free port
	operations string
	backend    string
	sources    []sourceConfig
	queues     queuesConfig
	jwt        jwtConfigs
	tls        tlsConfig
	logLevel   string
	logFormat  string

	signers     []any        // what signs for each of jwt; nil: it is not at hand
	certificate *certificate // of tls.cert and tls.key

	origins map[string]origin // of each key that is not at its default
}

// A key is one setting of the configuration.
type key struct {
	name    string // as in a file, with dots: "history.events"
	initial any    // what it is without being set
	value   value
}

// keys returns every key in the order in which they are shown.
func (c *config) keys() []key {
	s := &c.settings
	unlimited, anyNumber := 0, -1
	atLeastOne := func(to *int) value { return number[int]{to, 1, math.MaxInt, nil} }
	return []key{
		{"host", "127.0.0.1", text{&s.Host}},
		{"port", "8080", number[uint]{&c.port, 0, 65535, nil}},
		{"base_path", "", text{&s.BasePath}},
		{"operations", "", text{&c.operations}},
		{"timeout", "5s", duration{to: &s.Timeout, zero: "0 would cut everybody off; give a duration such as 5s"}},
		{"heartbeat", "15s", duration{to: &s.Heartbeat, none: true}},
		{"retry", "3s", duration{to: &s.Retry, zero: "0 would have consumers come back without a pause; give a duration such as 3s"}},
		{"drain", "10s", duration{to: &s.Drain, zero: "0 would cut publishes off; give a duration such as 10s"}},
		{"auth_token", "", secret{&s.AuthToken}},
		{"public", "*", list{&s.Public}},
		{"keys", []any{}, keyList{&s.Keys}},
		{"jwt", map[string]any{}, issuerList{&c.jwt}},
		{"cors.allow_origin", "", origins{&s.CorsAllowOrigin}},
		{"cors.allow_method", "GET", list{&s.CorsAllowMethod}},
		{"cors.allow_headers", "", list{&s.CorsAllowHeaders}},
		{"cors.allow_credentials", false, toggle{&s.CorsAllowCredentials}},
		{"headers", map[string]any{}, dictionary{&s.Headers}},
		{"history.events", "256", count{&s.History.Events}},
		{"history.age", "10m", duration{to: &s.History.Age, none: true, zero: `0 would keep nothing; for that set history.events to 0, for no bound give "none"`}},
		{"history.bytes", "64MiB", size[int64]{&s.History.Bytes}},
		{"retention.events", "10000", number[int]{&s.Retention.Events, 1, math.MaxInt32, &anyNumber}},
		{"retention.age", "720h", duration{to: &s.Retention.Age, none: true, zero: `0 would retain nothing; for no bound give "none"`}},
		{"channels", []any{}, ruleList{&s.Channels}},
		{"limits.body", "1MiB", size[int64]{&s.Limits.Body}},
		{"limits.head", "16KiB", size[int]{&s.Limits.Head}},
		{"limits.channels", "1000000", atLeastOne(&s.Limits.Channels)},
		{"limits.channels_per_consumer", "100", atLeastOne(&s.Limits.ChannelsPerConsumer)},
		{"limits.idempotency_keys", "100000", atLeastOne(&s.Limits.IdempotencyKeys)},
		{"limits.consumers", "none", number[int]{&s.Limits.Consumers, 1, math.MaxInt, &unlimited}},
		{"limits.consumers_per_channel", "none", number[int]{&s.Limits.ConsumersPerChannel, 1, math.MaxInt, &unlimited}},
		{"limits.consumers_per_address", "none", number[int]{&s.Limits.ConsumersPerAddress, 1, math.MaxInt, &unlimited}},
		{"limits.publishes_per_second", "none", rate{&s.Limits.PublishesPerSecond}},
		{"limits.connects_per_second", "none", rate{&s.Limits.ConnectsPerSecond}},
		{"trusted_proxies", []any{}, prefixes{&s.TrustedProxies}},
		{"tls.cert", "", text{&c.tls.cert}},
		{"tls.key", "", text{&c.tls.key}},
		{"tls.acme.domains", []any{}, list{&c.tls.domains}},
		{"tls.acme.email", "", text{&c.tls.email}},
		{"tls.acme.cache", "", text{&c.tls.cache}},
		{"tls.acme.directory", "", text{&c.tls.directory}},
		{"backend", "memory:", backendURL{&c.backend}},
		{"sources", []any{}, sourceList{&c.sources}},
		{"queues.path", defaultQueuePath, text{&c.queues.path}},
		{"queues.nodes", []any{}, brokers{&c.queues.Nodes}},
		{"queues.pattern", queue.DefaultPattern, text{&c.queues.Pattern}},
		{"queues.expires", "30m", expiry{&c.queues.Expires}},
		{"queues.headers", map[string]any{}, responseHeaders{&c.queues.Header}},
		{"queues.event", "", text{&c.queues.Event}},
		{"log.level", "info", choice{&c.logLevel, []string{"debug", "info", "warn", "error"}}},
		{"log.format", "text", choice{&c.logFormat, []string{"text", "json"}}},
	}
}

// asks reports whether a token is asked for.
func (c *config) asks() bool {
	return c.settings.GetAuthToken() != "" || len(c.settings.Keys) > 0 || len(c.settings.Issuers) > 0
}

// level returns the least urgent level that is logged.
func (c *config) level() slog.Level {
	var l slog.Level
	if err := l.UnmarshalText([]byte(c.logLevel)); err != nil {
		panic("eventsource: a level that was chosen from a list: " + err.Error())
	}
	return l
}

// address returns what the program listens on.
func (c *config) address() string {
	return net.JoinHostPort(c.settings.Host, strconv.FormatUint(uint64(c.port), 10))
}

// A configError is everything that is wrong with the configuration, each with
// where it stands and what would be right.
type configError struct{ wrong []string }

func (e *configError) Error() string {
	if len(e.wrong) == 1 {
		return "configuration: " + e.wrong[0]
	}
	return "configuration:\n  " + strings.Join(e.wrong, "\n  ")
}

func (e *configError) add(what string) { e.wrong = append(e.wrong, what) }

func (e *configError) addf(format string, args ...any) { e.add(fmt.Sprintf(format, args...)) }

// An origin says where a value came from.
type origin struct {
	name  string         // a file, a variable or a flag
	lines map[string]int // of a file: where each key stands
}

// at returns where a key, or a member of its value, stands.
func (o origin) at(path string) string {
	for {
		if line, ok := o.lines[path]; ok {
			return o.name + ":" + strconv.Itoa(line)
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			return o.name
		}
		path = path[:i]
	}
}

// message returns what is wrong with a key: a file's line has many words, a
// variable or a flag is the key's own name.
func (o origin) message(path string, err error) string {
	member := ""
	if m, ok := errors.AsType[*memberError](err); ok {
		member, err = m.path, m.err
	}
	named := strings.TrimPrefix(member, ".")
	switch {
	case o.lines != nil:
		return fmt.Sprintf("%s: %s%s: %v", o.at(path+member), path, member, err)
	case named != "":
		return fmt.Sprintf("%s: %s: %v", o.name, named, err)
	}
	return fmt.Sprintf("%s: %v", o.name, err)
}

// A setting is what a layer has for a key.
type setting struct {
	value  any
	origin origin
}

// A layer is the settings of one origin by the names of their keys.
type layer map[string]setting

// configure reads the configuration: files, variables and flags; and the files that
// it names.
func (m *Main) configure(flags *pflag.FlagSet) (*config, error) {
	c, err := m.read(flags)
	if err != nil {
		return nil, err
	}
	if err := c.build(); err != nil {
		return nil, err
	}
	return c, nil
}

// read reads the configuration without the files that it names.
func (m *Main) read(flags *pflag.FlagSet) (*config, error) {
	c := &config{origins: map[string]origin{}}
	keys := c.keys()
	wrong := &configError{}

	merged := layer{}
	for _, k := range keys {
		merged[k.name] = setting{value: k.initial}
	}
	for _, l := range m.fileLayers(flags, keys, wrong) {
		maps.Copy(merged, l)
	}
	maps.Copy(merged, m.variables(keys, wrong))
	maps.Copy(merged, flagLayer(flags))

	for _, k := range keys {
		set := merged[k.name]
		if set.origin.name != "" {
			c.origins[k.name] = set.origin
		}
		for _, err := range split(k.value.set(set.value)) {
			wrong.add(set.origin.message(k.name, err))
		}
	}
	if len(wrong.wrong) > 0 {
		return nil, wrong
	}
	c.settings.Port = c.port
	return c, nil
}

// build makes the sources, reads keys and certificates, and has the library look at
// the settings.
func (c *config) build() error {
	wrong := &configError{}
	if c.operations != "" {
		address, err := operationsAddress(c.operations)
		if err != nil {
			wrong.add(c.message("operations", err))
		}
		c.operations = address
	}
	for i := range c.jwt.all {
		is, signer, err := c.jwt.all[i].open()
		if m, ok := errors.AsType[*memberError](err); ok {
			wrong.add(c.message("jwt", &memberError{c.jwt.member(i) + m.path, m.err}))
			continue
		}
		c.settings.Issuers = append(c.settings.Issuers, is)
		c.signers = append(c.signers, signer)
	}
	if len(wrong.wrong) > 0 {
		return wrong // or else issuers have other numbers
	}
	if key, err := c.loadTLS(); err != nil {
		wrong.add(c.message(key, err))
	}
	for i := range c.sources {
		src, err := c.sources[i].open()
		if err != nil {
			for _, err := range split(err) {
				wrong.add(c.message("sources", &memberError{fmt.Sprintf("[%d]", i), err}))
			}
			continue
		}
		c.settings.Sources = append(c.settings.Sources, src)
	}
	for _, err := range c.checkQueues() {
		wrong.add(err)
	}
	for _, err := range split(c.settings.Validate()) {
		name, detail, _ := strings.Cut(err.Error(), ": ")
		err = errors.New(detail)
		if i := strings.IndexByte(name, '['); i >= 0 {
			member := name[i:]
			if name = name[:i]; name == "jwt" {
				member = c.jwt.configured(member)
			}
			err = &memberError{member, err}
		}
		wrong.add(c.message(name, err))
	}
	if len(wrong.wrong) > 0 {
		return wrong
	}
	return nil
}

// message returns what is wrong with a key, and where it was set.
func (c *config) message(key string, err error) string {
	o, ok := c.origins[key]
	if !ok {
		return origin{name: key}.message(key, err)
	}
	return o.message(key, err)
}

// split returns the errors that errors.Join joined.
func split(err error) []error {
	var joined interface{ Unwrap() []error }
	switch {
	case err == nil:
		return nil
	case errors.As(err, &joined):
		return joined.Unwrap()
	}
	return []error{err}
}

// operationsAddress returns where the pages of the operators are served:
// without a host on the loopback interface.
func operationsAddress(s string) (string, error) {
	if _, err := strconv.ParseUint(s, 10, 16); err == nil {
		s = ":" + s
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", fmt.Errorf("%q is no address; give one such as 127.0.0.1:9090 or :9090", s)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", fmt.Errorf("%q has no port between 0 and 65535; give an address such as 127.0.0.1:9090", s)
	}
	if host == "" {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port), nil
}

// fileLayers reads --config, or else the files that are there.
func (m *Main) fileLayers(flags *pflag.FlagSet, keys []key, wrong *configError) []layer {
	files := m.Files
	named := ""
	if f := flags.Lookup("config"); f != nil && f.Changed {
		named = f.Value.String()
		files = []string{named}
	}
	var layers []layer
	for _, file := range files {
		content, err := os.ReadFile(file)
		switch {
		case errors.Is(err, fs.ErrNotExist) && named == "":
		case errors.Is(err, fs.ErrNotExist):
			wrong.addf("--config: there is no file %s", named)
		case err != nil:
			wrong.addf("%v", err)
		default:
			layers = append(layers, readFile(file, content, keys, wrong))
		}
	}
	return layers
}

// withoutValues returns what the parser of YAML says, but for what it quotes of the
// file, which may be a secret: only which key stands twice may be told.
func withoutValues(message string) string {
	if strings.HasPrefix(message, "mapping key ") {
		return message
	}
	message, _, _ = strings.Cut(message, `"`)
	return strings.TrimRight(message, " :")
}

// readFile reads one YAML file.
func readFile(file string, content []byte, keys []key, wrong *configError) layer {
	tree, err := parser.ParseBytes(content, 0)
	var document any
	if err == nil {
		err = yaml.Unmarshal(content, &document)
	}
	if err != nil {
		if at, ok := errors.AsType[yaml.Error](err); ok && at.GetToken() != nil {
			wrong.addf("%s:%d: no YAML: %s", file, at.GetToken().Position.Line, withoutValues(at.GetMessage()))
		} else {
			wrong.addf("%s: no YAML: what begins with * or & and is text belongs in quotes", file)
		}
		return nil
	}
	if len(tree.Docs) > 1 {
		wrong.addf("%s: has %d YAML documents; one is read", file, len(tree.Docs))
		return nil
	}
	from := origin{name: file, lines: map[string]int{}}
	for _, d := range tree.Docs {
		findLines(d.Body, "", from.lines)
	}
	l := layer{}
	switch document := document.(type) {
	case nil:
	case map[string]any:
		l.add(document, "", from, keys, wrong)
	default:
		wrong.addf("%s: holds no keys; begin with one such as port: 8080", file)
	}
	return l
}

// findLines notes the line of each key.
func findLines(n ast.Node, path string, lines map[string]int) {
	switch n := n.(type) {
	case *ast.MappingNode:
		for _, v := range n.Values {
			findLines(v, path, lines)
		}
	case *ast.MappingValueNode:
		at := n.Key.GetToken()
		path = join(path, at.Value)
		lines[path] = at.Position.Line
		findLines(n.Value, path, lines)
	case *ast.SequenceNode:
		for i, v := range n.Values {
			member := fmt.Sprintf("%s[%d]", path, i)
			if t := v.GetToken(); t != nil {
				lines[member] = t.Position.Line
			}
			findLines(v, member, lines)
		}
	case *ast.AnchorNode:
		findLines(n.Value, path, lines)
	case *ast.TagNode:
		findLines(n.Value, path, lines)
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// add takes over what a file has below path. What is empty in the file is left
// as it was.
func (l layer) add(section map[string]any, path string, from origin, keys []key, wrong *configError) {
	for _, name := range slices.Sorted(maps.Keys(section)) {
		v, full := section[name], join(path, name)
		below, isSection := v.(map[string]any)
		switch {
		case slices.ContainsFunc(keys, func(k key) bool { return k.name == full }):
			if v != nil {
				l[full] = setting{v, from}
			}
		case slices.ContainsFunc(keys, func(k key) bool { return strings.HasPrefix(k.name, full+".") }):
			if isSection {
				l.add(below, full, from, keys, wrong)
			} else if v != nil {
				wrong.add(from.message(full, fmt.Errorf("%s stands where its keys belong: %s",
					described(v), strings.Join(children(full, keys), ", "))))
			}
		default:
			wrong.addf("%s: unknown key %q; the nearest one is %q", from.at(full), full, nearestKey(full, keys))
		}
	}
}

// children returns the names below a section.
func children(section string, keys []key) []string {
	var names []string
	for _, k := range keys {
		if name, ok := strings.CutPrefix(k.name, section+"."); ok {
			if name, _, _ = strings.Cut(name, "."); !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// prefix begins the variables of the configuration.
const prefix = "EVENTSOURCE_"

// clientVariables are read by the commands that talk to a server.
var clientVariables = []string{"EVENTSOURCE_URL"}

// linked are the variables that Kubernetes sets beside a service that is called
// eventsource.
var linked = regexp.MustCompile(`^EVENTSOURCE_(SERVICE_(HOST|PORT(_.*)?)|PORT_[0-9]+_(TCP|UDP|SCTP)(_ADDR|_PORT|_PROTO)?)$`)

// variables reads the environment.
func (m *Main) variables(keys []key, wrong *configError) layer {
	l := layer{}
	for _, pair := range m.Env {
		name, v, _ := strings.Cut(pair, "=")
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok || slices.Contains(clientVariables, name) || linked.MatchString(name) ||
			name == "EVENTSOURCE_PORT" && strings.Contains(v, "://") {
			continue
		}
		full := strings.ReplaceAll(strings.ToLower(rest), "__", ".")
		if !slices.ContainsFunc(keys, func(k key) bool { return variable(k.name) == name }) {
			wrong.addf("%s: unknown variable; the nearest one is %s", name, variable(nearestKey(full, keys)))
			continue
		}
		l[full] = setting{v, origin{name: name}}
	}
	return l
}

// variable returns the name of the variable of a key.
func variable(key string) string {
	return prefix + strings.ToUpper(strings.ReplaceAll(key, ".", "__"))
}

// flagKeys are the keys that are flags, too, by the names of the flags.
var flagKeys = map[string]string{
	"host": "host", "port": "port", "auth-token": "auth_token", "backend": "backend", "log-level": "log.level",
}

// flagLayer takes over the flags that were given.
func flagLayer(flags *pflag.FlagSet) layer {
	l := layer{}
	flags.Visit(func(f *pflag.Flag) {
		if key, ok := flagKeys[f.Name]; ok {
			l[key] = setting{f.Value.String(), origin{name: "--" + f.Name}}
		}
	})
	return l
}

// nearestKey returns the key, or section, that name was most likely meant to
// be: a neighbour, or one of the same name elsewhere.
func nearestKey(name string, keys []key) string {
	last := func(s string) string { return s[strings.LastIndexByte(s, '.')+1:] }
	known := map[string]bool{}
	for _, k := range keys {
		known[k.name] = true
		for i, c := range k.name {
			if c == '.' {
				known[k.name[:i]] = true
			}
		}
	}
	best, least := "", math.MaxInt
	for _, k := range slices.Sorted(maps.Keys(known)) {
		d := 2 * min(distance(name, k), distance(last(name), last(k))+1)
		if strings.TrimSuffix(name, last(name)) != strings.TrimSuffix(k, last(k)) {
			d++
		}
		if d < least {
			best, least = k, d
		}
	}
	return best
}

// nearest returns the word that s was most likely meant to be.
func nearest(s string, words []string) string {
	return slices.MinFunc(words, func(a, b string) int { return distance(s, a) - distance(s, b) })
}

// distance is how many characters must be put in, left out, changed or swapped
// with the next to make b of a.
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			change := rows[i-1][j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}

// settingsFlags gives a command the flags that are settings.
func settingsFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringP("config", "c", "", "read `FILE` in place of /etc/eventsource/config.yml and config.yml beside the program")
	f.String("host", "", "listen on this name or `ADDRESS` (127.0.0.1)")
	f.String("port", "", "listen on this `PORT`; 0 is any free one (8080)")
	f.String("auth-token", "", "ask for this `TOKEN`; EVENTSOURCE_AUTH_TOKEN keeps it out of the process list")
	f.String("backend", "", "keep events in this `URL`: memory:, sqlite:FILE (memory:)")
	f.String("log-level", "", "log debug, info, warn or error and what is more urgent (info)")
}
