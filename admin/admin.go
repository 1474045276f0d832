// Package admin is the status page of a server: a page that shows what the server does,
// live, and the document behind it.
//
// The page and its parts are open and empty. The document, at status.json, and the
// stream that brings it each second want an administrator once a token is set. Nothing
// is counted, encoded or kept while nobody looks.
package admin

import (
	"embed"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/railsmechanic/eventsource"
)

// Where the pages are. A server's base path does not move them.
const (
	base       = "/admin/"
	statusPath = base + "status.json"
	streamPath = base + "stream"
)

// Options are what the document says besides what the server knows.
type Options struct {
	Build    Build             // of the program
	Backend  string            // its kind, such as "sqlite"
	BasePath string            // that of the server's settings
	Upstream func() []Upstream // what else the server rests on; nil: nothing. Called at most once a second
}

// A Build is what the program was built from.
type Build struct {
	Version string `json:"version"`
	Commit  string `json:"commit"`
	Go      string `json:"go"`
}

// An Upstream is something that a server rests on besides its backend and its sources,
// such as the broker of its queues.
type Upstream struct {
	Name    string            `json:"name"`
	State   string            `json:"state"`  // "connecting", "ok" or "failing"
	Since   time.Time         `json:"since"`  // when that began
	Reason  string            `json:"reason"` // why it is failing
	Numbers map[string]uint64 `json:"numbers"`
}

// Pages are the status page of a server, its document and its stream. They are safe for
// concurrent use.
type Pages struct {
	// Set when made.
	server  *eventsource.Server
	options Options

	followed census

	// making is held while a document is made: who comes meanwhile shares it.
	making sync.Mutex
	before sample // what rates are counted from; guarded by making

	mu       sync.Mutex
	latest   *look
	watchers int
	stop     chan struct{} // ends the ticks; while there are watchers
}

// New returns the pages of a server. Nil options say nothing.
func New(server *eventsource.Server, options *Options) *Pages {
	p := &Pages{server: server}
	if options != nil {
		p.options = *options
	}
	return p
}

// AddTo adds the pages to the server's own address, before it serves.
func (p *Pages) AddTo() {
	for path, page := range openPages() {
		p.server.HandleOpen(path, page)
	}
	p.server.Handle(statusPath, p.status())
	p.server.HandleRelay(streamPath, stream{p})
}

// Handler serves the pages to whoever reaches it, without a token, for an address that
// only operators reach. Private channels are shown to those only who send a token that
// may follow them, where there are tokens.
func (p *Pages) Handler() http.Handler {
	mux := http.NewServeMux()
	for path, page := range openPages() {
		if strings.HasSuffix(path, "/") {
			path += "{$}"
		}
		mux.Handle(path, page)
	}
	mux.Handle(statusPath, p.status())
	mux.Handle(streamPath, p.server.RelayHandler(stream{p}))
	mux.Handle("/", readOnly(func(w http.ResponseWriter, r *http.Request) {
		problem(http.StatusNotFound, "nothing is here: the page is "+base+", its document "+statusPath).ServeHTTP(w, r)
	}))
	return mux
}

// files are the page and what it loads.
//
//go:embed page
var files embed.FS

// typeOf is the media type of each file.
var typeOf = map[string]string{
	"index.html": "text/html; charset=utf-8",
	"page.css":   "text/css; charset=utf-8",
	"page.js":    "text/javascript; charset=utf-8",
	"icon.svg":   "image/svg+xml",
}

// openPages are the pages that everybody may have, by their paths: they hold nothing of
// the server.
func openPages() map[string]http.Handler {
	pages := map[string]http.Handler{
		strings.TrimSuffix(base, "/"): readOnly(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "admin/") // wherever a proxy has put it
			w.WriteHeader(http.StatusPermanentRedirect)
		}),
	}
	for name, media := range typeOf {
		text, err := files.ReadFile("page/" + name)
		if err != nil {
			panic("admin: a file that is embedded: " + err.Error())
		}
		path := base + name
		if name == "index.html" {
			path = base
		}
		pages[path] = readOnly(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", media)
			w.Write(text)
		})
	}
	return pages
}

// status serves the document.
func (p *Pages) status() http.Handler {
	return readOnly(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write([]byte(p.look().text(p.knows(r)) + "\n"))
	})
}

// policy is what the page may load: what is here, and nothing else (CSP 3).
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"

// readOnly serves a page to GET and HEAD, and has nobody keep, guess, frame or tell of it.
func readOnly(page http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		h.Set("Content-Security-Policy", policy)
		h.Set("Referrer-Policy", "no-referrer")
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			h.Set("Allow", "GET, HEAD")
			problem(http.StatusMethodNotAllowed, r.Method+" is not possible here: use GET or HEAD").ServeHTTP(w, r)
			return
		}
		page(w, r)
	})
}

func problem(status int, detail string) *eventsource.Problem {
	return &eventsource.Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail}
}
