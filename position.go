package eventsource

import (
	"encoding/binary"
	"encoding/hex"
	"time"

	"github.com/google/uuid"
)

const (
	epochBits = 18
	seqBits   = 56
	maxEpoch  = 1<<epochBits - 1
	maxSeq    = 1<<seqBits - 1
)

// An Epoch is one life of a backend's order. Positions of another life say
// nothing about this one.
type Epoch struct {
	// Number is below 2^18. A backend that keeps it counts up; one that forgets
	// everything draws it.
	Number uint32
	// Since is when the life began, where Number was drawn: an id with an
	// earlier time is from another life even if the numbers are the same. Zero
	// where Number is counted.
	Since time.Time
}

// ID returns the id of the event at a place in the order, that a backend took at a
// time: the one that the server gives where a publisher gives none.
func (e Epoch) ID(seq uint64, at time.Time) string {
	id := e.position(seq, at).encode()
	return string(id[:])
}

// position returns a place in the order at a time. That is never before the
// epoch's begin, whatever the clock does: such an id would be taken for another
// life's.
func (e Epoch) position(seq uint64, at time.Time) position {
	if at.Before(e.Since) {
		at = e.Since
	}
	return position{e.Number, seq, at.UnixMilli()}
}

// A position is a place in the order, as an id shows it.
type position struct {
	epoch uint32
	seq   uint64
	time  int64 // Unix milliseconds
}

// encode returns the position as a UUIDv7 (RFC 9562, 5.7). Its 74 free bits
// hold the epoch, then the Seq, so that ids sort as the order goes (6.2, method
// 3).
func (p position) encode() [36]byte {
	var u uuid.UUID
	binary.BigEndian.PutUint64(u[:], uint64(p.time)<<16|7<<12|uint64(p.epoch>>6))
	binary.BigEndian.PutUint64(u[8:], 1<<63|uint64(p.epoch&63)<<seqBits|p.seq&maxSeq)
	var text [36]byte
	hex.Encode(text[0:8], u[0:4])
	text[8] = '-'
	hex.Encode(text[9:13], u[4:6])
	text[13] = '-'
	hex.Encode(text[14:18], u[6:8])
	text[18] = '-'
	hex.Encode(text[19:23], u[8:10])
	text[23] = '-'
	hex.Encode(text[24:36], u[10:16])
	return text
}

// parsePosition reads an id that encode may have made. A publisher's own UUIDv7
// parses too; what it says is then checked against the epoch and the mark.
func parsePosition(id string) (position, bool) {
	if len(id) != 36 {
		return position{}, false
	}
	u, err := uuid.Parse(id)
	if err != nil || u.Version() != 7 || u.Variant() != uuid.RFC4122 {
		return position{}, false
	}
	high, low := binary.BigEndian.Uint64(u[:]), binary.BigEndian.Uint64(u[8:])
	return position{
		epoch: uint32(high&0xfff)<<6 | uint32(low>>seqBits)&63,
		seq:   low & maxSeq,
		time:  int64(high >> 16),
	}, true
}

// of reports whether the position is one of a life.
func (p position) of(e Epoch) bool {
	return p.epoch == e.Number && (e.Since.IsZero() || p.time >= e.Since.UnixMilli())
}
