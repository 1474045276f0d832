package webhook_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/source/webhook"
)

func sum(secret, text string) string {
	h := hmac.New(sha256.New, []byte(secret))
	h.Write([]byte(text))
	return hex.EncodeToString(h.Sum(nil))
}

// github signs a body as GitHub does.
func github(secret, body string) string { return "sha256=" + sum(secret, body) }

// stripe signs a body as Stripe does.
func stripe(secret, body string, at time.Time) string {
	t := fmt.Sprint(at.Unix())
	return "t=" + t + ",v1=" + sum(secret, t+"."+body)
}

// hook serves a webhook with a signature and waits until it runs.
func hook(t *testing.T, settings *eventsource.Settings, c webhook.Config) (*eventsource.Server, string) {
	t.Helper()
	c.Secret = "It's a Secret to Everybody"
	srv, url := serve(t, settings, c)
	eventually(t, "the webhook to run", func() bool { return srv.Stats().Sources[0].State == "ok" })
	return srv, url + "/api/events"
}

const secret = "It's a Secret to Everybody"

func TestWhatGitHubSignsIsPublished(t *testing.T) {
	srv, url := hook(t, &eventsource.Settings{AuthToken: "token"}, webhook.Config{Channel: "github.{body:action}", Event: "{header:X-GitHub-Event}",
		ID: "{header:X-GitHub-Delivery}", Signature: webhook.GitHub})
	// The example of GitHub's own page on signatures.
	if got := github(secret, "Hello, World!"); got != "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17" {
		t.Fatal(got)
	}
	const body = `{"action":"opened","number":1}`
	res, answer := post(t, url, body, "X-Hub-Signature-256", github(secret, body), "X-GitHub-Event", "issues", "X-GitHub-Delivery", "72d3162e", "Content-Type", "application/json")
	if res.StatusCode != 200 || answer != "{\"id\":\"72d3162e\"}\n" {
		t.Fatalf("%s %s", res.Status, answer)
	}
	for e, err := range srv.Subscribe(t.Context(), "github.opened", &eventsource.Subscription{History: 1}) {
		if err != nil || e.ID != "72d3162e" || e.Type != "issues" || e.Data != body {
			t.Errorf("%+v %v", e, err)
		}
		break
	}
}

