// Command notifications is a bell with a count, and an inbox for each person: a
// program with the server inside of it, that keeps what it sends in a file.
//
//	go run ./examples/notifications
//
// Open it in a window and in a private one, as two people. Here everybody is who they
// say: the page asks for a name and for no password. Ask for more.
//
// A notification is an event on the channel of a person, users.{name}. The page reads
// the earlier ones and marks them by the JSON API, and follows the later ones as
// @me; the cookie that the program has signed says who that is. Who may send to whom
// is this program's to decide: only it publishes.
package main

import (
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"html/template"
	"io/fs"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/backend/sqlite"
)

//go:embed page.html
var source string

var page = template.Must(template.New("page").Parse(source))

// lifetime is how long a token is good for. The page gets a fresh one in time, as
// long as it is open.
const lifetime = time.Hour

// kinds are the types of events that are sent, which the page has icons for.
var kinds = []string{"comment", "mention", "done", "warning"}

// nameRule is for names that are a token of a channel's name.
var nameRule = regexp.MustCompile(`^[A-Za-z0-9_-]{1,32}$`)

// An application has people who notify each other.
type application struct {
	// Set when made, then only read.
	secret []byte
	people []string
	es     *eventsource.Server
}

func main() {
	listen := flag.String("listen", "localhost:8082", "serve on this `address`")
	file := flag.String("file", "notifications.db", "keep the notifications in this `file`")
	key := flag.String("secret", "notifications.secret", "sign with the secret in this `file`, which is made when it is not there")
	people := flag.String("people", "Ada,Grace,Joan,Linus", "the `names` of who may log in")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	names := strings.Split(*people, ",")
	for _, name := range names {
		if !nameRule.MatchString(name) {
			log.Fatalf("-people: %q is no name; give some of letters, digits, - and _, such as Ada,Grace", name)
		}
	}
	secret, err := readSecret(*key)
	if err != nil {
		log.Fatal(err)
	}
	a, err := open(*file, secret, names)
	if err != nil {
		log.Fatal(err)
	}
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("Open http://%s\n", *listen)
	if err := a.serve(ctx, l); err != nil {
		log.Fatal(err)
	}
}

// readSecret reads a secret, and makes one where there is none yet.
func readSecret(file string) ([]byte, error) {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return os.ReadFile(file)
	}
	if err != nil {
		return nil, err
	}
	secret := []byte(rand.Text() + rand.Text())
	_, err = f.Write(secret)
	return secret, errors.Join(err, f.Close())
}

// open opens the file with the notifications of these people.
func open(file string, secret []byte, people []string) (*application, error) {
	a := &application{secret: secret, people: people}
	backend, err := sqlite.New(file, &sqlite.Options{Logger: slog.Default()})
	if err != nil {
		return nil, err
	}
	a.es, err = eventsource.Open(&eventsource.Settings{
		BasePath: "/events", // the channels; the API is below /api
		Backend:  backend,
		Issuers:  []eventsource.Issuer{{Algorithm: "HS256", Key: secret}},
		Public:   []string{},
		Retry:    time.Second,
		Channels: []eventsource.ChannelSettings{{
			Match:     "users.*",
			Retention: &eventsource.Retention{Events: 1000, Age: 90 * 24 * time.Hour},
		}},
		Logger: slog.Default(),
	})
	return a, err
}

// serve serves until ctx ends.
func (a *application) serve(ctx context.Context, l net.Listener) error {
	server := &http.Server{Handler: a.handler(), ReadHeaderTimeout: 5 * time.Second}
	ended := make(chan error, 1)
	go func() {
		<-ctx.Done()
		wait, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		// The streams end first: the HTTP server would wait for them.
		ended <- errors.Join(a.es.Shutdown(wait), server.Shutdown(wait))
	}()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-ended
}

func (a *application) handler() http.Handler {
	own := http.NewServeMux()
	own.HandleFunc("GET /{$}", a.home)
	own.HandleFunc("POST /login", a.login)
	own.HandleFunc("POST /logout", a.logout)
	own.HandleFunc("POST /fresh", a.fresh)
	own.HandleFunc("POST /send", a.send)
	mux := http.NewServeMux()
	mux.Handle("/events/", a.es.Handler())
	mux.Handle("/api/", a.es.Handler())
	mux.Handle("/", http.NewCrossOriginProtection().Handler(own))
	return mux
}

