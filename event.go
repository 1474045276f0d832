package eventsource

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math"
	"math/bits"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf16"
	"unicode/utf8"
	"unsafe"
)

const (
	maxBatch = 4096 // events in one array
	maxID    = 255  // bytes
	maxType  = 255  // bytes

	// maxSpan bounds Retry and TTL. A time of today and a span fit into 64 bits
	// of nanoseconds.
	maxSpan = 100 * 365 * 24 * time.Hour

	reservedType = "eventsource." // begins the types of the server's own events

	bodyTypes = "application/json, application/x-ndjson, application/x-www-form-urlencoded, application/cloudevents+json, text/*"
)

// An Event is what a publisher sends and a consumer gets.
type Event struct {
	// ID is sent as it is given, and comes back as a consumer's last id: up to
	// 255 bytes, without control characters and a space at either end. Empty:
	// the server gives a UUIDv7. Of an ID that is used twice, a consumer that
	// comes back may get what lies between again.
	ID string
	// Type is "event" on the wire, up to 255 bytes without control characters;
	// "eventsource." begins the server's own. Empty: a browser takes it for
	// "message".
	Type string
	// Data is any text. Its line ends, CR and CRLF too, arrive as LF.
	Data string
	// NoData sends no data at all, not even the empty one. Browsers dispatch
	// nothing for it; it sets a last id or when to reconnect.
	NoData bool
	// Retry is what a consumer is told to wait before it reconnects, in whole
	// milliseconds. 0 tells nothing, a negative one not to wait.
	Retry time.Duration
	// TTL is how long the event is kept for consumers that come back. 0: as long
	// as history keeps it; negative: it goes to who is connected only.
	TTL time.Duration

	// Channel is the one log that an event came from, and Time when it was
	// published. The server sets them on events that it hands out, which have
	// no TTL; Publish ignores them.
	Channel string
	Time    time.Time
}

// validate reports why the event can't be sent.
func (e *Event) validate() *Problem {
	switch {
	case e.NoData && e.Data != "":
		return badRequest("data: the event has some and NoData; leave one of them out")
	case e.NoData && e.ID == "" && e.Type == "" && e.Retry == 0:
		return badRequest("nothing to send: give at least one of id, event, data and retry")

	case len(e.ID) > maxID:
		return badRequest(fmt.Sprintf("id: it has %d bytes, at most %d can come back as a last id", len(e.ID), maxID))
	case !utf8.ValidString(e.ID):
		return badRequest("id: it is not valid UTF-8")
	case hasControl(e.ID):
		return badRequest(fmt.Sprintf("id: %s has control characters, which can't come back in a header; leave them out", quote(e.ID)))
	case strings.HasPrefix(e.ID, " ") || strings.HasSuffix(e.ID, " "):
		return badRequest(fmt.Sprintf("id: %s has a space at an end, which would not come back in a header; leave it out", quote(e.ID)))

	case len(e.Type) > maxType:
		return badRequest(fmt.Sprintf("event: it has %d bytes, at most %d are allowed", len(e.Type), maxType))
	case !utf8.ValidString(e.Type):
		return badRequest("event: it is not valid UTF-8")
	case hasControl(e.Type):
		return badRequest(fmt.Sprintf("event: %s has control characters; leave them out", quote(e.Type)))
	case strings.HasPrefix(e.Type, reservedType):
		return badRequest(fmt.Sprintf("event: %s begins with %q, which is kept for the server's own; choose another", quote(e.Type), reservedType))

	case !utf8.ValidString(e.Data):
		return badRequest("data: it is not valid UTF-8; send bytes that are not text as base64")

	case e.Retry > maxSpan:
		return badRequest(fmt.Sprintf("retry: %v is above %v", e.Retry, maxSpan))
	case e.Retry > 0 && e.Retry%time.Millisecond != 0:
		return badRequest(fmt.Sprintf("retry: %v is not in whole milliseconds", e.Retry))
	case e.TTL > maxSpan:
		return badRequest(fmt.Sprintf("ttl: %v is above %v; leave it out to keep the event as long as history does", e.TTL, maxSpan))
	}
	return nil
}

// CheckType reports why events can't be of a type, and what would be right.
func CheckType(typ string) error {
	if p := (&Event{Type: typ}).validate(); p != nil {
		return p
	}
	return nil
}

func hasControl(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] == 0x7f {
			return true
		}
	}
	return false
}

