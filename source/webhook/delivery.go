package webhook

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
)

// remembered is how many of the last deliveries are known again, at least.
const remembered = 1 << 14

// A document is what came.
type document struct {
	header  http.Header
	body    []byte
	members map[string]json.RawMessage // of body, where it was asked for
}

// value returns what stands for a variable in templates.
func (d *document) value(variable string) string {
	of, name, _ := strings.Cut(variable, ":")
	if of == "header" {
		return d.header.Get(name)
	}
	return d.member(name)
}

// member returns the text or the number of a name in the document; "" if there is none.
func (d *document) member(name string) string {
	if d.members == nil {
		d.members = map[string]json.RawMessage{}
		json.Unmarshal(d.body, &d.members) // what is no object has none
	}
	var v any
	raw := d.members[name]
	if len(raw) == 0 || json.Unmarshal(raw, &v) != nil {
		return ""
	}
	switch v := v.(type) {
	case string:
		return v
	case float64:
		return string(raw) // as it was written
	}
	return ""
}

// key is what the sender knows the delivery by; "" if it says nothing of that, or if
// anybody could.
func (s *Source) key(d *document) (key string) {
	switch s.config.Signature {
	case GitHub:
		key = d.header.Get("X-GitHub-Delivery")
	case Stripe:
		key = d.member("id")
	}
	if len(key) > 255 { // no sender's are; so many are remembered
		return ""
	}
	return key
}

// A delivery is one that came, and may come again.
type delivery struct {
	key  string
	done chan struct{}

	id string // of its event, once that is published; set before done is closed
}

// deliveries know what came last: at least so many deliveries, and at most twice as
// many. They are safe for concurrent use.
type deliveries struct {
	most int

	mu             sync.Mutex
	latest, before map[string]*delivery
}

func newDeliveries(most int) deliveries {
	return deliveries{most: most, latest: map[string]*delivery{}}
}

// begin returns the delivery of a key: with the id of its event where it has been
// published, or else for the caller to publish and to end. While another one does that
// it waits. Its error is ctx's.
func (d *deliveries) begin(ctx context.Context, key string) (*delivery, error) {
	for {
		d.mu.Lock()
		known := d.latest[key]
		if known == nil {
			known = d.before[key]
		}
		if known == nil || key == "" {
			fresh := &delivery{key: key, done: make(chan struct{})}
			if key != "" {
				d.addLocked(fresh)
			}
			d.mu.Unlock()
			return fresh, nil
		}
		d.mu.Unlock()
		select {
		case <-known.done:
			if known.id != "" {
				return &delivery{id: known.id}, nil
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (d *deliveries) addLocked(fresh *delivery) {
	if len(d.latest) >= d.most {
		d.before, d.latest = d.latest, make(map[string]*delivery, d.most)
	}
	d.latest[fresh.key] = fresh
}

// end says that a delivery is published under an id, or with "" that it is not and may
// come again.
func (d *deliveries) end(done *delivery, id string) {
	if done.done == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if done.id = id; id == "" {
		for _, known := range []map[string]*delivery{d.latest, d.before} {
			if known[done.key] == done {
				delete(known, done.key)
			}
		}
	}
	close(done.done)
}
