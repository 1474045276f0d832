package eventsource

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"
	"unsafe"

	"github.com/tmaxmax/go-sse"
)

func TestRefusedBodiesSayWhatIsWrongAndWhatIsRight(t *testing.T) {
	const (
		jsonType  = "application/json"
		formType  = "application/x-www-form-urlencoded"
		cloudType = "application/cloudevents+json"
	)
	long := strings.Repeat("x", 256)
	for _, tt := range []struct {
		contentType, query, body string
		status                   int
		detail                   string // its words, in order, with … between them
	}{
		// Content types.
		{"", "", "x", 415, "no Content-Type…application/json, application/x-ndjson, application/x-www-form-urlencoded, application/cloudevents+json, text/*"},
		{"application/xml", "", "x", 415, `"application/xml"…text/*`},
		{"application/x-ndjson", "", "{}", 415, `"application/x-ndjson"`},
		{"application/vnd.github+json", "", "{}", 415, `"application/vnd.github+json"…application/json`},
		{"application/cloudevents-batch+json", "", "[]", 415, "application/cloudevents+json"},
		{"multipart/form-data; boundary=x", "", "", 415, "application/x-www-form-urlencoded"},
		{"texty", "", "x", 415, "texty"},
		{"text/plain; charset", "", "x", 415, "can't be read…send one of"},
		{"/" + strings.Repeat("y", 9999), "", "x", 415, "…"},
		{"text/plain; charset=iso-8859-1", "", "x", 415, `"iso-8859-1"…UTF-8`},
		{"application/json; charset=utf-16", "", "{}", 415, `"utf-16"…UTF-8`},
		{formType + "; charset=latin1", "", "data=x", 415, `"latin1"…UTF-8`},

		// JSON as such.
		{jsonType, "", "", 400, "nothing to send…empty…{\"data\": \"hello\"}"},
		{jsonType, "", " \n", 400, "nothing to send"},
		{jsonType, "", `{"data": x}`, 400, "byte 10…{\"data\": \"hello\"}"},
		{jsonType, "", `{"data": 1}{}`, 400, "byte 12…after top-level value"},
		{jsonType, "", `{"data": 1} x`, 400, "after top-level value"},
		{jsonType, "", `{"data": 1`, 400, "unexpected end"},
		{jsonType, "", `{"data": 01}`, 400, "byte"},
		{jsonType, "", `[{"data": 1},]`, 400, "byte"},
		{jsonType, "", "\ufeff{}", 400, "byte 1"},
		{jsonType, "", "{\"data\": \"\xff\"}", 400, "UTF-8"},
		{jsonType, "", "{\"\xff\": 1}", 400, "UTF-8"},
		{jsonType, "", "{\"data\": \"a\nb\"}", 400, "byte"},
		{jsonType, "", `{"data": ` + strings.Repeat("[", 10_001) + strings.Repeat("]", 10_001) + "}", 400, "depth"},
		{jsonType, "", strings.Repeat("[", 1_000_000), 400, "depth"},
		{jsonType, "", `"text"`, 400, `a string…{"data": "hello"}…raw=1`},
		{jsonType, "", `17`, 400, "a number"},
		{jsonType, "", `-1`, 400, "a number"},
		{jsonType, "", `true`, 400, "a boolean"},
		{jsonType, "", `null`, 400, "null is no event"},

		// Members.
		{jsonType, "", `{}`, 400, "nothing to send…id, event, data and retry"},
		{jsonType, "", `{"id": null, "event": null, "retry": null, "ttl": null}`, 400, "nothing to send"},
		{jsonType, "", `{"ttl": 5}`, 400, "nothing to send"},
		{jsonType, "", `{"event": ""}`, 400, "nothing to send"},
		{jsonType, "", `{"Data": 1}`, 400, `"Data"…did you mean "data"?…id, event, data, retry and ttl`},
		{jsonType, "", `{"DATA": 1}`, 400, `did you mean "data"?`},
		{jsonType, "", `{"rerty": 1}`, 400, `"rerty"…did you mean "retry"?`},
		{jsonType, "", `{"data": 1, "channel": "a"}`, 400, `"channel" is no member of an event; an event has`},
		{jsonType, "", `{"data": 1, "": 2}`, 400, `"" is no member`},
		{jsonType, "", `{"\ud800": 2}`, 400, "is no member"},
		{jsonType, "", `{"` + strings.Repeat("é", 99999) + `": 2}`, 400, "…is no member"},
		{jsonType, "", `{"data": 1, "data": 1}`, 400, "data: it comes twice"},
		{jsonType, "", `{"data": 1, "\u0064ata": 1}`, 400, "data: it comes twice"},
		{jsonType, "", `{"id": null, "id": 1}`, 400, "id: it comes twice"},
		{jsonType, "", `{"id": ""}`, 400, "id: it is empty; leave it out"},
		{jsonType, "", `{"id": true}`, 400, "id: it is a boolean; give a string or a number"},
		{jsonType, "", `{"id": {}}`, 400, "id: it is an object"},
		{jsonType, "", `{"id": "` + long + `"}`, 400, "id: it has 256 bytes, at most 255"},
		{jsonType, "", `{"id": 1` + long[1:] + `}`, 400, "byte"},
		{jsonType, "", `{"id": 1` + strings.Repeat("0", 255) + `}`, 400, "id: it has 256 bytes"},
		{jsonType, "", `{"id": "a\u0000b"}`, 400, "id:…control characters"},
		{jsonType, "", `{"id": "a\nb"}`, 400, `id: "a\nb" has control characters`},
		{jsonType, "", `{"id": "a\tb"}`, 400, "control"},
		{jsonType, "", `{"id": "a\u001f"}`, 400, "control"},
		{jsonType, "", `{"id": "a\u007f"}`, 400, "control"},
		{jsonType, "", `{"id": " a"}`, 400, `id: " a" has a space at an end`},
		{jsonType, "", `{"id": "a "}`, 400, "space"},
		{jsonType, "", `{"id": " "}`, 400, "space"},
		{jsonType, "", `{"id": "\udc00"}`, 400, "id:…surrogate…both halves"},
		{jsonType, "", `{"event": 1}`, 400, "event: it is a number; give a string"},
		{jsonType, "", `{"event": "a\rb"}`, 400, "event:…control characters"},
		{jsonType, "", `{"event": "eventsource.gap"}`, 400, `event: "eventsource.gap" begins with "eventsource."…another`},
		{jsonType, "", `{"event": "eventsource."}`, 400, "eventsource."},
		{jsonType, "", `{"event": "` + long + `"}`, 400, "event: it has 256 bytes, at most 255"},
		{jsonType, "", `{"event": "\ud83d"}`, 400, "event:…surrogate"},
		{jsonType, "", `{"data": "\ud800"}`, 400, "data:…surrogate"},
		{jsonType, "", `{"data": "\ud800x"}`, 400, "surrogate"},
		{jsonType, "", `{"data": "\ud800\n12345"}`, 400, "surrogate"},
		{jsonType, "", `{"data": "\ud800\ndc00"}`, 400, "surrogate"},
		{jsonType, "", `{"data": "\ud800xudc00"}`, 400, "surrogate"},
		{jsonType, "", `{"data": "\ud800\ud800"}`, 400, "surrogate"},
		{jsonType, "", `{"data": "\udc00\ud800"}`, 400, "surrogate"},
		{jsonType, "", `{"retry": "3000"}`, 400, "retry: it is a string; give a number of milliseconds such as 3000"},
		{jsonType, "", `{"retry": -1}`, 400, `retry: "-1" is no whole number of milliseconds from 0 to 3153600000000`},
		{jsonType, "", `{"retry": 1.5}`, 400, `retry: "1.5" is no whole number`},
		{jsonType, "", `{"retry": 1e-3}`, 400, "retry"},
		{jsonType, "", `{"retry": 1e400}`, 400, "retry"},
		{jsonType, "", `{"retry": 1e19}`, 400, "retry"},
		{jsonType, "", `{"retry": 3153600000001}`, 400, "retry"},
		{jsonType, "", `{"retry": 18446744073709551616}`, 400, "retry"},
		{jsonType, "", `{"data": 1, "ttl": -1}`, 400, `ttl: "-1"`},
		{jsonType, "", `{"data": 1, "ttl": true}`, 400, "ttl: it is a boolean"},
		{jsonType, "", `{"data": 1, "ttl": 3153600000001}`, 400, "ttl"},

		// Batches.
		{jsonType, "", `[]`, 400, "nothing to send…batch"},
		{jsonType, "", ` [ ] `, 400, "nothing to send…batch"},
		{jsonType, "", `[{"data": 1}, {"dat": 1}]`, 400, `event 2 of the batch: "dat"…did you mean "data"?`},
		{jsonType, "", `[{"data": 1}, []]`, 400, "event 2 of the batch: an array is no event"},
		{jsonType, "", `[{"data": 1}, 1]`, 400, "event 2 of the batch: a number"},
		{jsonType, "", "[" + strings.Repeat(`{"data":1},`, 4096) + `{"data":1}]`, 413, "at most 4096 events"},

		// The document itself.
		{jsonType, "raw=2", `{"data": 1}`, 400, "raw=1"},
		{jsonType, "raw=", `{"data": 1}`, 400, "raw=1"},
		{jsonType, "raw=true", `{"data": 1}`, 400, "raw=1"},
		{jsonType, "raw=1&raw=1", `{"data": 1}`, 400, "once"},
		{jsonType, "raw=1", `{"data": }`, 400, "byte"},
		{jsonType, "raw=1", ``, 400, "empty"},
		{jsonType, "raw=1", "\"\xff\"", 400, "UTF-8"},
		{jsonType, "raw=1&id=", `1`, 400, "id: it is empty"},
		{jsonType, "raw=1&event=eventsource.x", `1`, 400, "event:"},
		{jsonType, "raw=1&retry=x", `1`, 400, "retry:"},

		// Text.
		{"text/plain", "", "\xff", 400, "data: it is not valid UTF-8…base64"},
		{"text/plain", "id=", "x", 400, "id: it is empty"},
		{"text/plain", "id=a&id=a", "x", 400, "id: it comes twice"},
		{"text/plain", "id=%ff", "x", 400, "id: it is not valid UTF-8"},
		{"text/plain", "id=a%20", "x", 400, "id:…space"},
		{"text/plain", "event=%ff", "x", 400, "event: it is not valid UTF-8"},
		{"text/plain", "event=a%0ab", "x", 400, "event:…control"},
		{"text/plain", "retry=", "x", 400, `retry: ""`},
		{"text/plain", "retry=288230376151711749", "x", 400, "retry:"}, // times 10^6 is 5·10^6 in 64 bits
		{"text/plain", "retry=1e3", "x", 400, `retry: "1e3"`},
		{"text/plain", "ttl=%2B1", "x", 400, `ttl: "+1"`},
		{"text/plain", "ttl=" + strings.Repeat("9", 9999), "x", 400, "ttl:"},

		// Forms.
		{formType, "", "", 400, "nothing to send"},
		{formType, "", "&&", 400, "nothing to send"},
		{formType, "", "ttl=5", 400, "nothing to send"},
		{formType, "data=x", "", 400, "nothing to send"},
		{formType, "", "hello", 400, `"hello" is no field…text/plain or application/json`},
		{formType, "", `{"data":"x"}`, 400, "is no field…application/json"},
		{formType, "", "Data=x", 400, `did you mean "data"?`},
		{formType, "", "data=x&data=y", 400, "data: it comes twice"},
		{formType, "", "data=x&event=a&event=a", 400, "event: it comes twice"},
		{formType, "", "data=x&id=", 400, "id: it is empty"},
		{formType, "", "data=100%", 400, "data:…%25"},
		{formType, "", "d%zz=x", 400, `"d%zz"…%25`},
		{formType, "", "data=%ff", 400, "data: it is not valid UTF-8"},
		{formType, "", "id=%00", 400, "id:…control"},
		{formType, "", "data=&retry=-1", 400, "retry:"},

		// CloudEvents.
		{cloudType, "", ``, 400, "empty"},
		{cloudType, "", `[]`, 400, `an array is no CloudEvent…"specversion": "1.0"`},
		{cloudType, "", `{"type":"a","data":1}`, 400, `specversion: it is ""…"1.0"`},
		{cloudType, "", `{"specversion":"0.3","type":"a","data":1}`, 400, `specversion: it is "0.3"`},
		{cloudType, "", `{"specversion":1.0,"type":"a","data":1}`, 400, "specversion: it is a number; give a string"},
		{cloudType, "", `{"specversion":"1.0","source":"a"}`, 400, "nothing to send"},
		{cloudType, "", `{"specversion":"1.0","id":"","data":1}`, 400, "id: it is empty"},
		{cloudType, "", `{"specversion":"1.0","id":1,"data":1}`, 400, "id: it is a number; give a string"},
		{cloudType, "", `{"specversion":"1.0","type":"","data":1}`, 400, "type: it is empty"},
		{cloudType, "", `{"specversion":"1.0","type":2,"data":1}`, 400, "type: it is a number"},
		{cloudType, "", `{"specversion":"1.0","type":"eventsource.x","data":1}`, 400, "eventsource."},
		{cloudType, "", `{"specversion":"1.0","source":"","data":1}`, 400, "source: it is empty"},
		{cloudType, "", `{"specversion":"1.0","Data":1}`, 400, `"Data" is no attribute…did you mean "data"?`},
		{cloudType, "", `{"specversion":"1.0","data":1,"data":1}`, 400, `"data": it comes twice`},
		{cloudType, "", `{"specversion":"1.0","data":1,"ext":1,"ext":1}`, 400, `"ext": it comes twice`},
		{cloudType, "", `{"specversion":"1.0","data":1,"data_base64":"eA=="}`, 400, "data and data_base64"},
		{cloudType, "", `{"specversion":"1.0","data_base64":"eA"}`, 400, "data_base64:…RFC 4648"},
		{cloudType, "", `{"specversion":"1.0","data_base64":"/w=="}`, 400, "data_base64:…UTF-8"},
		{cloudType, "", `{"specversion":"1.0","data_base64":1}`, 400, "data_base64: it is a number"},
		{cloudType, "", `{"specversion":"1.0","data":"\ud800"}`, 400, "surrogate"},
	} {
		query, err := url.ParseQuery(tt.query)
		if err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("%.40s?%.30s %.60s", tt.contentType, tt.query, tt.body)
		events, _, p := decodeBody(tt.contentType, query, []byte(tt.body))
		if p == nil {
			t.Errorf("%s: accepted as %+v", name, events)
			continue
		}
		if events != nil || p.Status != tt.status {
			t.Errorf("%s: %d %s with %d events, want %d", name, p.Status, p.Detail, len(events), tt.status)
		}
		checkDetail(t, name, p)
		rest := p.Detail
		for words := range strings.SplitSeq(tt.detail, "…") {
			_, after, ok := strings.Cut(rest, words)
			if !ok {
				t.Errorf("%s: %q lacks %q", name, p.Detail, words)
			}
			rest = after
		}
		if p.Status == 415 && strings.Contains(p.Detail, "send one of") && p.header.Get("Accept") != bodyTypes {
			t.Errorf("%s: Accept %q", name, p.header.Get("Accept"))
		}
	}
}

