package eventsource

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// pageBytes is about the most data of a page of events.
	pageBytes = 4 << 20
	// mostTypes is how many types a filter may name.
	mostTypes = 100
)

// A keptEvent is a kept event as the API shows it.
type keptEvent struct {
	ID       string    `json:"id"`
	Type     string    `json:"event"`
	Data     *string   `json:"data"`            // null: it has none
	Retry    *int64    `json:"retry,omitempty"` // milliseconds
	Time     time.Time `json:"time"`
	Channels []string  `json:"channels"`
	Read     *bool     `json:"read,omitempty"` // in the channel of a person only
}

// show returns an event as a visitor sees it.
func (c *apiCall) show(e *Stored) keptEvent {
	shown := keptEvent{ID: e.ID, Type: e.Type, Time: e.Time.UTC(), Channels: []string{}}
	if !e.NoData {
		shown.Data = &e.Data
	}
	if e.Retry != 0 {
		shown.Retry = new(max(e.Retry, 0).Milliseconds())
	}
	for _, name := range e.Channels {
		// What else it was published to is told to who may follow that.
		if name == c.channel || name == globalName || c.policy.access.follows(c.visitor, name) {
			shown.Channels = append(shown.Channels, name)
		}
	}
	if c.hasMarks() {
		shown.Read = &e.Read
	}
	return shown
}

// hasMarks reports whether events of the channel are read or unread.
func (c *apiCall) hasMarks() bool { return private(c.channel) && !isWildcard(c.channel) }

// sees reports whether a page of "*" has an event for the visitor, as a stream of "*"
// has (consumer.sees).
func (c *apiCall) sees(e *Stored) bool {
	return !c.hides() || slices.ContainsFunc(e.Channels, func(name string) bool { return !private(name) })
}

// hides reports whether the channel holds events that are not for the visitor.
func (c *apiCall) hides() bool { return c.channel == "*" && c.visitor.hides() }

// countRead counts a request that reads events as one for a stream, which could have
// brought them too.
func (c *apiCall) countRead() *Problem {
	_, p := c.policy.take(c.policy.connects, c.visitor, c.Request, 1)
	return p
}

// listEvents is GET on the events of a channel.
func (s *Server) listEvents(w http.ResponseWriter, c *apiCall) *Problem {
	if c.query.Has("id") {
		if len(c.query) > 1 {
			return badRequest("id: it is one event, for which no other parameter counts; leave them out")
		}
		c.id = c.query.Get("id")
		return s.showEvent(w, c)
	}
	q, p := s.readPage(c)
	if p != nil {
		return p
	}
	if p := c.countRead(); p != nil {
		return p
	}
	// The page next to a place before which alone it is to be: read backwards.
	back := q.Before > 0 && !c.query.Has("after") && !q.Descending
	q.Descending = q.Descending || back
	kept, more, p := s.pageOfEvents(c, q)
	if p != nil {
		return p
	}
	if len(kept) > 0 && more {
		w.Header().Set("Link", s.nextPage(c, q.Descending, &kept[len(kept)-1]))
	}
	if back {
		slices.Reverse(kept)
	}
	document := struct {
		Channel string      `json:"channel"`
		Events  []keptEvent `json:"events"`
		More    bool        `json:"more"`
		Unread  *int        `json:"unread,omitempty"`
	}{Channel: c.channel, Events: make([]keptEvent, len(kept)), More: more}
	for i := range kept {
		document.Events[i] = c.show(&kept[i])
	}
	if c.hasMarks() {
		if document.Unread, p = s.unread(w, c); p != nil {
			return p
		}
	}
	answerTagged(w, c, encodeAnswer(document))
	return nil
}

