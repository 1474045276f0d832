package redis

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/internal/intake"
)

const (
	// mostEntries is how many entries are read at once at most, and fewer of large ones:
	// they are what Redis counts by.
	mostEntries  = 256
	entriesBytes = 4 << 20

	// block is how long a read waits for new entries.
	block = 2 * time.Second
)

// A place is where a stream was read up to.
type place struct {
	last string // the id of the last entry; "": nothing is known of it
	life int    // how often the stream has begun anew, since its ids may have too
}

// A streamReader reads the streams over one connection, and acknowledges over another:
// a read that waits lets nothing else pass.
type streamReader struct {
	// Set when made.
	source *Source
	config *Config
	flow   *intake.Flow
	reads  *line
	acks   *acks

	// Owned by run.
	count  int64     // how many entries the next read may bring
	claims time.Time // when entries of others are looked for next
}

// runStreams publishes what comes in on streams.
func (s *Source) runStreams(ctx context.Context, feed *eventsource.Feed) error {
	writes, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer writes.close()
	reads, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer reads.close()
	stop := context.AfterFunc(ctx, func() { writes.conn.Close() })
	err = s.prepare(ctx, writes)
	switch {
	case !stop():
		return nil
	case err != nil:
		return err
	}
	stop = context.AfterFunc(ctx, func() {
		reads.conn.Close()
		time.AfterFunc(2*closing, func() { writes.conn.Close() })
	})
	defer stop()

	r := &streamReader{source: s, config: &s.config, reads: reads, count: mostEntries}
	r.acks = newAcks(context.WithoutCancel(ctx), writes, &s.config, func() { reads.conn.Close() })
	r.flow = s.intake.Flow(ctx, feed)
	feed.Connected()
	err = r.run(ctx)
	r.flow.Close()
	if lost := r.acks.close(); lost != nil {
		err = lost // for which the reader was closed
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// prepare makes the groups that are missing.
func (s *Source) prepare(ctx context.Context, to *line) error {
	if key := s.config.DeadLetter; key != "" {
		kind, err := to.Type(ctx, key).Result()
		switch {
		case err != nil:
			return fmt.Errorf("dead_letter %s: %w", key, err)
		case kind != "none" && kind != "stream":
			return fmt.Errorf("dead_letter %s: it is a %s; name a stream, or a key that is not there", key, kind)
		}
	}
	for _, key := range s.config.Streams {
		if err := s.join(ctx, to, key); err != nil {
			return fmt.Errorf("stream %s: %w", key, err)
		}
	}
	return nil
}

// join makes the group of a stream, unless it is there: where its source read up to, if it
// has been read before, or at its beginning, if it has begun anew since then.
func (s *Source) join(ctx context.Context, to *line, key string) error {
	at := s.place(key)
	start, anew := s.config.Start, false
	if at.last != "" {
		last, err := lastID(ctx, to, key)
		if err != nil {
			return err
		}
		start = at.last
		if anew = olderID(last, at.last); anew {
			start = "0"
		}
	}
	err := to.XGroupCreateMkStream(ctx, key, s.config.Group, start).Err()
	switch {
	case err == nil && anew:
		s.setPlace(key, place{start, at.life + 1})
		return nil
	case err == nil && at.last != "":
		return nil
	case err != nil && !redis.HasErrorPrefix(err, "BUSYGROUP"):
		return err
	case at.last != "":
		return nil
	}
	groups, err := to.XInfoGroups(ctx, key).Result()
	if err != nil {
		return err
	}
	for _, g := range groups {
		if g.Name == s.config.Group {
			s.setPlace(key, place{last: g.LastDeliveredID})
		}
	}
	return nil
}

// lastID returns the id that a stream gave last; "0-0" where there is no stream.
func lastID(ctx context.Context, to *line, key string) (string, error) {
	n, err := to.Exists(ctx, key).Result()
	if err != nil || n == 0 {
		return "0-0", err
	}
	info, err := to.XInfoStream(ctx, key).Result()
	if err != nil {
		return "", err
	}
	return info.LastGeneratedID, nil
}

// olderID reports whether an id comes before another.
func olderID(a, b string) bool {
	aTime, aSeq := parseID(a)
	bTime, bSeq := parseID(b)
	return aTime < bTime || aTime == bTime && aSeq < bSeq
}

// parseID returns the two numbers of an entry's id.
func parseID(id string) (ms, seq uint64) {
	first, second, _ := strings.Cut(id, "-")
	ms, _ = strconv.ParseUint(first, 10, 64) // Redis has made them
	seq, _ = strconv.ParseUint(second, 10, 64)
	return ms, seq
}

// place returns where a stream was read up to.
func (s *Source) place(key string) place {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.places[key]
}

func (s *Source) setPlace(key string, at place) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.places[key] = at
}

// readUpTo notes that a stream was read up to an entry.
func (s *Source) readUpTo(key, id string) {
	at := s.place(key)
	s.setPlace(key, place{id, at.life})
}

// run reads until ctx ends or the connection is lost: what this consumer has not
// acknowledged before, then what others have not for a while, then what is new.
func (r *streamReader) run(ctx context.Context) error {
	for _, key := range r.config.Streams {
		if err := r.again(ctx, key); err != nil {
			return err
		}
	}
	for {
		if !time.Now().Before(r.claims) {
			for _, key := range r.config.Streams {
				if err := r.claim(ctx, key); err != nil {
					return err
				}
			}
			r.claims = time.Now().Add(r.config.Claim / 2)
		}
		if err := r.read(ctx); err != nil {
			return err
		}
	}
}

// again takes the entries that this consumer had and did not acknowledge.
func (r *streamReader) again(ctx context.Context, key string) error {
	for id := "0"; ; {
		streams, err := r.group(ctx, []string{key, id}, -1)
		if err != nil {
			return err
		}
		if len(streams) == 0 || len(streams[0].Messages) == 0 {
			return nil
		}
		entries := streams[0].Messages
		if err := r.take(ctx, key, entries, true); err != nil {
			return err
		}
		id = entries[len(entries)-1].ID
	}
}

// claim takes over the entries that other consumers have not acknowledged for a while.
func (r *streamReader) claim(ctx context.Context, key string) error {
	for start := "0-0"; ; {
		entries, next, err := r.reads.XAutoClaim(ctx, &redis.XAutoClaimArgs{Stream: key, Group: r.config.Group, Consumer: r.config.Consumer,
			MinIdle: r.config.Claim, Start: start, Count: r.count}).Result()
		if err != nil {
			return r.failed("claim", err)
		}
		if err := r.take(ctx, key, entries, true); err != nil {
			return err
		}
		if start = next; start == "0-0" {
			return nil
		}
	}
}

// read takes new entries, if there are any for a while.
func (r *streamReader) read(ctx context.Context) error {
	keys := r.config.Streams
	args := append(make([]string, 0, 2*len(keys)), keys...)
	for range keys {
		args = append(args, ">")
	}
	streams, err := r.group(ctx, args, min(block, max(time.Until(r.claims), time.Millisecond)))
	if err != nil {
		return err
	}
	for _, stream := range streams {
		if len(stream.Messages) == 0 {
			continue
		}
		r.source.readUpTo(stream.Stream, stream.Messages[len(stream.Messages)-1].ID)
		if err := r.take(ctx, stream.Stream, stream.Messages, false); err != nil {
			return err
		}
	}
	return nil
}

// group reads as the consumer of the group.
func (r *streamReader) group(ctx context.Context, streams []string, wait time.Duration) ([]redis.XStream, error) {
	read, err := r.reads.XReadGroup(ctx, &redis.XReadGroupArgs{Group: r.config.Group, Consumer: r.config.Consumer,
		Streams: streams, Count: r.count, Block: wait}).Result()
	if errors.Is(err, redis.Nil) {
		return nil, nil
	}
	return read, r.failed("read", err)
}

// failed says what became of the connection, or the group.
func (r *streamReader) failed(step string, err error) error {
	switch {
	case err == nil:
		return nil
	case redis.HasErrorPrefix(err, "NOGROUP"):
		return fmt.Errorf("the group %s has gone, and is made again: %w", r.config.Group, err)
	}
	return fmt.Errorf("%s: %w", step, err)
}

// take publishes entries, and has the next read bring as many as fit.
func (r *streamReader) take(ctx context.Context, key string, entries []redis.XMessage, again bool) error {
	arrivals := make([]intake.Arrival, 0, len(entries))
	life, bytes := r.source.place(key).life, 0
	prefix := strconv.Itoa(life) + " " + key + " "
	for i := range entries {
		e := &entries[i]
		if e.Values == nil { // the stream has it no longer
			r.acks.add(acknowledged{key: key, id: e.ID})
			continue
		}
		a := r.arrival(key, prefix, e, again)
		bytes += len(a.Data)
		arrivals = append(arrivals, a)
	}
	switch {
	case bytes > entriesBytes:
		r.count = max(1, r.count/2)
	case bytes < entriesBytes/2:
		r.count = min(2*r.count, mostEntries)
	}
	if err := r.flow.Take(arrivals...); err != nil {
		return err
	}
	return r.acks.room(ctx)
}

// arrival is an entry as it came in.
func (r *streamReader) arrival(key, prefix string, e *redis.XMessage, again bool) intake.Arrival {
	return intake.Arrival{
		Data: r.payload(e),
		Value: func(variable string) string {
			switch variable {
			case "name":
				return key
			case "id":
				return e.ID
			}
			text, _ := e.Values[strings.TrimPrefix(variable, "field:")].(string)
			return text
		},
		Key:   prefix + e.ID,
		Again: again,
		Done: func(err error) {
			a := acknowledged{key: key, id: e.ID}
			if refused, ok := errors.AsType[*eventsource.RefusedError](err); ok {
				a.refused, a.entry = refused, e
			}
			r.acks.add(a)
		},
	}
}

// payload returns the field that is published; nil: the entry has none.
func (r *streamReader) payload(e *redis.XMessage) []byte {
	name := r.config.Field
	if name == "" {
		name = defaultField
	}
	value, ok := e.Values[name]
	if !ok && r.config.Field == "" && len(e.Values) == 1 {
		for _, value = range e.Values {
		}
	}
	text, _ := value.(string)
	return []byte(text)
}