// checkDetail fails the test when a refusal says nothing, or repeats without a
// bound what was sent.
func checkDetail(t *testing.T, name string, p *Problem) {
	t.Helper()
	if p.Detail == "" || len(p.Detail) > 700 || !utf8.ValidString(p.Detail) || hasControl(p.Detail) {
		t.Errorf("%s: the detail is empty, long or no text: %.1000q", name, p.Detail)
	}
	if p.Status < 400 || p.Status > 499 || p.Title != http.StatusText(p.Status) {
		t.Errorf("%s: %d %s", name, p.Status, p.Title)
	}
}

func TestAcceptedBodiesBecomeEvents(t *testing.T) {
	ms := time.Millisecond
	for _, tt := range []struct {
		contentType, query, body string
		want                     Event
	}{
		{"application/json", "", `{"id": "a", "event": "e", "data": "d", "retry": 10, "ttl": 20}`, Event{ID: "a", Type: "e", Data: "d", Retry: 10 * ms, TTL: 20 * ms}},
		{"Application/JSON; Charset=UTF-8", "", " \t\r\n{ \"data\" :\n\"d\" }\n", Event{Data: "d"}},
		{"application/json", "raw=0&id=x", `{"data":""}`, Event{}},
		{"application/json", "", `{"data":null}`, Event{Data: "null"}},
		{"application/json", "", `{"data":true,"id":null,"event":null,"retry":null,"ttl":null}`, Event{Data: "true"}},
		{"application/json", "", `{"data":9007199254740993.0e+1}`, Event{Data: "9007199254740993.0e+1"}},
		{"application/json", "", "{\"data\": {\"b\" : [1, 2.0 ,{ }],\n\"a\":\"<\\u00e9 \\ud800>\\/\",\"a\" : 1e3 , \"\": \"\u2028 \"} }",
			Event{Data: "{\"b\":[1,2.0,{}],\"a\":\"<\\u00e9 \\ud800>\\/\",\"a\":1e3,\"\":\"\u2028 \"}"}},
		{"application/json", "", `{"data": [ "]}" , "\"]" ], "event": "x"}`, Event{Data: `["]}","\"]"]`, Type: "x"}},
		{"application/json", "", `{"data":"\u0041\n\r\t\b\f\/\\\"\ud83d\ude00\u0000é\uFEFF"}`, Event{Data: "A\n\r\t\b\f/\\\"😀\x00é\ufeff"}},
		{"application/json", "", `{"d\u0061ta":"x"}`, Event{Data: "x"}},
		{"application/json", "", `{"id":0}`, Event{ID: "0", NoData: true}},
		{"application/json", "", `{"id":1e3}`, Event{ID: "1e3", NoData: true}},
		{"application/json", "", `{"id":-0.50}`, Event{ID: "-0.50", NoData: true}},
		{"application/json", "", `{"id":9007199254740993}`, Event{ID: "9007199254740993", NoData: true}},
		{"application/json", "", `{"id":"` + strings.Repeat("x", 255) + `"}`, Event{ID: strings.Repeat("x", 255), NoData: true}},
		{"application/json", "", `{"id":"a b, é"}`, Event{ID: "a b, é", NoData: true}},
		{"application/json", "", `{"event":" eventsource "}`, Event{Type: " eventsource ", NoData: true}},
		{"application/json", "", `{"retry":0}`, Event{Retry: -1, NoData: true}},
		{"application/json", "", `{"retry":1e3}`, Event{Retry: time.Second, NoData: true}},
		{"application/json", "", `{"retry":-0}`, Event{Retry: -1, NoData: true}},
		{"application/json", "", `{"retry":3000.0}`, Event{Retry: 3 * time.Second, NoData: true}},
		{"application/json", "", `{"retry":3153600000000}`, Event{Retry: maxSpan, NoData: true}},
		{"application/json", "", `{"data":1,"ttl":0}`, Event{Data: "1", TTL: -1}},

		{"application/json", "raw=1&id=7&event=e&retry=1&ttl=0&access_token=t", " {\"x\":\t1,\"x\":\"\\ud800\"}\r\n", Event{ID: "7", Type: "e", Retry: ms, TTL: -1, Data: " {\"x\":\t1,\"x\":\"\\ud800\"}\r\n"}},
		{"application/json", "raw=1", `[]`, Event{Data: "[]"}},
		{"application/json", "raw=1", `[{"data":1}]`, Event{Data: `[{"data":1}]`}},
		{"application/cloudevents+json", "raw=1", `{"specversion":"1.0"}`, Event{Data: `{"specversion":"1.0"}`}},

		{"text/plain", "", "", Event{}},
		{"text/plain; charset=\"utf-8\"", "data=y&raw=9&answers=errors", "\ufeffa\r\nb\x00", Event{Data: "\ufeffa\r\nb\x00"}},
		{"text/markdown; charset=US-ASCII", "id=0&event=&retry=0&ttl=007", "é", Event{ID: "0", Retry: -1, TTL: 7 * ms, Data: "é"}},

		{"application/x-www-form-urlencoded", "id=x", "data=a+b%0Ac;d=e&event=%C3%A9&id=1&retry=2&ttl=3", Event{ID: "1", Type: "é", Data: "a b\nc;d=e", Retry: 2 * ms, TTL: 3 * ms}},
		{"application/x-www-form-urlencoded", "", "data", Event{}},
		{"application/x-www-form-urlencoded", "", "&data=&", Event{}},
		{"application/x-www-form-urlencoded", "", "d%61ta=x", Event{Data: "x"}},
		{"application/x-www-form-urlencoded", "", "id=x", Event{ID: "x", NoData: true}},

		{"application/cloudevents+json", "", `{"specversion":"1.0","id":"1","source":"/a","type":"t","datacontenttype":"application/json","ext1":{"a":1},"data":{"a": 1}}`, Event{ID: "1", Type: "t", Data: `{"a":1}`}},
		{"application/cloudevents+json", "", `{"specversion":"1.0","data":"hello"}`, Event{Data: "hello"}},
		{"application/cloudevents+json", "", `{"specversion":"1.0","id":null,"type":null,"data_base64":"w6kNCg=="}`, Event{Data: "é\r\n"}},
		{"application/cloudevents+json", "", `{"specversion":"1.0","data":null,"data_base64":""}`, Event{}},
		{"application/cloudevents+json", "", `{"specversion":"1.0","id":"1","data":null}`, Event{ID: "1", NoData: true}},
	} {
		query, err := url.ParseQuery(tt.query)
		if err != nil {
			t.Fatal(err)
		}
		events, batch, p := decodeBody(tt.contentType, query, []byte(tt.body))
		if p != nil || batch || len(events) != 1 || events[0] != tt.want {
			t.Errorf("%s?%s %s: %+v batch %v problem %v, want %+v", tt.contentType, tt.query, tt.body, events, batch, p, tt.want)
		}
	}
}