func badRequest(detail string) *Problem { return newProblem(http.StatusBadRequest, detail) }

// quote repeats what a request said, so much of it that it is known again.
func quote(s string) string {
	const most = 64
	if len(s) <= most {
		return strconv.Quote(s)
	}
	cut := most
	for cut > most-utf8.UTFMax && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return strconv.Quote(s[:cut]) + "…"
}

// Decoding: what a publisher sends becomes valid events.

// decodeBody decodes the body of a POST by its content type. The events are
// valid. batch tells that they came as an array. Of the query it reads what a
// body of text, or ?raw=1, can't say itself.
func decodeBody(contentType string, query url.Values, body []byte) (events []Event, batch bool, p *Problem) {
	if contentType == "" {
		return nil, false, unsupported("there is no Content-Type")
	}
	media, params, err := mediaType(contentType)
	if err != nil {
		return nil, false, unsupported(fmt.Sprintf("the Content-Type %s can't be read", quote(contentType)))
	}
	var decode func([]byte) (Event, *Problem)
	switch {
	case media == "application/json", media == "application/cloudevents+json":
		raw, p := rawWanted(query)
		switch {
		case p != nil:
			return nil, false, p
		case raw:
			decode = func(b []byte) (Event, *Problem) { return decodeRaw(b, query) }
		case media == "application/json":
			decode, batch = decodeLine, firstByte(body) == '['
		default:
			decode = decodeCloudEvent
		}
	case media == "application/x-www-form-urlencoded":
		decode = decodeForm
	case strings.HasPrefix(media, "text/"):
		decode = func(b []byte) (Event, *Problem) { return decodeText(b, query) }
	default:
		return nil, false, unsupported(fmt.Sprintf("the Content-Type %s is none that can be published", quote(media)))
	}
	switch charset, ok := params["charset"]; {
	case ok && !slices.Contains([]string{"utf-8", "utf8", "us-ascii"}, strings.ToLower(charset)):
		return nil, false, newProblem(http.StatusUnsupportedMediaType, fmt.Sprintf("charset: %s is not read; send UTF-8", quote(charset)))
	case batch:
		events, p = decodeBatch(body)
		return events, true, p
	}
	e, p := decode(body)
	if p != nil {
		return nil, false, p
	}
	return []Event{e}, false, nil
}

// mediaType is mime.ParseMediaType, but for what most publishers send without the
// work of it.
func mediaType(contentType string) (media string, params map[string]string, err error) {
	switch contentType {
	case "text/plain", "application/json", "application/x-ndjson", "application/x-www-form-urlencoded":
		return contentType, nil, nil
	}
	return mime.ParseMediaType(contentType)
}

// unsupported refuses a content type. The header is that of RFC 9110, 15.5.16.
func unsupported(what string) *Problem {
	return newProblem(http.StatusUnsupportedMediaType, what+"; send one of "+bodyTypes).with("Accept", bodyTypes)
}

// decodeLine decodes one JSON object, which is a line of NDJSON too.
func decodeLine(line []byte) (Event, *Problem) {
	if p := checkJSON(line); p != nil {
		return Event{}, p
	}
	return decodeEvent(trimSpace(line))
}

// decodeBatch decodes a JSON array of events.
func decodeBatch(body []byte) ([]Event, *Problem) {
	if p := checkJSON(body); p != nil {
		return nil, p
	}
	var events []Event
	for object := range elements(trimSpace(body)) {
		if len(events) == maxBatch {
			return nil, newProblem(http.StatusRequestEntityTooLarge,
				fmt.Sprintf("a batch holds at most %d events; send the rest in another", maxBatch))
		}
		e, p := decodeEvent(object)
		if p != nil {
			p.Detail = fmt.Sprintf("event %d of the batch: %s", len(events)+1, p.Detail)
			return nil, p
		}
		events = append(events, e)
	}
	if len(events) == 0 {
		return nil, badRequest("nothing to send: the batch is empty; give it one event or more")
	}
	return events, nil
}

var (
	eventMembers  = []string{"id", "event", "data", "retry", "ttl"}
	eventRule     = "an event has id, event, data, retry and ttl"
	exampleObject = `an object such as {"data": "hello"}`
)

// decodeEvent decodes a JSON value that checkJSON has passed.
func decodeEvent(object []byte) (Event, *Problem) {
	return decodeEventWith(object, eventMembers, eventRule, nil)
}

