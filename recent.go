package eventsource

import "sync"

// A recent remembers values by their keys: at least so many of those that were
// asked for last, and at most twice as many. It is safe for concurrent use.
type recent[K comparable, V any] struct {
	most int // set when made

	mu     sync.Mutex
	latest map[K]V
	before map[K]V // the latest until these were too many
}

func newRecent[K comparable, V any](most int) *recent[K, V] {
	return &recent[K, V]{most: most, latest: map[K]V{}}
}

// get returns the value of a key, if it is remembered.
func (m *recent[K, V]) get(key K) (V, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.getLocked(key)
}

func (m *recent[K, V]) getLocked(key K) (V, bool) {
	v, ok := m.latest[key]
	if ok {
		return v, true
	}
	if v, ok = m.before[key]; ok {
		m.putLocked(key, v)
	}
	return v, ok
}

// put remembers a value.
func (m *recent[K, V]) put(key K, v V) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.putLocked(key, v)
}

func (m *recent[K, V]) putLocked(key K, v V) {
	if len(m.latest) >= m.most {
		m.before, m.latest = m.latest, map[K]V{}
	}
	m.latest[key] = v
}

// orMake returns the value of a key, made if it is not remembered.
func (m *recent[K, V]) orMake(key K, made func() V) V {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.getLocked(key)
	if !ok {
		v = made()
		m.putLocked(key, v)
	}
	return v
}