func TestBatchesKeepTheirOrder(t *testing.T) {
	events, batch, p := decodeBody("application/json", nil, []byte(` [ {"id":1} ,{"data":[1, 2]},{"event":"]"} ] `))
	want := []Event{{ID: "1", NoData: true}, {Data: "[1,2]"}, {Type: "]", NoData: true}}
	if p != nil || !batch || fmt.Sprint(events) != fmt.Sprint(want) {
		t.Errorf("%+v batch %v problem %v, want %+v", events, batch, p, want)
	}
	full := "[" + strings.Repeat(`{"data":1},`, maxBatch-1) + `{"data":1}]`
	if events, _, p := decodeBody("application/json", nil, []byte(full)); p != nil || len(events) != maxBatch {
		t.Errorf("a full batch: %d events, %v", len(events), p)
	}
}

func TestALineIsOneObject(t *testing.T) {
	if e, p := decodeLine([]byte("{\"data\":1}\r")); p != nil || e != (Event{Data: "1"}) {
		t.Errorf("%+v %v", e, p)
	}
	for _, line := range []string{"", " ", `[{"data":1}]`, `{"data":1}{"data":2}`, `1`, "\x00"} {
		if e, p := decodeLine([]byte(line)); p == nil || p.Status != 400 {
			t.Errorf("%q: %+v %v", line, e, p)
		}
	}
}