// decodeEventWith decodes an event that has further members, which known names after
// an event's and other reads.
func decodeEventWith(object []byte, known []string, rule string, other func(member string, value []byte) *Problem) (Event, *Problem) {
	if object[0] != '{' {
		return Event{}, badRequest(fmt.Sprintf("%s is no event; send %s, or with ?raw=1 any JSON as the data", kind(object), exampleObject))
	}
	e := Event{NoData: true}
	seen := 0
	for member, value := range members(object) {
		i := slices.Index(known, member)
		if i < 0 {
			return Event{}, badRequest(fmt.Sprintf("%s is no member of an event%s; %s", quote(member), meant(member, known), rule))
		}
		if seen&(1<<i) != 0 {
			return Event{}, badRequest(fmt.Sprintf("%s: it comes twice; give it once", member))
		}
		seen |= 1 << i
		var p *Problem
		switch null := value[0] == 'n'; {
		case member == "data":
			e.NoData = false
			e.Data, p = textOf(member, value)
		case null: // as if it were absent
		case member == "id":
			e.ID, p = idOf(value)
		case member == "event":
			e.Type, p = stringOf(member, value)
		case member == "retry":
			e.Retry, p = spanOf(member, value)
		case member == "ttl":
			e.TTL, p = spanOf(member, value)
		default:
			p = other(member, value)
		}
		if p != nil {
			return Event{}, p
		}
	}
	return e, e.validate()
}

// decodeRaw makes a whole JSON document the data.
func decodeRaw(body []byte, query url.Values) (Event, *Problem) {
	if p := checkJSON(body); p != nil {
		return Event{}, p
	}
	return decodeText(body, query)
}

// rawWanted reports whether the query asks for the document itself as the data.
func rawWanted(query url.Values) (bool, *Problem) {
	values := query["raw"]
	switch {
	case len(values) == 0, len(values) == 1 && values[0] == "0":
		return false, nil
	case len(values) == 1 && values[0] == "1":
		return true, nil
	}
	return false, badRequest("raw: give raw=1 once, to send the JSON document itself as the data, or leave it out")
}

// decodeText makes a body the data.
func decodeText(body []byte, query url.Values) (Event, *Problem) {
	e := Event{Data: string(body)}
	if p := e.readFields(query); p != nil {
		return Event{}, p
	}
	return e, e.validate()
}

// decodeForm decodes application/x-www-form-urlencoded (WHATWG URL, 5.1), where
// a ; is like any other character and not what url.ParseQuery makes of it.
func decodeForm(body []byte) (Event, *Problem) {
	fields := url.Values{}
	for pair := range strings.SplitSeq(string(body), "&") {
		if pair == "" {
			continue
		}
		rawName, rawValue, _ := strings.Cut(pair, "=")
		name, err := url.QueryUnescape(rawName)
		if err != nil {
			return Event{}, badRequest(fmt.Sprintf("the form has a bad escape in %s; send a %% itself as %%25", quote(rawName)))
		}
		if !slices.Contains(eventMembers, name) {
			return Event{}, badRequest(fmt.Sprintf("%s is no field of an event%s; %s; what is no form goes as text/plain or application/json",
				quote(name), meant(name, eventMembers), eventRule))
		}
		value, err := url.QueryUnescape(rawValue)
		if err != nil {
			return Event{}, badRequest(fmt.Sprintf("%s: it has a bad escape; send a %% itself as %%25", name))
		}
		fields.Add(name, value)
	}
	e := Event{NoData: true}
	if data := fields["data"]; len(data) == 1 {
		e.Data, e.NoData = data[0], false
	} else if len(data) > 1 {
		return Event{}, badRequest("data: it comes twice; give it once")
	}
	if p := e.readFields(fields); p != nil {
		return Event{}, p
	}
	return e, e.validate()
}

// readFields sets what a form or a query says besides the data.
func (e *Event) readFields(fields url.Values) *Problem {
	for _, name := range []string{"id", "event", "retry", "ttl"} {
		values := fields[name]
		if len(values) == 0 {
			continue
		}
		if len(values) > 1 {
			return badRequest(fmt.Sprintf("%s: it comes twice; give it once", name))
		}
		var p *Problem
		switch value := values[0]; name {
		case "id":
			e.ID, p = value, nonEmptyID(value)
		case "event":
			e.Type = value
		case "retry":
			e.Retry, p = span(name, value)
		case "ttl":
			e.TTL, p = span(name, value)
		}
		if p != nil {
			return p
		}
	}
	return nil
}

