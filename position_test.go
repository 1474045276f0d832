package eventsource

import (
	"slices"
	"testing"

	"github.com/google/uuid"
)

func TestPositionsSortAsTheOrderGoes(t *testing.T) {
	var ids []string
	for _, p := range []position{
		{0, 0, 1}, {0, 1, 1}, {0, 1 << 40, 1}, {1, 0, 1}, {63, maxSeq, 1}, {64, 0, 1}, {maxEpoch, maxSeq, 1}, {0, 0, 2}, {5, 7, 1 << 47},
	} {
		text := p.encode()
		id := string(text[:])
		u, err := uuid.Parse(id)
		if err != nil || u.Version() != 7 || u.Variant() != uuid.RFC4122 || u.String() != id {
			t.Errorf("%+v is %s: %v", p, id, err)
		}
		if got, ok := parsePosition(id); !ok || got != p {
			t.Errorf("%+v is read back as %+v, %v", p, got, ok)
		}
		ids = append(ids, id)
	}
	if !slices.IsSorted(ids) {
		t.Errorf("not sorted: %v", ids)
	}
}

func TestOtherIDsAreNoPositions(t *testing.T) {
	for _, id := range []string{"", "1", "f47ac10b-58cc-4372-a567-0e02b2c3d479", "{01a1fcb4-e45a-7ce6-b500-000000000001", "01a1fcb4-e45a-7ce6-b500-00000000000g"} {
		if p, ok := parsePosition(id); ok {
			t.Errorf("%q is taken for %+v", id, p)
		}
	}
}