func TestEventsOfGoProgramsAreCheckedToo(t *testing.T) {
	for _, tt := range []struct {
		event Event
		words string
	}{
		{Event{NoData: true}, "nothing to send"},
		{Event{NoData: true, TTL: 1, Channel: "a"}, "nothing to send"},
		{Event{NoData: true, ID: "a", Data: "b"}, "data:"},
		{Event{ID: strings.Repeat("é", 128)}, "id: it has 256 bytes"},
		{Event{ID: "\x80"}, "id: it is not valid UTF-8"},
		{Event{ID: "\x1f"}, "id:"},
		{Event{ID: "a "}, "id:"},
		{Event{Type: "\xc0\x80"}, "event: it is not valid UTF-8"},
		{Event{Type: "\x7f"}, "event:"},
		{Event{Type: "eventsource.end"}, "event:"},
		{Event{Type: strings.Repeat("x", 256)}, "event: it has 256 bytes"},
		{Event{Data: "\xed\xa0\x80"}, "data: it is not valid UTF-8"},
		{Event{Retry: 1500 * time.Microsecond}, "retry: 1.5ms is not in whole milliseconds"},
		{Event{Retry: 1}, "retry:"},
		{Event{Retry: maxSpan + time.Millisecond}, "retry:"},
		{Event{TTL: maxSpan + 1}, "ttl:"},
	} {
		p := tt.event.validate()
		if p == nil {
			t.Errorf("%+v was accepted", tt.event)
			continue
		}
		checkDetail(t, fmt.Sprintf("%+v", tt.event), p)
		if p.Status != 400 || !strings.HasPrefix(p.Detail, tt.words) {
			t.Errorf("%+v: %d %s, want %s", tt.event, p.Status, p.Detail, tt.words)
		}
	}
	for _, e := range []Event{
		{}, {Data: "\x00\ufeff\r"}, {ID: strings.Repeat("x", 255), Type: strings.Repeat("y", 255)},
		{Retry: -time.Hour, TTL: -1}, {Retry: maxSpan, TTL: maxSpan}, {TTL: 1}, {NoData: true, Retry: -1},
		{ID: "\u0080é\u00a0", Type: "eventsource"},
	} {
		if p := e.validate(); p != nil {
			t.Errorf("%+v: %v", e, p)
		}
	}
}