var cloudMembers = []string{"specversion", "id", "type", "source", "data", "data_base64", "datacontenttype", "dataschema", "subject", "time"}

// decodeCloudEvent decodes a CloudEvent in the JSON format (CloudEvents 1.0.2).
// Of its attributes an event has the id and the type; the others, and
// extensions, go no further.
func decodeCloudEvent(body []byte) (Event, *Problem) {
	if p := checkJSON(body); p != nil {
		return Event{}, p
	}
	object := trimSpace(body)
	if object[0] != '{' {
		return Event{}, badRequest(fmt.Sprintf(`%s is no CloudEvent; send an object such as {"specversion": "1.0", "type": "greeting", "data": "hello"}`, kind(object)))
	}
	e := Event{NoData: true}
	version, both := "", 0
	seen := map[string]bool{}
	for member, value := range members(object) {
		if seen[member] {
			return Event{}, badRequest(fmt.Sprintf("%s: it comes twice; give it once", quote(member)))
		}
		seen[member] = true
		if member != "data_base64" && !validAttribute(member) {
			return Event{}, badRequest(fmt.Sprintf("%s is no attribute of a CloudEvent%s; their names are of a-z and 0-9", quote(member), meant(member, cloudMembers)))
		}
		if value[0] == 'n' { // as if it were absent (JSON format, 2.2), data too
			continue
		}
		var p *Problem
		switch member {
		case "specversion":
			version, p = stringOf(member, value)
		case "id":
			if e.ID, p = stringOf(member, value); p == nil {
				p = nonEmptyID(e.ID)
			}
		case "type":
			e.Type, p = nonEmptyOf(member, value)
		case "source":
			_, p = nonEmptyOf(member, value)
		case "data":
			e.NoData = false
			both++
			e.Data, p = textOf(member, value)
		case "data_base64":
			e.NoData = false
			both++
			e.Data, p = base64Of(member, value)
		}
		if p != nil {
			return Event{}, p
		}
	}
	if version != "1.0" {
		return Event{}, badRequest(fmt.Sprintf(`specversion: it is %s; a CloudEvent that can be published has "1.0"`, quote(version)))
	}
	if both > 1 {
		return Event{}, badRequest("the CloudEvent has data and data_base64; leave one of them out")
	}
	return e, e.validate()
}

// validAttribute reports whether s can name an attribute (CloudEvents 1.0.2,
// 3.1).
func validAttribute(s string) bool {
	for i := range len(s) {
		if !('a' <= s[i] && s[i] <= 'z' || '0' <= s[i] && s[i] <= '9') {
			return false
		}
	}
	return s != ""
}

// textOf returns a JSON value as the text of an event: a string is itself, all
// else is compact, with numbers, escapes and the order of members as they came.
func textOf(name string, value []byte) (string, *Problem) {
	if value[0] == '"' {
		return stringOf(name, value)
	}
	if value[0] != '{' && value[0] != '[' {
		return string(value), nil
	}
	var b bytes.Buffer
	b.Grow(len(value))
	if err := json.Compact(&b, value); err != nil {
		return "", badRequest(fmt.Sprintf("%s: %v", name, err))
	}
	return b.String(), nil
}

func stringOf(name string, value []byte) (string, *Problem) {
	if value[0] != '"' {
		return "", badRequest(fmt.Sprintf("%s: it is %s; give a string", name, kind(value)))
	}
	s, ok := unquote(value)
	if !ok {
		// What comes for it could only be U+FFFD, which is not what was published.
		return "", badRequest(fmt.Sprintf(`%s: it has one half of a surrogate pair (\ud800 to \udfff), which is no character; give both halves`, name))
	}
	return s, nil
}

func nonEmptyOf(name string, value []byte) (string, *Problem) {
	s, p := stringOf(name, value)
	if p == nil && s == "" {
		p = badRequest(fmt.Sprintf("%s: it is empty; give at least a character", name))
	}
	return s, p
}

func base64Of(name string, value []byte) (string, *Problem) {
	s, p := stringOf(name, value)
	if p != nil {
		return "", p
	}
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return "", badRequest(fmt.Sprintf("%s: %v; give the padded alphabet of RFC 4648, 4", name, err))
	}
	if !utf8.Valid(b) {
		return "", badRequest(fmt.Sprintf("%s: what it holds is not valid UTF-8; give the bytes as text in data, such as their base64", name))
	}
	return string(b), nil
}

