package eventsource

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Pages: what is kept, for who asks for it. It comes from the Store, or else from
// the logs.

// mostMarks is how many events one marking may name.
const mostMarks = 1000

// A shelf is what pages are read from: a Store, or the registry.
type shelf interface {
	Read(ctx context.Context, q Query) (Page, error)
	Count(ctx context.Context, q Query) (int, error)
	Channels(ctx context.Context, prefix, after string, limit int) ([]string, error)
}

var _ shelf = (*registry)(nil)

// Read returns a page of what is kept of a channel, a wildcard or "all". Errors are
// *Problem.
func (s *Server) Read(ctx context.Context, q Query) (Page, error) {
	if p := q.validate(); p != nil {
		return Page{}, p
	}
	page, err := s.shelf.Read(ctx, q)
	if err != nil {
		return Page{}, readError(err, s.settings.Retry)
	}
	return page, nil
}

// Count returns how many events Read would return without Limit and Bytes. Errors are
// *Problem.
func (s *Server) Count(ctx context.Context, q Query) (int, error) {
	if p := q.validate(); p != nil {
		return 0, p
	}
	n, err := s.shelf.Count(ctx, q)
	if err != nil {
		return 0, readError(err, s.settings.Retry)
	}
	return n, nil
}

// validate refuses what can't be read.
func (q *Query) validate() *Problem {
	if err := validPattern(q.Channel); err != nil && q.Channel != globalName {
		return newProblem(http.StatusNotFound, clip(err.Error()))
	}
	return nil
}

// Place returns the place of the event that bears an id in a channel or wildcard: what
// an id of the server says, kept or not, or where the oldest stands that its publisher
// gave it and that is kept. It reports false where that is not known. Errors are
// *Problem.
func (s *Server) Place(ctx context.Context, channel, id string) (seq uint64, known bool, err error) {
	if seq, known := s.registry.place(id); known {
		return seq, true, nil
	}
	page, err := s.Read(ctx, Query{Channel: channel, ID: id, Limit: 1})
	if err != nil || len(page.Events) == 0 {
		return 0, false, err
	}
	return page.Events[0].Seq, true, nil
}

// Mark marks events of a channel below "users" as read, or as unread, and returns how
// many are unread then. The person's consumers are told. Errors are *Problem.
func (s *Server) Mark(ctx context.Context, channel string, m Marks) (unread int, err error) {
	if !private(channel) || validName(channel) != nil {
		return 0, newProblem(http.StatusNotFound, fmt.Sprintf("what is read is marked on the channels of persons, users.{subject}, and %s is none", clip(channel)))
	}
	if len(m.Seqs) > mostMarks {
		return 0, badRequest(fmt.Sprintf("%d events are marked at once: mark at most %d, or all up to one", len(m.Seqs), mostMarks))
	}
	if !s.flight.enter() {
		return 0, drainingProblem(s.settings.Retry)
	}
	defer s.flight.leave()
	rec := &Record{Channels: []string{channel}, Marks: &m}
	if _, err := s.backend.Publish(ctx, rec); err != nil {
		return 0, publishError(err, s.settings.Retry)
	}
	return rec.Unread, nil
}

// ChannelsAfter returns up to limit names of channels that exist, begin with prefix and
// come after a name, sorted. Errors are *Problem.
func (s *Server) ChannelsAfter(ctx context.Context, prefix, after string, limit int) ([]string, error) {
	here, _ := s.registry.Channels(ctx, prefix, after, limit)
	if s.registry.isShelf {
		return here, nil
	}
	kept, err := s.shelf.Channels(ctx, prefix, after, limit)
	if err != nil {
		return nil, readError(err, s.settings.Retry)
	}
	names := slices.Concat(here, kept)
	slices.Sort(names)
	names = slices.Compact(names)
	return names[:min(len(names), limit)], nil
}

// exist reports whether each channel has a consumer by name or a kept event.
func (s *Server) exist(ctx context.Context, names []string) (bool, error) {
	for _, name := range names {
		if s.registry.exists(name) {
			continue
		}
		if s.registry.isShelf {
			return false, nil
		}
		page, err := s.Read(ctx, Query{Channel: name, Limit: 1})
		if err != nil || len(page.Events) == 0 {
			return false, err
		}
	}
	return true, nil
}

// readError turns what a Store could not read into a problem.
func readError(err error, retry time.Duration) *Problem {
	var p *Problem
	if errors.As(err, &p) {
		return p
	}
	p = newProblem(http.StatusServiceUnavailable, "what is kept can't be read at present ("+reasonOf(err)+"): come back later").after(retry)
	p.cause = err
	return p
}