func TestEncodingIsTheStandards(t *testing.T) {
	for _, tt := range []struct {
		event Event
		text  string
	}{
		{Event{ID: "1", Data: "hello"}, "id: 1\ndata: hello\n\n"},
		{Event{ID: "1", Type: "e", Data: "d", Retry: 1500 * time.Millisecond}, "id: 1\nevent: e\nretry: 1500\ndata: d\n\n"},
		{Event{ID: "1", Type: " e "}, "id: 1\nevent:  e \ndata: \n\n"},
		{Event{ID: "1", Retry: -time.Hour, NoData: true}, "id: 1\nretry: 0\n\n"},
		{Event{ID: "1", Retry: maxSpan, NoData: true}, "id: 1\nretry: 3153600000000\n\n"},
		{Event{ID: "1", Data: " a\n b"}, "id: 1\ndata:  a\ndata:  b\n\n"},
		{Event{ID: "1", Data: "a\n"}, "id: 1\ndata: a\ndata: \n\n"},
		{Event{ID: "1", Data: "\n"}, "id: 1\ndata: \ndata: \n\n"},
		{Event{ID: "1", Data: "\r"}, "id: 1\ndata: \ndata: \n\n"},
		{Event{ID: "1", Data: "\r\n"}, "id: 1\ndata: \ndata: \n\n"},
		{Event{ID: "1", Data: "\n\r"}, "id: 1\ndata: \ndata: \ndata: \n\n"},
		{Event{ID: "1", Data: "\r\r\n\n"}, "id: 1\ndata: \ndata: \ndata: \ndata: \n\n"},
		{Event{ID: "1", Data: "a\rb\r\nc\nd"}, "id: 1\ndata: a\ndata: b\ndata: c\ndata: d\n\n"},
		{Event{ID: "1", Data: "id: 2\n\ndata: x"}, "id: 1\ndata: id: 2\ndata: \ndata: data: x\n\n"},
		{Event{ID: "1", Data: "\ufeff\x00"}, "id: 1\ndata: \ufeff\x00\n\n"},
		{Event{Data: "x"}, "id: 00000000-0000-0000-0000-000000000000\ndata: x\n\n"},
	} {
		f := newFrame(&tt.event)
		if got := string(f.text()); got != tt.text {
			t.Errorf("%+v: %q, want %q", tt.event, got, tt.text)
		}
		if want := string(newChunk(tt.text)); string(f.chunk) != want || cap(f.chunk) != len(want) {
			t.Errorf("%+v: the chunk is %q (%d), want %q (%d)", tt.event, f.chunk, cap(f.chunk), want, len(want))
		}
		checkFrame(t, tt.event, f)
	}
}

