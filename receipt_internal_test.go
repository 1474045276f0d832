package eventsource

import (
	"encoding/json"
	"testing"
)

// What is answered is encoded by hand, since there is one for every publish; it is
// what encoding/json makes of it.
func TestAReceiptIsTheJSONThatEncodingJSONMakes(t *testing.T) {
	type document struct {
		ID        string   `json:"id"`
		Channels  []string `json:"channels"`
		Consumers int      `json:"consumers"`
	}
	ids := []string{"a-1", "", `quo"te`, `back\slash`, "<&>", "tab\tand\x00\x7f", "grüße\u2028", "\xff\xfe"}
	var want []document
	for _, id := range ids {
		doc := document{id, []string{"a", "b.c"}, 12}
		want = append(want, doc)
		text, _ := json.Marshal(doc)
		one := Receipt{IDs: []string{id}, Channels: doc.Channels, Consumers: doc.Consumers}
		if got := string(one.encode(false)); got != string(text)+"\n" {
			t.Errorf("%q: answered %s, not %s", id, got, text)
		}
	}
	text, _ := json.Marshal(want)
	all := Receipt{IDs: ids, Channels: want[0].Channels, Consumers: want[0].Consumers}
	if got := string(all.encode(true)); got != string(text)+"\n" {
		t.Errorf("answered %s, not %s", got, text)
	}
}