// Read returns a page of a log.
func (r *registry) Read(_ context.Context, q Query) (Page, error) {
	var page Page
	bytes := 0
	page.Floor = r.look(&q, func(f *frame, read bool) bool {
		if n := len(page.Events); n > 0 && (n == q.Limit || q.Bytes > 0 && bytes >= q.Bytes) {
			page.More = true
			return false
		}
		e := Stored{Event: f.event(""), Seq: f.seq, Channels: splitList(f.channels), Read: read}
		bytes += len(e.Data)
		page.Events = append(page.Events, e)
		return true
	})
	return page, nil
}

// Count returns how many events of a log a query is for.
func (r *registry) Count(_ context.Context, q Query) (int, error) {
	n := 0
	r.look(&q, func(*frame, bool) bool { n++; return true })
	return n, nil
}

// look has see look at each frame of a log that a query is for, in its order, until it
// returns false, and returns the log's floor.
func (r *registry) look(q *Query, see func(f *frame, read bool) bool) (floor uint64) {
	r.mu.Lock()
	ch := r.all
	if q.Channel != globalName {
		ch = r.findLocked(q.Channel)
	}
	if ch == nil {
		defer r.mu.Unlock()
		return r.floors[r.bucket(q.Channel)]
	}
	frames, floor := ch.history(nil, q.After, nobody, r.clock())
	read := make([]bool, len(frames))
	if marks := r.marks[ch]; marks != nil {
		for i, f := range frames {
			_, read[i] = marks[f.seq]
		}
	}
	r.mu.Unlock()
	for i := range frames {
		if q.Descending {
			i = len(frames) - 1 - i
		}
		f := frames[i]
		if q.Before != 0 && f.seq >= q.Before || q.ID != "" && f.id() != q.ID || !hasType(q.Types, f.typ()) ||
			q.Status == Unread && read[i] || q.Status == Read && !read[i] {
			continue
		}
		if !see(f, read[i]) {
			break
		}
	}
	return floor
}

// hasType reports whether an event's type is one of those that are wanted; nil: any is.
func hasType(types []string, typ string) bool {
	if typ == "" {
		typ = "message"
	}
	return types == nil || slices.Contains(types, typ)
}

// Channels returns up to limit names of channels that exist on this node.
func (r *registry) Channels(_ context.Context, prefix, after string, limit int) ([]string, error) {
	names := r.names()
	i, found := slices.BinarySearch(names, after)
	if found {
		i++
	}
	names = slices.DeleteFunc(names[i:], func(name string) bool { return !strings.HasPrefix(name, prefix) })
	return names[:min(len(names), limit)], nil
}

// Marks: what a person has read.

// readType is the event that tells a person's consumers of marks.
const readType = reservedType + "read"

// markLocked notes what is read, where the logs are the store, and tells who follows
// the channel by its name.
func (r *registry) markLocked(rec *Record) {
	ch := r.named[rec.Channels[0]]
	if ch == nil {
		return
	}
	now := r.clock()
	if r.isShelf {
		r.noteLocked(ch, rec, now)
	}
	if ch.followers == 0 || ch.passing == 1<<16-1 {
		return
	}
	f := controlFrame(readText(rec))
	f.seq, f.channels = rec.Seq, ch.name
	f.expires.Store(now)
	r.extendLocked(ch, []*frame{f})
}

// noteLocked notes what is read, and how many events are not.
func (r *registry) noteLocked(ch *channel, rec *Record, now int64) {
	m := rec.Marks
	marks := r.marks[ch]
	if marks == nil {
		marks = map[uint64]struct{}{}
	}
	frames, _ := ch.history(nil, 0, nobody, now)
	for _, f := range frames {
		switch {
		case f.seq > m.UpTo && !slices.Contains(m.Seqs, f.seq):
		case m.Unread:
			delete(marks, f.seq)
		default:
			marks[f.seq] = struct{}{}
		}
		if _, ok := marks[f.seq]; !ok {
			rec.Unread++
		}
	}
	if len(marks) > 0 {
		r.marks[ch] = marks
	} else {
		delete(r.marks, ch)
	}
}

// forgetLocked forgets whether an event was read that a channel no longer keeps.
func (r *registry) forgetLocked(ch *channel, f *frame) {
	if marks := r.marks[ch]; marks != nil {
		if delete(marks, f.seq); len(marks) == 0 {
			delete(r.marks, ch)
		}
	}
}

// readText is the event that tells of marks.
func readText(rec *Record) string {
	data := encodeAnswer(struct {
		Channel string   `json:"channel"`
		IDs     []string `json:"ids,omitempty"`
		UpTo    string   `json:"up_to,omitempty"`
		Read    bool     `json:"read"`
		Unread  int      `json:"unread"`
	}{rec.Channels[0], rec.Marks.IDs, rec.Marks.UpToID, !rec.Marks.Unread, rec.Unread})
	return typeField + readType + "\n" + dataField + string(data) + "\n"
}