// checkFrame fails the test when a frame does not give back the event that it
// was made of.
func checkFrame(t *testing.T, e Event, f *frame) {
	t.Helper()
	f.time = 1234567890123456789
	if f.given() != (e.ID == "") {
		t.Errorf("%+v: given %v", e, f.given())
	}
	if e.ID == "" {
		e.ID = "01890a5d-ac96-774b-bcce-b302099a8057"
		f.setID([36]byte([]byte(e.ID)))
	}
	e.Channel, e.Time = "news", time.Unix(0, f.time).UTC()
	e.Retry, e.TTL = max(e.Retry, -1), 0
	if got := f.event("news"); got != e {
		t.Errorf("the event is %+v, want %+v", got, e)
	}
	if f.id() != e.ID || f.typ() != e.Type || f.data() != e.Data || f.noData() != e.NoData {
		t.Errorf("%q: %q %q %q %v", f.text(), f.id(), f.typ(), f.data(), f.noData())
	}
}

func TestTheServersIDFillsItsHole(t *testing.T) {
	for _, e := range []Event{{}, {Type: "e", Data: strings.Repeat("x", 5000), Retry: time.Second}} {
		f := newFrame(&e)
		id := "01890a5d-ac96-774b-bcce-b302099a8057"
		f.setID([36]byte([]byte(id)))
		e.ID = id
		if want := newFrame(&e).chunk; !f.given() || string(f.chunk) != string(want) {
			t.Errorf("%.100q, want %.100q", f.chunk, want)
		}
	}
}

func TestChunksAreHTTPs(t *testing.T) {
	for _, n := range []int{1, 9, 10, 15, 16, 17, 255, 256, 4095, 4096, 65535, 65536, 1 << 20} {
		text := strings.Repeat("x", n)
		chunk := newChunk(text)
		if cap(chunk) != len(chunk) {
			t.Errorf("%d: the chunk has %d bytes of %d", n, len(chunk), cap(chunk))
		}
		if string(chunkText(chunk)) != text {
			t.Errorf("%d: the text does not come back", n)
		}
		got, err := io.ReadAll(httputil.NewChunkedReader(io.MultiReader(bytes.NewReader(chunk), strings.NewReader("0\r\n\r\n"))))
		if err != nil || string(got) != text {
			t.Errorf("%d: net/http reads %d bytes: %v", n, len(got), err)
		}
	}
}

func TestFramesAreLean(t *testing.T) {
	if size := unsafe.Sizeof(frame{}); size > 96 {
		t.Errorf("a frame has %d bytes, want at most 96", size)
	}
	e := &Event{Type: "greeting", Data: strings.Repeat("hello\n", 100), Retry: time.Second}
	if n := testing.AllocsPerRun(100, func() { newFrame(e) }); n > 2 {
		t.Errorf("newFrame allocates %v times, want the frame and its chunk", n)
	}
	f := newFrame(&Event{Type: "greeting", Data: "hello", Retry: time.Second})
	id := [36]byte([]byte(idHole))
	if n := testing.AllocsPerRun(100, func() {
		f.setID(id)
		if len(f.id())+len(f.typ())+len(f.data())+len(f.text())+len(chunkText(f.chunk)) == 0 || f.event("x").Retry != time.Second {
			t.Error("a frame without content")
		}
	}); n > 0 {
		t.Errorf("looking into a frame allocates %v times", n)
	}
	f.envelope("news")
	if n := testing.AllocsPerRun(100, func() { f.envelope("news") }); n > 0 {
		t.Errorf("an envelope that was made allocates %v times", n)
	}
}

func TestSizeNeverChanges(t *testing.T) {
	plain, cr := newFrame(&Event{ID: "1", Data: "a\nb"}), newFrame(&Event{ID: "1", Data: "a\rb"})
	for _, f := range []*frame{plain, cr, controlFrame("event: eventsource.gap\ndata: {}\n\n")} {
		before := f.size()
		f.envelope("news")
		if f.size() != before || before < int64(len(f.chunk))+80 {
			t.Errorf("%q: %d, then %d", f.chunk, before, f.size())
		}
	}
	if cr.size() <= plain.size() {
		t.Errorf("the data kept beside the text does not count: %d, %d", cr.size(), plain.size())
	}
}

func TestControlFramesHaveATypeAndNoID(t *testing.T) {
	for text, want := range map[string]Event{
		"event: eventsource.gap\ndata: {\"requested\":null}\n\n": {Type: "eventsource.gap", Data: `{"requested":null}`},
		"data: x\n\n": {Data: "x"},
	} {
		f := controlFrame(text)
		want.Channel, want.Time = "a", time.Unix(0, 0).UTC()
		if string(f.text()) != text || f.event("a") != want || f.given() {
			t.Errorf("%q: %q %+v", text, f.text(), f.event("a"))
		}
	}
}