func TestWhatIsNotSignedRightIsNotPublished(t *testing.T) {
	const body = `{"a":1}`
	now := time.Now()
	for _, test := range []struct {
		form, name string
		header     []string
		status     int
		want       string
	}{
		{"github", "not", nil, 401, "the request is not signed: send X-Hub-Signature-256: sha256="},
		{"github", "by a token", []string{"Authorization", "Bearer " + secret}, 401, "the request is not signed"},
		{"github", "by SHA-1", []string{"X-Hub-Signature", "sha1=3dca279e731c97c38e3019a075dee9ebbd0a99f0"}, 401, "the request is not signed"},
		{"github", "by SHA-1 in the other header", []string{"X-Hub-Signature-256", "sha1=3dca279e731c97c38e3019a075dee9ebbd0a99f0"}, 401, "can't be read"},
		{"github", "with another secret", []string{"X-Hub-Signature-256", github("other", body)}, 401, "the signature is not that of this body"},
		{"github", "another body", []string{"X-Hub-Signature-256", github(secret, body+" ")}, 401, "the signature is not that of this body"},
		{"github", "half", []string{"X-Hub-Signature-256", github(secret, body)[:40]}, 401, "can't be read"},
		{"github", "empty", []string{"X-Hub-Signature-256", "sha256="}, 401, "can't be read"},
		{"github", "right", []string{"X-Hub-Signature-256", github(secret, body)}, 200, "id"},
		{"stripe", "not", nil, 401, "the request is not signed: send Stripe-Signature: t=SECONDS,v1="},
		{"stripe", "as GitHub does", []string{"X-Hub-Signature-256", github(secret, body)}, 401, "the request is not signed"},
		{"stripe", "without a time", []string{"Stripe-Signature", "v1=" + sum(secret, "."+body)}, 401, "can't be read"},
		{"stripe", "by an older scheme alone", []string{"Stripe-Signature", strings.Replace(stripe(secret, body, now), "v1=", "v0=", 1)}, 401, "can't be read"},
		{"stripe", "too long ago", []string{"Stripe-Signature", stripe(secret, body, now.Add(-6*time.Minute))}, 401, "it may be five minutes off at most"},
		{"stripe", "in the future", []string{"Stripe-Signature", stripe(secret, body, now.Add(6*time.Minute))}, 401, "it may be five minutes off at most"},
		{"stripe", "at the beginning of time", []string{"Stripe-Signature", "t=-9223372036854775808,v1=" + sum(secret, "-9223372036854775808."+body)}, 401, "five minutes"},
		{"stripe", "for another time", []string{"Stripe-Signature", strings.Replace(stripe(secret, body, now), "t=", "t=0", 1)}, 401, "the signature is not that of this body"},
		{"stripe", "with another secret", []string{"Stripe-Signature", stripe("other", body, now)}, 401, "the signature is not that of this body"},
		{"stripe", "a while ago", []string{"Stripe-Signature", stripe(secret, body, now.Add(-4*time.Minute))}, 200, "id"},
		{"stripe", "while the secret is replaced", []string{"Stripe-Signature", stripe("other", body, now) + ",v1=" + sum(secret, fmt.Sprint(now.Unix())+"."+body) + ",v0=aa"}, 200, "id"},
	} {
		t.Run(test.form+" "+test.name, func(t *testing.T) {
			srv, url := hook(t, &eventsource.Settings{}, webhook.Config{Channel: "a", Signature: test.form})
			res, answer := post(t, url, body, test.header...)
			if res.StatusCode != test.status || !strings.Contains(answer, test.want) || strings.Contains(answer, "Everybody") {
				t.Fatalf("%s %s", res.Status, answer)
			}
			if challenge := res.Header.Get("WWW-Authenticate"); test.status == 401 && challenge != `HMAC-SHA256 realm="eventsource"` {
				t.Errorf("WWW-Authenticate: %q", challenge)
			}
			if n := srv.Stats().Published; (n == 1) != (test.status == 200) {
				t.Errorf("%d events were published", n)
			}
		})
	}
}

// A sender repeats what was not answered in time, and somebody may do so by hand.
func TestADeliveryIsPublishedOnce(t *testing.T) {
	b := &backend{}
	srv, url := hook(t, &eventsource.Settings{Backend: b}, webhook.Config{Channel: "a", Signature: webhook.GitHub})
	deliver := func(key string) (int, string) {
		body := `{"key":"` + key + `"}`
		res, answer := post(t, url, body, "X-Hub-Signature-256", github(secret, body), "X-GitHub-Delivery", key)
		return res.StatusCode, answer
	}
	b.Refuse(eventsource.ErrUnavailable)
	if status, answer := deliver("1"); status != 503 {
		t.Fatal(status, answer)
	}
	b.Refuse(nil)
	status, first := deliver("1") // what failed is no repeat
	if status != 200 || srv.Stats().Published != 1 {
		t.Fatal(status, first)
	}
	for range 3 {
		if status, answer := deliver("1"); status != 200 || answer != first {
			t.Errorf("a repeat is answered %d %s, not %s", status, answer, first)
		}
	}
	if status, answer := deliver("2"); status != 200 || answer == first {
		t.Errorf("another is answered %d %s", status, answer)
	}

	// Several at once, while the first is not published yet.
	holds, called := make(chan struct{}), b.calls.Load()
	b.holds.Store(&holds)
	var posting sync.WaitGroup
	answers := make([]string, 5)
	for i := range answers {
		posting.Go(func() { _, answers[i] = deliver("3") })
	}
	eventually(t, "a delivery to be published", func() bool { return b.calls.Load() > called })
	b.holds.Store(nil)
	close(holds)
	posting.Wait()
	for _, a := range answers {
		if a != answers[0] {
			t.Errorf("the answers are %q", answers)
		}
	}
	if s := srv.Stats().Sources[0]; s.Published != 3 || s.Duplicates != 7 {
		t.Errorf("%+v", s)
	}
}