// idOf takes a number literally, since beyond 2^53 it has no other exact form.
func idOf(value []byte) (string, *Problem) {
	if isNumber(value) {
		return string(value), nil
	}
	if value[0] != '"' {
		return "", badRequest(fmt.Sprintf("id: it is %s; give a string or a number", kind(value)))
	}
	id, p := stringOf("id", value)
	if p == nil {
		p = nonEmptyID(id)
	}
	return id, p
}

func nonEmptyID(id string) *Problem {
	if id == "" {
		return badRequest("id: it is empty; leave it out, and the server gives one")
	}
	return nil
}

// spanOf reads milliseconds from a JSON number, which may have the form 1e3 or
// 3000.0.
func spanOf(name string, value []byte) (time.Duration, *Problem) {
	if !isNumber(value) {
		return 0, badRequest(fmt.Sprintf("%s: it is %s; give a number of milliseconds such as 3000", name, kind(value)))
	}
	text := string(value)
	if f, err := strconv.ParseFloat(text, 64); err == nil && f >= 0 && f < math.MaxInt64 && f == math.Trunc(f) {
		text = strconv.FormatInt(int64(f), 10)
	}
	return span(name, text)
}

// span reads milliseconds; 0 of them is a negative duration, since the zero
// value is none at all.
func span(name, text string) (time.Duration, *Problem) {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n > uint64(maxSpan/time.Millisecond) {
		return 0, badRequest(fmt.Sprintf("%s: %s is no whole number of milliseconds from 0 to %d", name, quote(text), maxSpan/time.Millisecond))
	}
	if n == 0 {
		return -1, nil
	}
	return time.Duration(n) * time.Millisecond, nil
}

// meant suggests the known name that one differs from by case or two letters.
func meant(name string, known []string) string {
	best, distance := "", 3
	for _, k := range known {
		if strings.EqualFold(name, k) {
			best, distance = k, 0
		} else if d := editDistance(name, k); d < distance && d < len(k) {
			best, distance = k, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %q?)", best)
}

// editDistance counts the bytes to insert, drop or change between a and b. A
// long a is far from everything.
func editDistance(a, b string) int {
	if len(a) > 32 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// JSON. encoding/json says whether a text is valid; these walk through one that
// is, since its decoder loses the text of numbers, the case and the repetition
// of members, and half of a surrogate pair.

// checkJSON reports why b is no JSON text in UTF-8 (RFC 8259).
func checkJSON(b []byte) *Problem {
	if json.Valid(b) && utf8.Valid(b) {
		return nil
	}
	if firstByte(b) == 0 {
		return badRequest("nothing to send: the JSON is empty; send " + exampleObject)
	}
	if !utf8.Valid(b) {
		return badRequest("the JSON is not valid UTF-8, which RFC 8259 asks for")
	}
	var v json.RawMessage
	err := json.Unmarshal(b, &v)
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return badRequest(fmt.Sprintf("the JSON can't be read at byte %d: %v; send %s", syntax.Offset, err, exampleObject))
	}
	return badRequest(fmt.Sprintf("the JSON can't be read: %v; send %s", err, exampleObject))
}

const jsonSpace = " \t\r\n"

func trimSpace(b []byte) []byte { return bytes.Trim(b, jsonSpace) }
func skipSpace(b []byte) []byte { return bytes.TrimLeft(b, jsonSpace) }

// firstByte returns what a JSON text begins with, 0 where nothing does.
func firstByte(b []byte) byte {
	if b = skipSpace(b); len(b) > 0 {
		return b[0]
	}
	return 0
}

// members yields the names and the values of a valid object.
func members(object []byte) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		for rest := skipSpace(object[1:]); rest[0] != '}'; {
			if rest[0] == ',' {
				rest = skipSpace(rest[1:])
			}
			var name, value []byte
			name, rest = cutValue(rest)
			rest = skipSpace(rest)     // up to the colon
			rest = skipSpace(rest[1:]) // and past it
			value, rest = cutValue(rest)
			rest = skipSpace(rest)
			// A name with half of a surrogate pair is the empty one, which no
			// object here has either.
			s, _ := unquote(name)
			if !yield(s, value) {
				return
			}
		}
	}
}