func TestEnvelopeSaysWhereAnEventCameFrom(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("", 3600)).UnixNano()
	for _, tt := range []struct {
		event Event
		text  string
	}{
		{Event{ID: "1", Type: "e", Data: "<a>\r\nb\"", Retry: time.Second},
			"id: 1\nevent: e\nretry: 1000\ndata: {\"channel\":\"a.b\",\"id\":\"1\",\"event\":\"e\",\"data\":\"<a>\\r\\nb\\\"\",\"time\":\"2026-01-02T02:04:05.000000006Z\"}\n\n"},
		{Event{ID: "1"},
			"id: 1\ndata: {\"channel\":\"a.b\",\"id\":\"1\",\"event\":\"\",\"data\":\"\",\"time\":\"2026-01-02T02:04:05.000000006Z\"}\n\n"},
		{Event{ID: "1", NoData: true},
			"id: 1\ndata: {\"channel\":\"a.b\",\"id\":\"1\",\"event\":\"\",\"data\":null,\"time\":\"2026-01-02T02:04:05.000000006Z\"}\n\n"},
	} {
		f := newFrame(&tt.event)
		f.time = at
		if got := string(chunkText(f.envelope("a.b"))); got != tt.text {
			t.Errorf("%q, want %q", got, tt.text)
		}
		if got, want := string(f.envelope("a.b")), string(newChunk(tt.text)); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestEnvelopesAreSharedByAllWhoAskAtOnce(t *testing.T) {
	f := newFrame(&Event{ID: "1", Data: "a\rb"})
	var wg sync.WaitGroup
	made := make([][]byte, 64)
	for channel := range 4 {
		for i := channel; i < len(made); i += 4 {
			wg.Go(func() { made[i] = f.envelope(strconv.Itoa(channel)) })
		}
		wg.Wait()
	}
	for i, b := range made {
		if &b[0] != &made[i%4][0] {
			t.Errorf("channel %d has two envelopes", i%4)
		}
		if want := fmt.Sprintf(`{"channel":"%d",`, i%4); !bytes.Contains(b, []byte(want)) {
			t.Errorf("%q lacks %s", b, want)
		}
	}
	// Whoever asks for others meanwhile, no more than one is kept beside the data.
	for i := range made {
		wg.Go(func() {
			channel := strconv.Itoa(i)
			if b := f.envelope(channel); !bytes.Contains(b, []byte(`"channel":"`+channel+`"`)) {
				t.Errorf("channel %s has the envelope %q", channel, b)
			}
		})
	}
	wg.Wait()
	kept := 0
	for r := f.renditions.Load(); r != nil; r = r.next {
		kept++
	}
	if kept != 2 {
		t.Errorf("%d renditions are kept", kept)
	}
	if f.data() != "a\rb" {
		t.Errorf("the data is %q", f.data())
	}
}

// A parsed is what a parser of event streams has read.
type parsed struct {
	lastID, typ, data string
	retry             int64 // -1: none
}

// parseStream is the text of WHATWG HTML, 9.2.6, step by step. dispatched has
// what a browser would hand to a page; end is what stands when the stream ends.
func parseStream(stream string) (dispatched []parsed, end parsed) {
	stream = strings.TrimPrefix(strings.ToValidUTF8(stream, "\ufffd"), "\ufeff")
	var data, typ string
	end.retry = -1
	lastID := ""
	for stream != "" {
		i := strings.IndexAny(stream, "\r\n")
		if i < 0 {
			break // an unfinished line is not processed
		}
		line := stream[:i]
		if strings.HasPrefix(stream[i:], "\r\n") {
			i++
		}
		stream = stream[i+1:]
		if line == "" {
			end.lastID = lastID
			if data == "" {
				typ = ""
				continue
			}
			dispatched = append(dispatched, parsed{lastID, typ, strings.TrimSuffix(data, "\n"), end.retry})
			data, typ = "", ""
			continue
		}
		field, value, colon := strings.Cut(line, ":")
		if colon && field == "" {
			continue
		}
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "event":
			typ = value
		case "data":
			data += value + "\n"
		case "id":
			if !strings.Contains(value, "\x00") {
				lastID = value
			}
		case "retry":
			if strings.Trim(value, "0123456789") == "" && value != "" {
				end.retry, _ = strconv.ParseInt(value, 10, 64)
			}
		}
	}
	return dispatched, end
}

var lineEnds = strings.NewReplacer("\r\n", "\n", "\r", "\n")

func FuzzEncode(f *testing.F) {
	for _, data := range []string{"", "hello", " a\n b", "a\rb\r\nc\n", "\n\r", "\x00\ufeff", "data: x\n\nid: y", "\r\r\n\n", "😀"} {
		f.Add("1", "e", data, int64(1000), false)
		f.Add("", "", data, int64(0), false)
	}
	f.Add("\ufeffid", " type:", "", int64(-1), true)
	f.Add("a:b", "message", "x", int64(86400000), false)
	f.Fuzz(func(t *testing.T, id, typ, data string, retry int64, noData bool) {
		e := Event{ID: id, Type: typ, Data: data, NoData: noData, Retry: time.Duration(retry%int64(maxSpan/time.Millisecond)) * time.Millisecond}
		if e.validate() != nil {
			t.Skip()
		}
		frame := newFrame(&e)
		checkFrame(t, e, frame)
		if cap(frame.chunk) != len(frame.chunk) {
			t.Errorf("the chunk has %d bytes of %d", len(frame.chunk), cap(frame.chunk))
		}
		if string(chunkText(frame.chunk)) != string(frame.text()) || string(newChunk(string(frame.text()))) != string(frame.chunk) {
			t.Errorf("%q is not the chunk of %q", frame.chunk, frame.text())
		}

		want := parsed{frame.id(), e.Type, lineEnds.Replace(e.Data), -1}
		if e.Retry != 0 {
			want.retry = max(0, e.Retry.Milliseconds())
		}
		checkStream(t, string(frame.text()), want, e.NoData)

		// The envelope is an event too, and holds the data to the byte.
		envelope := string(chunkText(frame.envelope("news")))
		dispatched, _ := parseStream(envelope)
		if len(dispatched) != 1 {
			t.Fatalf("%q dispatches %d events", envelope, len(dispatched))
		}
		var got struct {
			Channel, ID, Event string
			Data               *string
			Time               time.Time
		}
		if err := json.Unmarshal([]byte(dispatched[0].data), &got); err != nil {
			t.Fatalf("%q: %v", dispatched[0].data, err)
		}
		if got.Channel != "news" || got.ID != frame.id() || got.Event != e.Type || !got.Time.Equal(time.Unix(0, frame.time)) ||
			(got.Data == nil) != e.NoData || got.Data != nil && *got.Data != e.Data {
			t.Errorf("the envelope of %+v is %s", e, dispatched[0].data)
		}
		want.data = dispatched[0].data
		checkStream(t, envelope, want, false)
	})
}