func TestStripesEventIsPublishedOnce(t *testing.T) {
	srv, url := hook(t, &eventsource.Settings{}, webhook.Config{Channel: "payments", Event: "{body:type}", Signature: webhook.Stripe})
	const body = `{"id":"evt_1","type":"charge.succeeded","data":{"type":"no"}}`
	for i := range 3 { // each attempt is signed anew
		if res, answer := post(t, url, body, "Stripe-Signature", stripe(secret, body, time.Now().Add(-time.Duration(i)*time.Second))); res.StatusCode != 200 {
			t.Fatal(res.Status, answer)
		}
	}
	if s := srv.Stats().Sources[0]; s.Published != 1 || s.Duplicates != 2 {
		t.Errorf("%+v", s)
	}
	for e, err := range srv.Subscribe(t.Context(), "payments", &eventsource.Subscription{History: 1}) {
		if err != nil || e.Type != "charge.succeeded" {
			t.Errorf("%+v %v", e, err)
		}
		break
	}
}

// What an event is known by in a Store outlasts the process.
func TestADeliveryThatIsKeptIsNotPublishedByAnotherProcess(t *testing.T) {
	config := webhook.Config{Channel: "a", ID: "{header:X-GitHub-Delivery}", Signature: webhook.GitHub}
	srv, url := hook(t, &eventsource.Settings{}, config)
	if _, err := srv.Publish(t.Context(), "a", eventsource.Event{ID: "1", Data: "{}"}); err != nil {
		t.Fatal(err)
	}
	if res, answer := post(t, url, "{}", "X-Hub-Signature-256", github(secret, "{}"), "X-GitHub-Delivery", "1"); res.StatusCode != 200 || answer != "{\"id\":\"1\"}\n" {
		t.Fatal(res.Status, answer)
	}
	if s := srv.Stats(); s.Published != 1 || s.Sources[0].Duplicates != 1 {
		t.Errorf("%+v", s)
	}
}

func TestWhatIsRefusedIsCounted(t *testing.T) {
	srv, url := hook(t, &eventsource.Settings{Limits: eventsource.Limits{Body: 100}}, webhook.Config{Channel: "a.{header:X-Name}", ID: "{header:X-Id}", Signature: webhook.GitHub})
	for _, test := range []struct {
		body   string
		header []string
		status int
		want   string
		reason string
	}{
		{"", nil, 400, "the body is empty", eventsource.RefusedEmpty},
		{"\"\xff\"", nil, 400, "not valid UTF-8", eventsource.RefusedNotUTF8},
		{"{", nil, 400, "no JSON document", eventsource.RefusedNotJSON},
		{"payload=%7B%7D", nil, 400, "choose application/json as the content type where the webhook is set up", eventsource.RefusedNotJSON},
		{"{}", nil, 400, "this makes no name of a channel", eventsource.RefusedName},
		{"{}", []string{"X-Name", "b c"}, 400, "this makes no name of a channel", eventsource.RefusedName},
		{"{}", []string{"X-Name", "b,c"}, 400, "this makes no name of a channel", eventsource.RefusedName},
		{"{}", []string{"X-Name", "b", "X-Id", strings.Repeat("x", 9000)}, 400, "id", eventsource.RefusedInvalid},
	} {
		before := srv.Stats().Sources[0].Refusals[test.reason]
		res, answer := post(t, url, test.body, append([]string{"X-Hub-Signature-256", github(secret, test.body)}, test.header...)...)
		var p eventsource.Problem
		if err := json.Unmarshal([]byte(answer), &p); err != nil || res.StatusCode != test.status || !strings.Contains(p.Detail, test.want) {
			t.Errorf("%q %q: %s %s", test.body, test.header, res.Status, answer)
		}
		if n := srv.Stats().Sources[0].Refusals[test.reason]; n != before+1 {
			t.Errorf("%q %q: %d are counted as %s, there had been %d", test.body, test.header, n, test.reason, before)
		}
	}
	// The body of what is not signed is not even read.
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, io.MultiReader(strings.NewReader(strings.Repeat(" ", 200)))) // without a length
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if s := srv.Stats(); res.StatusCode != 401 || s.Published != 0 {
		t.Errorf("%s %+v", res.Status, s)
	}
}