// readPage returns what a request asks for.
func (s *Server) readPage(c *apiCall) (Query, *Problem) {
	q := Query{Channel: c.channel, Bytes: pageBytes}
	var p *Problem
	if q.Limit, p = c.limit(); p != nil {
		return q, p
	}
	order, p := c.oneOf("order", "asc", "desc")
	if p != nil {
		return q, p
	}
	q.Descending = order == "desc"
	status, p := c.oneOf("status", "all", "unread", "read")
	switch {
	case p != nil:
		return q, p
	case c.query.Has("status") && !c.hasMarks():
		return q, marksElsewhere(c.channel)
	case status == "unread":
		q.Status = Unread
	case status == "read":
		q.Status = Read
	}
	if c.query.Has("event") {
		if q.Types = splitList(c.query.Get("event")); len(q.Types) == 0 || len(q.Types) > mostTypes {
			return q, badRequest(fmt.Sprintf(`event: give 1 to %d types joined by commas, "message" being the untyped`, mostTypes))
		}
	}
	if q.After, p = s.placeOf(c, "after"); p != nil {
		return q, p
	}
	q.Before, p = s.placeOf(c, "before")
	if c.query.Has("before") {
		q.Before = max(q.Before, 1) // before the first place there is nothing, which 0 does not say
	}
	return q, p
}

// placeOf returns the place of the id in a parameter, 0 where it is not there.
func (s *Server) placeOf(c *apiCall, parameter string) (uint64, *Problem) {
	if !c.query.Has(parameter) {
		return 0, nil
	}
	id := c.query.Get(parameter)
	if p := checkID(parameter, id); p != nil {
		return 0, p
	}
	return s.placeIn(c, parameter, id)
}

// placeIn returns the place of an id that came as a parameter or member.
func (s *Server) placeIn(c *apiCall, name, id string) (uint64, *Problem) {
	seq, known, p := s.place(c, id)
	switch {
	case p != nil:
		return 0, p
	case !known:
		return 0, newProblem(http.StatusNotFound, name+": "+quote(id)+" is the id of no event that is known in "+quote(c.channel)+
			"; one that its publisher gave is forgotten when the event is no longer kept")
	}
	return seq, nil
}

// place is Place, but for events that are not for the visitor.
func (s *Server) place(c *apiCall, id string) (uint64, bool, *Problem) {
	if !c.hides() {
		seq, known, err := s.Place(c.Context(), c.channel, id)
		return seq, known, s.problemOf(err)
	}
	if seq, known := s.registry.place(id); known {
		return seq, true, nil
	}
	kept, _, p := s.pageOfEvents(c, Query{Channel: c.channel, ID: id, Limit: 1})
	if p != nil || len(kept) == 0 {
		return 0, false, p
	}
	return kept[0].Seq, true, nil
}

// checkID refuses what can be no event's id.
func checkID(name, id string) *Problem {
	if id == "" || len(id) > maxID {
		return badRequest(fmt.Sprintf("%s: give the id of an event, 1 to %d bytes", name, maxID))
	}
	return nil
}

// pageOfEvents reads a page, of what the visitor sees.
func (s *Server) pageOfEvents(c *apiCall, q Query) (kept []Stored, more bool, p *Problem) {
	limit := q.Limit
	for held := 0; ; {
		page, err := s.Read(c.Context(), q)
		if err != nil {
			return nil, false, s.problemOf(err)
		}
		if !c.hides() {
			return page.Events, page.More, nil
		}
		// Whether there is more depends on whether the visitor sees one beyond.
		for i := range page.Events {
			e := &page.Events[i]
			if q.Descending {
				q.Before = e.Seq
			} else {
				q.After = e.Seq
			}
			if !c.sees(e) {
				continue
			}
			if len(kept) == limit {
				return kept, true, nil
			}
			kept = append(kept, *e)
			held += len(e.Data)
		}
		if !page.More || len(page.Events) == 0 || held >= pageBytes {
			return kept, page.More, nil
		}
	}
}

// nextPage is the link to what follows the last event of a page (RFC 8288). It has the
// event's place in place of its id, which its publisher may have used twice.
func (s *Server) nextPage(c *apiCall, descending bool, last *Stored) string {
	q := url.Values{}
	maps.Copy(q, c.query)
	end := "after"
	if descending {
		end = "before"
	}
	q.Set(end, s.registry.placeID(last.Seq, last.Time))
	return "<" + c.URL.EscapedPath() + "?" + q.Encode() + `>; rel="next"`
}

// placeID returns the id that the server would give at a place.
func (r *registry) placeID(seq uint64, at time.Time) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.epoch.ID(seq, at)
}