// elements yields the values of a valid array.
func elements(array []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for rest := skipSpace(array[1:]); rest[0] != ']'; {
			if rest[0] == ',' {
				rest = skipSpace(rest[1:])
			}
			var value []byte
			value, rest = cutValue(rest)
			rest = skipSpace(rest)
			if !yield(value) {
				return
			}
		}
	}
}

// cutValue splits b, which begins with a valid JSON value, after it.
func cutValue(b []byte) (value, rest []byte) {
	depth := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			for i++; b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
		case '{', '[':
			depth++
			continue
		case '}', ']':
			depth--
		default:
			if depth > 0 {
				continue
			}
			for i+1 < len(b) && strings.IndexByte(",]}"+jsonSpace, b[i+1]) < 0 {
				i++
			}
		}
		if depth == 0 {
			return b[:i+1], b[i+1:]
		}
	}
	return b, nil
}

// unquote returns what a valid JSON string stands for, and false when that has
// half of a surrogate pair.
func unquote(quoted []byte) (string, bool) {
	s := quoted[1 : len(quoted)-1]
	i := bytes.IndexByte(s, '\\')
	if i < 0 {
		return string(s), true
	}
	b := make([]byte, 0, len(s))
	for ; i >= 0; i = bytes.IndexByte(s, '\\') {
		b = append(b, s[:i]...)
		c := s[i+1]
		s = s[i+2:]
		switch c {
		case 'b':
			c = '\b'
		case 'f':
			c = '\f'
		case 'n':
			c = '\n'
		case 'r':
			c = '\r'
		case 't':
			c = '\t'
		case 'u':
			r := hexRune(s)
			s = s[4:]
			if utf16.IsSurrogate(r) {
				if len(s) < 6 || s[0] != '\\' || s[1] != 'u' {
					return "", false
				}
				if r = utf16.DecodeRune(r, hexRune(s[2:])); r == utf8.RuneError {
					return "", false
				}
				s = s[6:]
			}
			b = utf8.AppendRune(b, r)
			continue
		}
		b = append(b, c)
	}
	return string(append(b, s...)), true
}

// hexRune reads the four digits of a \u escape.
func hexRune(s []byte) rune {
	n, _ := strconv.ParseUint(string(s[:4]), 16, 32)
	return rune(n)
}

func isNumber(value []byte) bool { return value[0] == '-' || '0' <= value[0] && value[0] <= '9' }

// kind names what a valid JSON value is.
func kind(value []byte) string {
	switch value[0] {
	case '{':
		return "an object"
	case '[':
		return "an array"
	case '"':
		return "a string"
	case 't', 'f':
		return "a boolean"
	case 'n':
		return "null"
	}
	return "a number"
}

// Encoding: an event becomes the bytes that every consumer shares.

// A frame is an event encoded once, shared by every consumer, never changed
// after its commit.
//
// Its text is, each in a line where there is one, "id: ", "event: ", "retry: ",
// then a "data: " for each line of the data, then an empty line. So what was
// published can be read back from it; only where it had CRs, a rendition keeps
// it.
type frame struct {
	seq  uint64 // its place in the order
	time int64  // Unix nanoseconds of the commit
	// expires is by registry.clock, 0 never. A DELETE moves it.
	expires  atomic.Int64
	channels string // what it was published to, joined by commas

	// chunk is the text as a chunk of HTTP/1.1 (RFC 9112, 7.1), so that it is
	// sent as it is.
	chunk []byte
	// renditions are at most two: the data, where the text has not all of it, and
	// the envelope that was asked for last.
	renditions atomic.Pointer[rendition]

	refs int32 // logs that hold it; guarded by registry.mu

	// What is where in chunk.
	head     uint8 // bytes before the text
	idLen    uint8 // 0: there is no id
	typeLen  uint8 // 0: there is no type
	retryLen uint8 // 0: there is no retry
	flags    frameFlags
}

type frameFlags uint8

const (
	flagGiven   frameFlags = 1 << iota // the id was given by the server
	flagNoData                         // there is no data line
	flagCR                             // the data had CRs
	flagPrivate                        // its channels are of persons only
	flagControl                        // it is the server's own, and not kept
)

// A rendition is another form of a frame's event.
type rendition struct {
	channel string // that of an envelope; "": the data as it was published
	bytes   []byte
	next    *rendition
}

