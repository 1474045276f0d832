package eventsource

import (
	"crypto/rand"
	"encoding/hex"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Channels, who follows them, and the node, for administrators.

// mostPages bounds the page that may be asked for.
const mostPages = 1_000_000

// listChannels is GET on /channels.
func (s *Server) listChannels(w http.ResponseWriter, c *apiCall) *Problem {
	limit, p := c.limit()
	if p != nil {
		return p
	}
	page := 1
	if c.query.Has("page") {
		n, err := strconv.Atoi(c.query.Get("page"))
		if err != nil || n < 1 || n > mostPages {
			return badRequest("page: " + quote(c.query.Get("page")) + " is no number from 1 to " + strconv.Itoa(mostPages))
		}
		page = n
	}
	names, more, p := s.pageOfChannels(c, page, limit)
	if p != nil {
		return p
	}
	type entry struct {
		Channel   string `json:"channel"`
		Consumers int    `json:"consumers"`
	}
	list := make([]entry, len(names))
	for i, name := range names {
		list[i] = entry{name, s.registry.count(name)}
	}
	answer(w, http.StatusOK, struct {
		Channels []entry `json:"channels"`
		Page     int     `json:"page"`
		Limit    int     `json:"limit"`
		More     bool    `json:"more"`
	}{list, page, limit, more})
	return nil
}

// pageOfChannels returns a page of the channels that the visitor may know of, and
// whether there are others after it.
func (s *Server) pageOfChannels(c *apiCall, page, limit int) (names []string, more bool, p *Problem) {
	before := (page - 1) * limit // on earlier pages
	after := ""
	for len(names) <= before+limit {
		want := before + limit + 1 - len(names)
		next, err := s.ChannelsAfter(c.Context(), c.query.Get("prefix"), after, want)
		if err != nil {
			return nil, false, s.problemOf(err)
		}
		last := ""
		if len(next) > 0 {
			last = next[len(next)-1]
		}
		if c.visitor.hides() {
			kept := slices.DeleteFunc(slices.Clone(next), private)
			names = append(names, kept...)
			if private(last) {
				last = personalPrefix[:len(personalPrefix)-1] + "/" // after all of them
			}
		} else {
			names = append(names, next...)
		}
		if len(next) < want {
			break
		}
		after = last
	}
	names = names[min(before, len(names)):]
	return names[:min(limit, len(names))], len(names) > limit, nil
}

// showChannel is GET on a channel.
func (s *Server) showChannel(w http.ResponseWriter, c *apiCall) *Problem {
	type place struct {
		ID   string    `json:"id"`
		Time time.Time `json:"time"`
	}
	end := func(descending bool) (*place, *Problem) {
		page, err := s.Read(c.Context(), Query{Channel: c.channel, Descending: descending, Limit: 1})
		if err != nil || len(page.Events) == 0 {
			return nil, s.problemOf(err)
		}
		return &place{page.Events[0].ID, page.Events[0].Time.UTC()}, nil
	}
	consumers := s.registry.count(c.channel)
	events, err := s.Count(c.Context(), Query{Channel: c.channel})
	if err != nil {
		return s.problemOf(err)
	}
	if consumers == 0 && events == 0 {
		return newProblem(http.StatusNotFound, "there is no channel "+quote(c.channel)+": one exists while a consumer follows it by name or an event of it is kept")
	}
	var oldest, newest *place
	if c.policy.access.follows(c.visitor, c.channel) { // ids may say something
		var p *Problem
		if oldest, p = end(false); p == nil {
			newest, p = end(true)
		}
		if p != nil {
			return p
		}
	}
	answer(w, http.StatusOK, struct {
		Channel   string `json:"channel"`
		Consumers int    `json:"consumers"`
		Events    int    `json:"events"`
		Oldest    *place `json:"oldest"`
		Newest    *place `json:"newest"`
	}{c.channel, consumers, events, oldest, newest})
	return nil
}

// deleteChannel is DELETE on a channel, as on the channel itself.
func (s *Server) deleteChannel(w http.ResponseWriter, c *apiCall) *Problem {
	removed, p := s.purgeFor(c.Request, c.visitor, []string{c.channel})
	if p == nil {
		answer(w, http.StatusOK, removed)
	}
	return p
}

// listConsumers is GET on the consumers of a channel.
func (s *Server) listConsumers(w http.ResponseWriter, c *apiCall) *Problem {
	limit, p := c.limit()
	if p != nil {
		return p
	}
	list, more := s.Consumers(c.channel, c.query.Get("after"), limit)
	for i := range list {
		list[i] = c.shown(list[i])
	}
	if list == nil {
		list = []Consumer{}
	}
	answer(w, http.StatusOK, struct {
		Consumers []Consumer `json:"consumers"`
		More      bool       `json:"more"`
	}{list, more})
	return nil
}

// shown is a consumer without the channels that the visitor may not know of.
func (c *apiCall) shown(one Consumer) Consumer {
	if c.visitor.hides() {
		one.Channels = slices.DeleteFunc(slices.Clone(one.Channels), func(name string) bool {
			return private(name) && name != c.channel // what it named, it knows
		})
	}
	return one
}

// consumer returns the consumer that a path names.
func (s *Server) consumer(c *apiCall) (Consumer, *Problem) {
	if n, ok := parseNumber(c.id); ok && n > 0 {
		list, _ := s.Consumers(c.channel, numberText(n-1), 1)
		if len(list) > 0 && list[0].ID == c.id {
			return list[0], nil
		}
	}
	return Consumer{}, newProblem(http.StatusNotFound, "no consumer with the id "+quote(c.id)+" follows "+quote(c.channel)+" by that name")
}

// showConsumer is GET on one consumer.
func (s *Server) showConsumer(w http.ResponseWriter, c *apiCall) *Problem {
	one, p := s.consumer(c)
	if p == nil {
		answer(w, http.StatusOK, c.shown(one))
	}
	return p
}

// disconnectConsumer is DELETE on one consumer.
func (s *Server) disconnectConsumer(w http.ResponseWriter, c *apiCall) *Problem {
	one, p := s.consumer(c)
	if p != nil {
		return p
	}
	gone := 0
	if s.Disconnect(one.ID) {
		gone = 1
	}
	answer(w, http.StatusOK, struct {
		Disconnected int `json:"disconnected"`
	}{gone})
	return nil
}

// showStats is GET on /stats.
func (s *Server) showStats(w http.ResponseWriter, _ *apiCall) *Problem {
	answer(w, http.StatusOK, s.Stats())
	return nil
}

// A nodeState is a node as the API shows it.
type nodeState struct {
	Node      string    `json:"node"`
	Status    string    `json:"status"` // as Health has it
	Started   time.Time `json:"started"`
	Consumers int       `json:"consumers"`
	Channels  int       `json:"channels"`
	Mark      uint64    `json:"mark"`
	Version   string    `json:"version"`
}

// listNodes is GET on /nodes.
func (s *Server) listNodes(w http.ResponseWriter, _ *apiCall) *Problem {
	st := s.Stats()
	answer(w, http.StatusOK, struct {
		Nodes []nodeState `json:"nodes"`
	}{[]nodeState{{s.node, s.Health().Status, st.Started, st.Consumers, st.Channels, st.Mark, moduleVersion()}}})
	return nil
}

// nodeName returns a name for a node: the machine's, and what tells it from another
// run there.
func nodeName() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		name = "node"
	}
	var random [3]byte
	rand.Read(random[:])
	return name + "-" + hex.EncodeToString(random[:])
}

// moduleVersion returns the version of this module in the program, "(devel)" where
// the Go tool noted none.
var moduleVersion = sync.OnceValue(func() string {
	const path, none = "github.com/railsmechanic/eventsource", "(devel)"
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return none
	}
	for _, m := range append(info.Deps, &info.Main) {
		if m.Path == path && m.Version != "" {
			return m.Version
		}
	}
	return none
})