// unread counts what is unread in the channel, and says so in the answer's head.
func (s *Server) unread(w http.ResponseWriter, c *apiCall) (*int, *Problem) {
	n, err := s.Count(c.Context(), Query{Channel: c.channel, Status: Unread})
	if err != nil {
		return nil, s.problemOf(err)
	}
	w.Header().Set("X-Unread-Count", strconv.Itoa(n))
	return &n, nil
}

// showUnread is GET on the number of unread events.
func (s *Server) showUnread(w http.ResponseWriter, c *apiCall) *Problem {
	if p := c.countRead(); p != nil {
		return p
	}
	n, p := s.unread(w, c)
	if p == nil {
		answerTagged(w, c, encodeAnswer(unreadCount{*n}))
	}
	return p
}

// An unreadCount says how many events of a channel are unread.
type unreadCount struct {
	Unread int `json:"unread"`
}

// eventOf returns the kept event that a request names.
func (s *Server) eventOf(c *apiCall) (*Stored, *Problem) {
	if p := checkID("id", c.id); p != nil {
		return nil, p
	}
	seq, known, p := s.place(c, c.id)
	if p != nil {
		return nil, p
	}
	asked := []Query{{ID: c.id}}
	if known && seq > 0 {
		// A place says nothing of whose id it is: a publisher's own may look like one.
		asked = []Query{{After: seq - 1, Before: seq + 1}, {ID: c.id}}
	}
	for _, q := range asked {
		q.Channel, q.Limit = c.channel, 1
		kept, _, p := s.pageOfEvents(c, q)
		if p != nil {
			return nil, p
		}
		if len(kept) > 0 && kept[0].ID == c.id {
			return &kept[0], nil
		}
	}
	return nil, newProblem(http.StatusNotFound, "no event with the id "+quote(c.id)+" is kept of "+quote(c.channel))
}

// showEvent is GET on one event.
func (s *Server) showEvent(w http.ResponseWriter, c *apiCall) *Problem {
	if p := c.countRead(); p != nil {
		return p
	}
	e, p := s.eventOf(c)
	if p == nil {
		answerTagged(w, c, encodeAnswer(c.show(e)))
	}
	return p
}

// markEvent is PUT and DELETE on whether one event is read.
func (s *Server) markEvent(w http.ResponseWriter, c *apiCall) *Problem {
	if c.id == "" {
		c.id = c.query.Get("id")
	}
	e, p := s.eventOf(c)
	if p != nil {
		return p
	}
	return s.mark(w, c, Marks{Seqs: []uint64{e.Seq}, IDs: []string{e.ID}, Unread: c.Method == http.MethodDelete})
}

// mark marks events and answers with how many are unread then.
func (s *Server) mark(w http.ResponseWriter, c *apiCall, m Marks) *Problem {
	n, err := s.Mark(c.Context(), c.channel, m)
	if err != nil {
		return s.problemOf(err)
	}
	w.Header().Set("X-Unread-Count", strconv.Itoa(n))
	answer(w, http.StatusOK, unreadCount{n})
	return nil
}

// markEvents is POST on what is read: all up to an event, or several.
func (s *Server) markEvents(w http.ResponseWriter, c *apiCall) *Problem {
	body, p := s.jsonBody(w, c)
	if p != nil {
		return p
	}
	asked, p := decodeMarks(body)
	if p != nil {
		return p
	}
	m := Marks{UpToID: asked.upTo, IDs: asked.ids, Unread: asked.unread}
	if asked.upTo != "" {
		if m.UpTo, p = s.placeIn(c, "id", asked.upTo); p != nil {
			return p
		}
	}
	for _, id := range asked.ids {
		seq, p := s.placeIn(c, "ids", id)
		if p != nil {
			return p
		}
		m.Seqs = append(m.Seqs, seq)
	}
	return s.mark(w, c, m)
}

// A marking is what a request wants to have marked.
type marking struct {
	upTo   string   // the id of the last; "": none
	ids    []string // of single events
	unread bool
}

var markMembers = []string{"id", "ids", "read"}