const (
	idField    = "id: "
	typeField  = "event: "
	retryField = "retry: "
	dataField  = "data: "

	// idHole stands where the server's id comes.
	idHole = "00000000-0000-0000-0000-000000000000"
)

// newFrame encodes a valid event. Where it has no id, setID must follow.
func newFrame(e *Event) *frame {
	f := &frame{}
	id := e.ID
	if id == "" {
		id = idHole
		f.flags |= flagGiven
	}
	f.idLen, f.typeLen = uint8(len(id)), uint8(len(e.Type))
	var digits [20]byte
	var retry []byte
	if e.Retry != 0 {
		retry = strconv.AppendInt(digits[:0], max(e.Retry, 0).Milliseconds(), 10)
		f.retryLen = uint8(len(retry))
	}

	// CR, LF and CRLF end a line (WHATWG HTML, 9.2.5).
	n := f.dataStart() + 1
	cr := strings.Count(e.Data, "\r")
	if e.NoData {
		f.flags |= flagNoData
	} else {
		ends := cr + strings.Count(e.Data, "\n")
		lines := ends + 1
		if cr > 0 {
			lines -= strings.Count(e.Data, "\r\n")
		}
		n += len(e.Data) - ends + lines*(len(dataField)+1)
	}

	f.head = uint8(chunkHead(n))
	b := make([]byte, 0, int(f.head)+n+2)
	b = append(strconv.AppendUint(b, uint64(n), 16), "\r\n"...)
	b = append(append(append(b, idField...), id...), '\n')
	if e.Type != "" {
		b = append(append(append(b, typeField...), e.Type...), '\n')
	}
	if e.Retry != 0 {
		b = append(append(append(b, retryField...), retry...), '\n')
	}
	if !e.NoData {
		b = appendData(b, e.Data, cr > 0)
	}
	f.chunk = append(b, "\n\r\n"...)
	if cr > 0 {
		f.flags |= flagCR
		f.renditions.Store(&rendition{bytes: []byte(e.Data)})
	}
	return f
}

// appendData appends a data field for each line.
func appendData(b []byte, data string, hasCR bool) []byte {
	for {
		i := 0
		if hasCR {
			i = strings.IndexAny(data, "\r\n")
		} else {
			i = strings.IndexByte(data, '\n')
		}
		b = append(b, dataField...)
		if i < 0 {
			return append(append(b, data...), '\n')
		}
		b = append(append(b, data[:i]...), '\n')
		if strings.HasPrefix(data[i:], "\r\n") {
			i++
		}
		data = data[i+1:]
	}
}

// controlFrame makes a frame of the server's own text: an "event: " and "data: "
// line, without an id.
func controlFrame(text string) *frame {
	f := &frame{head: uint8(chunkHead(len(text))), chunk: newChunk(text), flags: flagControl}
	if rest, ok := strings.CutPrefix(text, typeField); ok {
		f.typeLen = uint8(strings.IndexByte(rest, '\n'))
	}
	return f
}

// setID fills in the id that the event got at its commit.
func (f *frame) setID(id [36]byte) {
	copy(f.chunk[int(f.head)+len(idField):], id[:])
}

// given reports whether the server gave the id.
func (f *frame) given() bool { return f.flags&flagGiven != 0 }

// private reports whether its channels are of persons only.
func (f *frame) private() bool { return f.flags&flagPrivate != 0 }

// control reports whether the event is the server's own.
func (f *frame) control() bool { return f.flags&flagControl != 0 }

// noData reports whether the event has no data, not even the empty one.
func (f *frame) noData() bool { return f.flags&flagNoData != 0 }

// text returns the event as text/event-stream.
func (f *frame) text() []byte { return f.chunk[f.head : len(f.chunk)-2] }

// id returns the event's id. It is part of the frame and keeps it in memory.
func (f *frame) id() string {
	if f.idLen == 0 {
		return ""
	}
	return f.field(0, idField, f.idLen)
}

// typ returns the event's type, "" where it has none. It is part of the frame.
func (f *frame) typ() string {
	if f.typeLen == 0 {
		return ""
	}
	return f.field(lineLen(idField, f.idLen), typeField, f.typeLen)
}

// retry returns what Event.Retry was.
func (f *frame) retry() time.Duration {
	if f.retryLen == 0 {
		return 0
	}
	text := f.field(lineLen(idField, f.idLen)+lineLen(typeField, f.typeLen), retryField, f.retryLen)
	n, _ := strconv.ParseInt(text, 10, 64)
	if n == 0 {
		return -1
	}
	return time.Duration(n) * time.Millisecond
}