// home is the page: of who has logged in, or the way to do that.
func (a *application) home(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	name := a.who(r)
	if name != "" && a.give(w, r, name) != nil {
		http.Error(w, "the token can't be signed", http.StatusInternalServerError)
		return
	}
	if err := page.Execute(w, map[string]any{"Name": name, "People": a.people, "Kinds": kinds}); err != nil {
		log.Print(err)
	}
}

// login believes everybody.
func (a *application) login(w http.ResponseWriter, r *http.Request) {
	name := r.PostFormValue("name")
	if !slices.Contains(a.people, name) {
		http.Error(w, "nobody here has this name", http.StatusForbidden)
		return
	}
	if a.give(w, r, name) != nil {
		http.Error(w, "the token can't be signed", http.StatusInternalServerError)
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// logout takes the cookie away. A stream of another tab goes on until its token ends.
func (a *application) logout(w http.ResponseWriter, r *http.Request) {
	setToken(w, r, "", -time.Second)
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// fresh gives who has a token one that is good for a while again.
func (a *application) fresh(w http.ResponseWriter, r *http.Request) {
	name := a.who(r)
	if name == "" {
		http.Error(w, "the token has run out: log in again", http.StatusUnauthorized)
		return
	}
	if a.give(w, r, name) != nil {
		http.Error(w, "the token can't be signed", http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// A notification is the data of an event. Its time and id are the event's.
type notification struct {
	From  string `json:"from"`
	Title string `json:"title"`
	Text  string `json:"text,omitempty"`
}

// send publishes a notification to one person or several: one event, with one id, of
// which each of them marks for themselves whether it is read.
func (a *application) send(w http.ResponseWriter, r *http.Request) {
	from := a.who(r)
	if from == "" {
		http.Error(w, "log in first", http.StatusUnauthorized)
		return
	}
	var sent struct {
		To    []string `json:"to"`
		Kind  string   `json:"kind"`
		Title string   `json:"title"`
		Text  string   `json:"text"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 16<<10)).Decode(&sent); err != nil {
		http.Error(w, "this is no notification: "+err.Error(), http.StatusBadRequest)
		return
	}
	var channels []string
	for _, name := range sent.To {
		if !slices.Contains(a.people, name) {
			http.Error(w, "nobody here has the name "+name, http.StatusBadRequest)
			return
		}
		channels = append(channels, "users."+name)
	}
	switch {
	case len(channels) == 0:
		http.Error(w, "choose who gets it", http.StatusBadRequest)
		return
	case !slices.Contains(kinds, sent.Kind):
		http.Error(w, "there is no such kind", http.StatusBadRequest)
		return
	case strings.TrimSpace(sent.Title) == "":
		http.Error(w, "give it a title", http.StatusBadRequest)
		return
	}
	data, err := json.Marshal(notification{From: from, Title: sent.Title, Text: sent.Text})
	if err == nil {
		_, err = a.es.Publish(r.Context(), strings.Join(channels, ","), eventsource.Event{Type: sent.Kind, Data: string(data)})
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// who returns the name of who has logged in, "" for nobody: whom the server would
// take the cookie's token for, too.
func (a *application) who(r *http.Request) string {
	c, err := r.Cookie("eventsource_token")
	if err != nil {
		return ""
	}
	claims := &jwt.RegisteredClaims{}
	_, err = jwt.ParseWithClaims(c.Value, claims, func(*jwt.Token) (any, error) { return a.secret, nil },
		jwt.WithValidMethods([]string{"HS256"}), jwt.WithExpirationRequired())
	if err != nil || !slices.Contains(a.people, claims.Subject) {
		return ""
	}
	return claims.Subject
}

// give sets the cookie by which the server knows who it is.
func (a *application) give(w http.ResponseWriter, r *http.Request, name string) error {
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.RegisteredClaims{
		Subject:   name,
		ExpiresAt: jwt.NewNumericDate(time.Now().Add(lifetime)),
	}).SignedString(a.secret)
	if err == nil {
		setToken(w, r, token, lifetime)
	}
	return err
}

// setToken sets the cookie, which no script can read and no page of another site
// has sent.
func setToken(w http.ResponseWriter, r *http.Request, token string, age time.Duration) {
	http.SetCookie(w, &http.Cookie{Name: "eventsource_token", Value: token, Path: "/", MaxAge: int(age.Seconds()),
		HttpOnly: true, Secure: r.TLS != nil, SameSite: http.SameSiteLaxMode})
}