// decodeMarks decodes an object that checkJSON has passed.
func decodeMarks(object []byte) (marking, *Problem) {
	var m marking
	seen := map[string]bool{}
	for member, value := range members(object) {
		var p *Problem
		switch {
		case !slices.Contains(markMembers, member):
			p = badRequest(fmt.Sprintf("%s is no member of this%s; there are %s", quote(member), meant(member, markMembers), strings.Join(markMembers, ", ")))
		case seen[member]:
			p = badRequest(member + ": it comes twice; give it once")
		case member == "id":
			if m.upTo, p = idOf(value); p == nil {
				p = checkID(member, m.upTo)
			}
		case member == "ids":
			m.ids, p = idsOf(value)
		case string(value) == "true" || string(value) == "false":
			m.unread = string(value) == "false"
		default:
			p = badRequest("read: it is " + kind(value) + "; give true or false, or leave it out")
		}
		if p != nil {
			return m, p
		}
		seen[member] = true
	}
	if seen["id"] == seen["ids"] {
		return m, badRequest(`give either id, for all events up to one, or ids, for these; such as {"id": "…"}`)
	}
	return m, nil
}

// idsOf reads a list of ids.
func idsOf(value []byte) (ids []string, p *Problem) {
	list, p := listOf("ids", value, mostMarks)
	if p != nil {
		return nil, p
	}
	for _, one := range list {
		id, p := idOf(one)
		if p == nil {
			p = checkID("ids", id)
		}
		if p != nil {
			return nil, p
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// listOf reads an array with at least one value and at most so many.
func listOf(name string, value []byte, most int) (list [][]byte, p *Problem) {
	if value[0] != '[' {
		return nil, badRequest(fmt.Sprintf("%s: it is %s; give an array", name, kind(value)))
	}
	for one := range elements(value) {
		if len(list) == most {
			return nil, badRequest(fmt.Sprintf("%s: it has more than %d; give fewer at once", name, most))
		}
		list = append(list, one)
	}
	if len(list) == 0 {
		return nil, badRequest(name + ": it is empty; give at least one")
	}
	return list, nil
}

// publishToOne is POST on the events of a channel, as on the channel itself.
func (s *Server) publishToOne(w http.ResponseWriter, c *apiCall) *Problem {
	s.publishAs(w, c.Request, publisher{visitor: c.visitor, names: []string{c.channel}, policy: c.policy})
	return nil
}

const severalRule = "this has channels, and of an event id, event, data, retry and ttl"

var severalMembers = append(slices.Clone(eventMembers), "channels")

// publishToSeveral is POST on /events: one event for the channels that it names.
func (s *Server) publishToSeveral(w http.ResponseWriter, c *apiCall) *Problem {
	if !s.flight.enter() {
		return drainingProblem(s.settings.Retry)
	}
	defer s.flight.leave()
	key, p := idempotencyKey(c.Request)
	if p != nil {
		return p
	}
	body, p := s.jsonBody(w, c)
	if p != nil {
		return p
	}
	by := publisher{visitor: c.visitor, policy: c.policy}
	e, p := decodeEventWith(body, severalMembers, severalRule, func(_ string, value []byte) (p *Problem) {
		by.names, p = channelsOf(value, c.policy.limits.ChannelsPerConsumer)
		return p
	})
	if p != nil {
		return p
	}
	if by.names == nil {
		return badRequest("channels: they are missing; send " + exampleOf[c.op.path])
	}
	if by.names, p = by.policy.access.expandPersonal(by.visitor, by.names); p != nil {
		return p
	}
	if p := by.allowed(); p != nil {
		return p
	}
	rec := &Record{Channels: by.names, Events: []Event{e}}
	if key != "" {
		rec.Key = keyOf(by.visitor, by.names, key)
		rec.Body = bodyOf(body)
	}
	receipt, p := s.commitFor(c.Request, by, rec, s.settings.Timeout)
	if p == nil {
		answerText(w, http.StatusCreated, receipt.encode(false))
	}
	return p
}

// channelsOf reads a list of channels to publish to, each once. An invalid name in a
// body is a bad body.
func channelsOf(value []byte, most int) (names []string, p *Problem) {
	list, p := listOf("channels", value, most)
	if p != nil {
		return nil, p
	}
	for _, one := range list {
		name, p := stringOf("channels", one)
		if p != nil {
			return nil, p
		}
		if err := validName(name); err != nil && name != globalName && name != personalName {
			if validPattern(name) == nil {
				return nil, badRequest("channels: " + quote(name) + " is a wildcard, which can only be followed: name the channels themselves")
			}
			return nil, badRequest("channels: " + clip(err.Error()))
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names, nil
}