// data returns the data as it was published. It may be part of the frame.
func (f *frame) data() string {
	if f.noData() {
		return ""
	}
	if f.flags&flagCR != 0 {
		return view(find(f.renditions.Load(), "").bytes)
	}
	lines := f.text()[f.dataStart()+len(dataField):]
	s := view(lines[:len(lines)-2]) // without the line's end and the empty line
	if strings.IndexByte(s, '\n') < 0 {
		return s
	}
	return strings.ReplaceAll(s, "\n"+dataField, "\n")
}

// event returns the event as it came to who follows channel.
func (f *frame) event(channel string) Event {
	return Event{
		ID: f.id(), Type: f.typ(), Data: f.data(), NoData: f.noData(), Retry: f.retry(),
		Channel: channel, Time: time.Unix(0, f.time).UTC(),
	}
}

// envelope returns the chunk of the event whose data says what it is, too. It
// is made once and shared by who asks for the same channel, one after the other, as
// those who follow it are served; only the last is kept, or else an event to many
// channels would be kept as often. It is not part of size.
func (f *frame) envelope(channel string) []byte {
	var made *rendition
	for {
		first := f.renditions.Load()
		if r := find(first, channel); r != nil {
			return r.bytes
		}
		if made == nil {
			made = &rendition{channel: channel, bytes: f.makeEnvelope(channel)}
		}
		made.next = find(first, "")
		if f.renditions.CompareAndSwap(first, made) {
			return made.bytes
		}
	}
}

func (f *frame) makeEnvelope(channel string) []byte {
	var data *string
	if !f.noData() {
		s := f.data()
		data = &s
	}
	var b strings.Builder
	b.Write(f.text()[:f.dataStart()])
	b.WriteString(dataField)
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(struct {
		Channel string    `json:"channel"`
		ID      string    `json:"id"`
		Event   string    `json:"event"`
		Data    *string   `json:"data"`
		Time    time.Time `json:"time"`
	}{channel, f.id(), f.typ(), data, time.Unix(0, f.time).UTC()})
	if err != nil {
		panic("eventsource: an envelope of strings can't fail to encode: " + err.Error())
	}
	b.WriteByte('\n') // after the encoder's own
	return newChunk(b.String())
}

// size returns the bytes of memory that the frame holds. It never changes, so
// that what is counted when it comes is what is counted when it goes.
func (f *frame) size() int64 {
	n := int64(unsafe.Sizeof(*f)) + int64(cap(f.chunk))
	if f.flags&flagCR != 0 {
		r := find(f.renditions.Load(), "")
		n += int64(unsafe.Sizeof(*r)) + int64(cap(r.bytes))
	}
	return n
}

// field returns the value of the field that begins at start of the text.
func (f *frame) field(start int, name string, n uint8) string {
	start += int(f.head) + len(name)
	return view(f.chunk[start : start+int(n)])
}

// dataStart returns where in the text the data begins.
func (f *frame) dataStart() int {
	return lineLen(idField, f.idLen) + lineLen(typeField, f.typeLen) + lineLen(retryField, f.retryLen)
}

// lineLen returns the length of a field's line, 0 where there is none.
func lineLen(name string, n uint8) int {
	if n == 0 {
		return 0
	}
	return len(name) + int(n) + 1
}

// find returns the channel's rendition, nil where there is none.
func find(r *rendition, channel string) *rendition {
	for ; r != nil && r.channel != channel; r = r.next {
	}
	return r
}

// view returns b as a string without a copy. b must not change any more.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// newChunk returns text as a chunk of HTTP/1.1. The empty text would be the end
// of the body.
func newChunk(text string) []byte {
	b := make([]byte, 0, chunkHead(len(text))+len(text)+2)
	b = append(strconv.AppendUint(b, uint64(len(text)), 16), "\r\n"...)
	return append(append(b, text...), "\r\n"...)
}

// chunkHead returns the length of the head of a chunk of n bytes.
func chunkHead(n int) int { return max(1, (bits.Len(uint(n))+3)/4) + 2 }

// chunkText returns what a chunk holds.
func chunkText(chunk []byte) []byte {
	return chunk[bytes.IndexByte(chunk, '\n')+1 : len(chunk)-2]
}
