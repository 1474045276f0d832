package intake_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/backend/sqlite"
	"github.com/railsmechanic/eventsource/internal/intake"
	"github.com/railsmechanic/eventsource/internal/sourcetest"
)

// values are what stands for variables.
func values(pairs ...string) func(string) string {
	return func(variable string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == variable {
				return pairs[i+1]
			}
		}
		return ""
	}
}

// An outcome is what Done was called with.
type outcome struct {
	name string
	err  error
}

func TestAConfigurationThatCantBeUsedIsToldWithItsMember(t *testing.T) {
	const rule = "a channel name is 1 to 255 bytes of A-Z a-z 0-9 - _ ~ : @ + | in tokens joined by . or /"
	known := intake.Variables{Names: []string{"name"}}
	for _, test := range []struct {
		config intake.Config
		want   string
	}{
		{intake.Config{}, "channel: none is given; name the one that events go to"},
		{intake.Config{Channel: "a b"}, `channel: "a b" holds ' ': ` + rule},
		{intake.Config{Channel: "a b.{name}"}, `channel: "a b.x" holds ' ': ` + rule},
		{intake.Config{Channel: "a.{nam}"}, `channel: "a.{nam}": there is no {nam} here; there are {name}`},
		{intake.Config{Channel: "a.{name"}, `channel: "a.{name": {name is not closed; write {{ for one {`},
		{intake.Config{Channel: "a.}"}, `channel: "a.}": a } stands alone; write }} for one`},
		{intake.Config{Channel: "api.{name}"}, `channel: "api.x" is reserved: the first tokens all, api, admin, debug, health, metrics, favicon.ico and @me are reserved`},
		{intake.Config{Channel: "@me"}, `channel: @me stands for the subject of a request's token: name the channel`},
		{intake.Config{Channel: "a", Event: "eventsource.{name}"}, `event: "eventsource.x" begins with "eventsource.", which is kept for the server's own; choose another`},
		{intake.Config{Channel: "a", Rollup: time.Microsecond}, "rollup: 1µs is below 1ms"},
		{intake.Config{Channel: "a", Rollup: -1}, "rollup: -1ns is below 1ms"},
		{intake.Config{Channel: "a", Rollup: time.Second, ID: "{name}"}, "id: a roll-up is of many payloads; leave the id to the server"},
		{intake.Config{Channel: "{name}", Event: "{x}", ID: "{"}, `event: "{x}": there is no {x} here; there are {name}` + "\n" + `id: "{": { is not closed; write {{ for one {`},
	} {
		_, err := intake.New(test.config, known)
		if err == nil || err.Error() != test.want {
			t.Errorf("%+v: %v, want %s", test.config, err, test.want)
		}
	}
	for _, c := range []intake.Config{{Channel: "all"}, {Channel: "a,{name}.b"}, {Channel: "{name}{name}", Event: "{name}", ID: "{name}{{}}"}} {
		if _, err := intake.New(c, known); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestTemplatesMakeChannelTypeAndID(t *testing.T) {
	h, srv := open(t, &eventsource.Settings{}, intake.Config{Channel: "a.{1},{name}", Event: "{name}!", ID: "{{{1}}}"})
	one, other := follow(t, srv, "a.b.c"), follow(t, srv, "n")
	h.take(t, intake.Arrival{Data: []byte("x"), Value: values("1", "b/c", "name", "n")})
	for _, got := range []*sourcetest.Heard{one, other} {
		got.Data(t, 1)
		if e := got.All()[0]; e.Type != "n!" || e.ID != "{b/c}" || e.Data != "x" {
			t.Errorf("got %+v", e)
		}
	}
}

func TestWhatIsBadIsRefusedAndStopsNothing(t *testing.T) {
	h, srv := open(t, &eventsource.Settings{Limits: eventsource.Limits{Body: 100}},
		intake.Config{Channel: "a.{1}", Event: "{type}", ID: "{id}", JSON: true})
	got := follow(t, srv, "a.*")
	good := intake.Arrival{Data: []byte(`{"a":1}`), Value: values("1", "b")}
	with := func(data string, pairs ...string) intake.Arrival {
		return intake.Arrival{Data: []byte(data), Value: values(pairs...)}
	}
	want := map[string]uint64{"empty": 1, "too_large": 1, "not_utf8": 1, "not_json": 2, "name": 4, "invalid": 3, "slow": 0}
	var outcomes []outcome
	arrivals := []intake.Arrival{
		with("", "1", "b"),
		with(`"`+strings.Repeat("x", 100)+`"`, "1", "b"),
		with("\"\xff\"", "1", "b"),
		with("{", "1", "b"),
		with("{}{}", "1", "b"),
		with("1", "1", "b c"),
		with("2", "1", ""),
		with("3", "1", "b,d"),
		with("4", "1", strings.Repeat("x", 255)),
		with("5", "1", "b", "type", "eventsource.x"),
		with("6", "1", "b", "type", "a\nb"),
		with("7", "1", "b", "id", " x"),
	}
	var mixed []intake.Arrival
	for i, a := range arrivals {
		a.Done = func(err error) { outcomes = append(outcomes, outcome{fmt.Sprint(i), err}) }
		mixed = append(mixed, good, a)
	}
	h.take(t, append(mixed, good)...)
	got.Data(t, len(arrivals)+1)
	for _, o := range outcomes {
		if _, ok := errors.AsType[*eventsource.RefusedError](o.err); !ok {
			t.Errorf("%s: done with %v", o.name, o.err)
		}
	}
	stats := srv.Stats().Sources[0]
	if len(outcomes) != len(arrivals) || !maps.Equal(stats.Refusals, want) {
		t.Errorf("%d were refused: %v, want %v", len(outcomes), stats.Refusals, want)
	}
	if stats.Published != uint64(len(arrivals)+1) || stats.State != "ok" || stats.Connects != 1 {
		t.Errorf("%+v", stats)
	}
}

// A name that comes from a broker once reached every consumer, by calling itself "all".
func TestWhatStandsForAVariableMakesNoOtherChannel(t *testing.T) {
	h, srv := open(t, &eventsource.Settings{}, intake.Config{Channel: "{name}"})
	got := follow(t, srv, "bystander")
	for _, name := range []string{"all", "a,bystander", "bystander,all", "bystander,", "@me", "*"} {
		h.take(t, intake.Arrival{Data: []byte(name), Value: values("name", name)})
	}
	h.take(t, intake.Arrival{Data: []byte("last"), Value: values("name", "bystander")})
	if data := got.Data(t, 1); len(data) != 1 || data[0] != "last" {
		t.Errorf("got %q", data)
	}
	if refused := srv.Stats().Sources[0].Refusals; refused["name"]+refused["invalid"] != 6 {
		t.Errorf("refused: %v", refused)
	}
	h, srv = open(t, &eventsource.Settings{}, intake.Config{Channel: "all"})
	got = follow(t, srv, "bystander")
	h.take(t, intake.Arrival{Data: []byte("to everybody")})
	got.Data(t, 1)
}

func TestWhatComesAgainIsPublishedOnce(t *testing.T) {
	h, srv := open(t, &eventsource.Settings{}, intake.Config{Channel: "a"})
	got := follow(t, srv, "a")
	done := 0
	arrival := func(n int) intake.Arrival {
		return intake.Arrival{Data: fmt.Append(nil, n), Key: fmt.Sprint("k", n), Done: func(err error) {
			if err != nil {
				t.Error(err)
			}
			done++
		}}
	}
	h.take(t, arrival(1), arrival(1), arrival(2), arrival(1))
	h.take(t, arrival(2), arrival(3))
	// The connection is lost, and what was not acknowledged comes again.
	lost := errors.New("lost")
	if err := h.do(func(*intake.Flow) error { return lost }); !errors.Is(err, lost) {
		t.Fatal(err)
	}
	h.take(t, arrival(2), arrival(3), arrival(4))
	if data := got.Data(t, 4); !slices.Equal(data, []string{"1", "2", "3", "4"}) {
		t.Errorf("got %q", data)
	}
	if stats := srv.Stats().Sources[0]; stats.Duplicates != 5 || stats.Published != 4 || done != 9 {
		t.Errorf("%d done, %+v", done, stats)
	}
	// It is known for long: a few thousand later it is a duplicate still.
	var more []intake.Arrival
	for n := range 30_000 {
		more = append(more, intake.Arrival{Data: []byte("x"), Key: fmt.Sprint("m", n)})
	}
	h.take(t, more...)
	h.take(t, arrival(4))
	if stats := srv.Stats().Sources[0]; stats.Duplicates != 6 || stats.Published != 30_004 {
		t.Errorf("%+v", stats)
	}
}

// What is refused is told so when it comes again, too: it is known to nobody.
func TestWhatIsRefusedAndComesAgainIsRefusedAgain(t *testing.T) {
	h, srv := open(t, &eventsource.Settings{}, intake.Config{Channel: "a"})
	for range 2 {
		var err error
		h.take(t, intake.Arrival{Key: "k", Done: func(e error) { err = e }})
		if _, ok := errors.AsType[*eventsource.RefusedError](err); !ok {
			t.Fatalf("done with %v", err)
		}
	}
	if refused := srv.Stats().Sources[0].Refusals["empty"]; refused != 2 {
		t.Errorf("%d were refused", refused)
	}
}

func TestOrderIsThatOfArrivalsAndBatchesAreBounded(t *testing.T) {
	h, srv := open(t, &eventsource.Settings{}, intake.Config{Channel: "{name}"})
	got := follow(t, srv, "a,b")
	var want []string
	var done []string
	var arrivals []intake.Arrival
	for n := range 3000 {
		data := fmt.Sprintf("%d %s", n, strings.Repeat("x", rand.IntN(2000)))
		want = append(want, data)
		arrivals = append(arrivals, intake.Arrival{Data: []byte(data), Value: values("name", string("aaaaaaab"[rand.IntN(8)])), Key: fmt.Sprint(n),
			Done: func(error) { done = append(done, data) }})
	}
	for chunk := range slices.Chunk(arrivals, 700) {
		h.take(t, chunk...)
	}
	if data := got.Data(t, len(want)); !slices.Equal(data, want) || !slices.Equal(done, want) {
		t.Error("the order is another")
	}
}

func TestOneBadEventOfABatchIsRefusedAlone(t *testing.T) {
	backend := &sourcetest.Backend{Most: 1000}
	h, srv := open(t, &eventsource.Settings{Backend: backend}, intake.Config{Channel: "a"})
	got := follow(t, srv, "a")
	var refused []string
	var arrivals []intake.Arrival
	for _, data := range []string{"1", "2", strings.Repeat("x", 1001), "3", "4"} {
		arrivals = append(arrivals, intake.Arrival{Data: []byte(data), Done: func(err error) {
			if err != nil {
				refused = append(refused, data[:1])
			}
		}})
	}
	h.take(t, arrivals...)
	if data := got.Data(t, 4); !slices.Equal(data, []string{"1", "2", "3", "4"}) || !slices.Equal(refused, []string{"x"}) {
		t.Errorf("got %q, refused %q", data, refused)
	}
	if r := srv.Stats().Sources[0].Refusals["too_large"]; r != 1 {
		t.Errorf("%d were refused", r)
	}
}

func TestRefusalsThatPassHoldTheSourceBack(t *testing.T) {
	backend := &sourcetest.Backend{}
	h, srv := open(t, &eventsource.Settings{Backend: backend}, intake.Config{Channel: "a"})
	got := follow(t, srv, "a")
	backend.Refuse(eventsource.ErrUnavailable)
	taken := make(chan struct{})
	done := 0
	go func() {
		defer close(taken)
		h.take(t, intake.Arrival{Data: []byte("1"), Done: func(error) { done++ }}, intake.Arrival{Data: []byte("2"), Done: func(error) { done++ }})
	}()
	select {
	case <-taken:
		t.Fatal("it was taken while the backend was away")
	case <-time.After(300 * time.Millisecond):
	}
	backend.Refuse(nil)
	<-taken
	if data := got.Data(t, 2); !slices.Equal(data, []string{"1", "2"}) || done != 2 {
		t.Errorf("got %q, %d done", data, done)
	}
}

func TestWhatIsHeldBackEndsWithTheServer(t *testing.T) {
	backend := &sourcetest.Backend{}
	h, srv := open(t, &eventsource.Settings{Backend: backend}, intake.Config{Channel: "a"})
	backend.Refuse(eventsource.ErrUnavailable)
	result := make(chan error, 1)
	h.tasks <- func(_ context.Context, f *intake.Flow) error {
		err := f.Take(intake.Arrival{Data: []byte("1"), Done: func(error) { t.Error("it is done") }})
		result <- err
		return err
	}
	began := time.Now()
	shutdown(t, srv)
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
}

// A backend that did not answer may have kept a batch: what has an id is looked for.
func TestWhatABackendHasKeptWithoutAWordIsNotPublishedTwice(t *testing.T) {
	backend := &sourcetest.Backend{}
	h, srv := open(t, &eventsource.Settings{Backend: backend}, intake.Config{Channel: "a", ID: "{id}"})
	got := follow(t, srv, "a")
	backend.Doubt(eventsource.ErrUnknown)
	h.take(t, intake.Arrival{Data: []byte("1"), Value: values("id", "one"), Key: "1"}, intake.Arrival{Data: []byte("2"), Value: values("id", "two"), Key: "2"})
	backend.Refuse(nil)
	h.take(t, intake.Arrival{Data: []byte("3"), Value: values("id", "three"), Key: "3"})
	if data := got.Data(t, 3); !slices.Equal(data, []string{"1", "2", "3"}) {
		t.Errorf("got %q", data)
	}
}

// Another process may have published it, and not have acknowledged it: then the keys are
// known to nobody, but its id is in the file.
func TestWhatIsKeptByItsIDIsNotPublishedAgain(t *testing.T) {
	file := filepath.Join(t.TempDir(), "events.db")
	config := intake.Config{Channel: "a", ID: "{id}"}
	arrival := func(id string, again bool) intake.Arrival {
		return intake.Arrival{Data: []byte(id), Value: values("id", id), Key: "key of " + id, Again: again}
	}
	for run := range 2 {
		backend, err := sqlite.New(file, nil)
		if err != nil {
			t.Fatal(err)
		}
		h, srv := open(t, &eventsource.Settings{Backend: backend}, config)
		again := run == 1
		h.take(t, arrival("1", again), arrival("2", again))
		if again {
			h.take(t, arrival("3", true), intake.Arrival{Data: []byte("3"), Value: values("id", "3"), Again: true}) // by another key
		}
		page, err := srv.Read(t.Context(), eventsource.Query{Channel: "a"})
		if err != nil {
			t.Fatal(err)
		}
		if want := 2 + run; len(page.Events) != want {
			t.Errorf("run %d: %d events, want %d", run, len(page.Events), want)
		}
		if d := srv.Stats().Sources[0].Duplicates; d != uint64(3*run) {
			t.Errorf("run %d: %d duplicates", run, d)
		}
		shutdown(t, srv)
	}
}

func TestWildcardsOfTokens(t *testing.T) {
	for _, test := range []struct {
		pattern, name, one, rest string
		want                     []string
		ok                       bool
	}{
		{"a.b", "a.b", "*", ">", nil, true},
		{"a.*", "a.b", "*", ">", []string{"b"}, true},
		{"a.*", "a.b.c", "*", ">", nil, false},
		{"a.*", "a", "*", ">", nil, false},
		{"*.*", "a.b", "*", "#", []string{"a", "b"}, true},
		{"a.>", "a.b.c", "*", ">", []string{"b.c"}, true},
		{"a.*.>", "a.b.c.d", "*", ">", []string{"b", "c.d"}, true},
		{"a.#", "a", "*", "#", []string{""}, true},
		{"#", "a.b", "*", "#", []string{"a.b"}, true},
		{"a", "b", "*", "#", nil, false},
	} {
		got, ok := intake.Wildcards(test.pattern, test.name, ".", test.one, test.rest)
		if ok != test.ok || ok && !slices.Equal(got, test.want) {
			t.Errorf("%s %s: %q %t, want %q %t", test.pattern, test.name, got, ok, test.want, test.ok)
		}
	}
}

// FuzzTemplate holds templates against another way to fill them.
func FuzzTemplate(f *testing.F) {
	for _, seed := range []string{"", "a", "{1}", "a.{1}.b", "{{", "}}", "{{{1}}}", "{", "}", "{1", "{x}", "{{1}}", "{1}{1}", "a}b{"} {
		f.Add(seed, "value")
	}
	f.Fuzz(func(t *testing.T, text, value string) {
		template, err := intake.Parse(text, intake.Variables{Wildcards: 2})
		if err != nil {
			return
		}
		const open, closed = "\x00open", "\x00closed"
		if strings.Contains(text+value, "\x00") {
			return
		}
		// Left to right: two braces before one.
		var want strings.Builder
		for rest := text; rest != ""; {
			switch {
			case strings.HasPrefix(rest, "{{"):
				want.WriteString(open)
				rest = rest[2:]
			case strings.HasPrefix(rest, "}}"):
				want.WriteString(closed)
				rest = rest[2:]
			case strings.HasPrefix(rest, "{1}"):
				want.WriteString(value)
				rest = rest[3:]
			case strings.HasPrefix(rest, "{2}"):
				want.WriteString("two")
				rest = rest[3:]
			case rest[0] == '{' || rest[0] == '}':
				t.Fatalf("%q was taken", text)
			default:
				want.WriteByte(rest[0])
				rest = rest[1:]
			}
		}
		expected := strings.ReplaceAll(strings.ReplaceAll(want.String(), open, "{"), closed, "}")
		if got := template.Text(values("1", value, "2", "two")); got != expected {
			t.Errorf("%q is %q, want %q", text, got, expected)
		}
	})
}