// checkStream fails the test when a parser reads something else from the text
// than what is wanted.
func checkStream(t *testing.T, text string, want parsed, noData bool) {
	t.Helper()
	// Twice, and behind a comment: an event must not depend on its neighbours.
	dispatched, end := parseStream(": hello\n\n" + text + text)
	if end.lastID != want.lastID || end.retry != want.retry {
		t.Errorf("%q: in the end %+v, want %+v", text, end, want)
	}
	if noData {
		if len(dispatched) != 0 {
			t.Errorf("%q dispatches %+v", text, dispatched)
		}
	} else if len(dispatched) != 2 || dispatched[0] != want || dispatched[1] != want {
		t.Errorf("%q dispatches %+v, want %+v twice", text, dispatched, want)
	}

	// go-sse hands out events without data too, as empty ones.
	n := 0
	for e, err := range sse.Read(strings.NewReader(": hello\n\n"+text+text), &sse.ReadConfig{MaxEventSize: 2*len(text) + 100}) {
		n++
		if err != nil || e.LastEventID != want.lastID || e.Type != want.typ || e.Data != want.data {
			t.Errorf("%q: go-sse reads %+v, %v; want %+v", text, e, err, want)
		}
	}
	if n != 2 && !(noData && n <= 2) {
		t.Errorf("%q: go-sse reads %d events, want 2", text, n)
	}
}

func FuzzDecode(f *testing.F) {
	for _, contentType := range []string{
		"", "application/json", "application/json; charset=utf-8", "application/x-ndjson", "application/x-www-form-urlencoded",
		"text/plain", "text/plain; charset=x", "application/cloudevents+json", "image/png",
	} {
		for _, body := range []string{
			"", "{}", "[]", "null", `{"id":1,"event":"e","data":[1, {"a":"]"}],"retry":0,"ttl":1e3}`, `[{"data":1},{"data":null}]`,
			`{"data":"\ud83d\ude00\ud800"}`, `{"data":"\u0041\\\"\/"}`, "data=a%0A+b&id=1", "id=&data", "\xff", "{\"Data\":1}",
			`{"specversion":"1.0","id":"a","type":"t","source":"s","data_base64":"eA=="}`, `{"specversion":"1.0","data":{"a":1}}`,
		} {
			f.Add(contentType, "", []byte(body))
		}
		f.Add(contentType, "raw=1&id=1&event=e&retry=5&ttl=0", []byte(` {"a": 1}`))
		f.Add(contentType, "id=%ff&raw=2", []byte(`[]`))
	}
	f.Fuzz(func(t *testing.T, contentType, rawQuery string, body []byte) {
		query, _ := url.ParseQuery(rawQuery)
		before := string(body)
		events, batch, p := decodeBody(contentType, query, body)
		if string(body) != before {
			t.Fatal("the body was changed")
		}
		checkDecoded(t, events, p)
		line, p := decodeLine(body)
		if p == nil {
			checkDecoded(t, []Event{line}, nil)
			checkMembers(t, line, body)
		} else {
			checkDecoded(t, nil, p)
		}
		if strings.TrimSpace(contentType) == "application/json" && query["raw"] == nil && !batch && (events == nil) != (p != nil) {
			t.Errorf("a body of %q is %+v, a line of it is %v", body, events, p)
		}
	})
}

func checkDecoded(t *testing.T, events []Event, p *Problem) {
	t.Helper()
	if p != nil {
		if len(events) != 0 {
			t.Errorf("%d events with %v", len(events), p)
		}
		checkDetail(t, "", p)
		return
	}
	if len(events) == 0 {
		t.Error("neither an event nor a problem")
	}
	for i := range events {
		if p := events[i].validate(); p != nil {
			t.Errorf("%+v was decoded: %v", events[i], p)
		}
		newFrame(&events[i])
	}
}

// checkMembers fails the test when encoding/json reads something else.
func checkMembers(t *testing.T, e Event, object []byte) {
	t.Helper()
	var m map[string]json.RawMessage
	if err := json.Unmarshal(object, &m); err != nil {
		t.Fatalf("%q was accepted: %v", object, err)
	}
	text := func(name string) string {
		value := m[name]
		var s string
		if json.Unmarshal(value, &s) != nil {
			var b bytes.Buffer
			if err := json.Compact(&b, value); err != nil {
				t.Fatal(err)
			}
			return b.String()
		}
		if name == "data" && string(value) == "null" {
			return "null"
		}
		return s
	}
	if m["id"] != nil && e.ID != text("id") || m["event"] != nil && e.Type != text("event") || m["data"] != nil && e.Data != text("data") {
		t.Errorf("%q is %+v", object, e)
	}
	if (m["data"] == nil) != e.NoData {
		t.Errorf("%q: NoData is %v", object, e.NoData)
	}
	for name := range m {
		if !strings.Contains(" id event data retry ttl ", " "+name+" ") {
			t.Errorf("the member %q was accepted", name)
		}
	}
}

func BenchmarkNewFrame(b *testing.B) {
	for _, size := range []int{100, 1000, 100_000} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			e := &Event{Type: "tick", Data: strings.Repeat("x", size)}
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				newFrame(e)
			}
		})
	}
}

func BenchmarkDecodeLine(b *testing.B) {
	text := base64.StdEncoding.EncodeToString(make([]byte, 300))
	line := []byte(`{"id":"a","event":"tick","data":{"price":1234.5,"text":"` + text + `"},"ttl":1000}`)
	b.SetBytes(int64(len(line)))
	b.ReportAllocs()
	for b.Loop() {
		if _, p := decodeLine(line); p != nil {
			b.Fatal(p)
		}
	}
}
