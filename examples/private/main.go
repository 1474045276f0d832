// Command private is an application that logs people in, and gives each a cookie
// with which a browser follows the channel of its own on an EventSource server:
//
//	go run ./examples/private -secret jwt.secret
//
// The server has the same secret as jwt.key_file, and lists this application's
// origin in cors.allow_origin with allow_credentials (docs/access.md). Here
// everybody who gives a name is believed; ask for more.
package main

import (
	"bytes"
	"crypto/rand"
	_ "embed"
	"flag"
	"fmt"
	"html/template"
	"log"
	"net"
	"net/http"
	"os"
	"regexp"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

//go:embed page.html
var page string

// lifetime is how long a token is good for. The page gets a fresh one in time, for
// as long as the session lasts.
const lifetime = 10 * time.Minute

// names that can be a token of a channel's name.
var names = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// An application knows who has logged in.
type application struct {
	// Set when made.
	secret []byte
	events string // the EventSource server's URL
	page   *template.Template

	mu       sync.Mutex
	sessions map[string]string // names by what the session's cookie holds
}

func main() {
	listen := flag.String("listen", "localhost:8081", "serve on this `address`")
	events := flag.String("events", "http://localhost:8080", "the EventSource server's `URL`")
	secret := flag.String("secret", "jwt.secret", "sign with the secret in this `file`")
	flag.Parse()
	content, err := os.ReadFile(*secret)
	if err != nil {
		log.Fatal(err)
	}
	a := &application{
		secret:   bytes.TrimSpace(content),
		events:   *events,
		page:     template.Must(template.New("page").Parse(page)),
		sessions: map[string]string{},
	}
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("Listening on http://%s\n", *listen)
	log.Fatal(http.Serve(l, a.handler()))
}

func (a *application) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", a.home)
	mux.HandleFunc("POST /login", a.login)
	mux.HandleFunc("POST /fresh", a.fresh)
	mux.HandleFunc("POST /logout", a.logout)
	return http.NewCrossOriginProtection().Handler(mux)
}

// home is the page: of who has logged in, or the way to do that.
func (a *application) home(w http.ResponseWriter, r *http.Request) {
	name := a.who(r)
	if name != "" && a.give(w, r, name) != nil {
		http.Error(w, "the token can't be signed", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	if err := a.page.Execute(w, map[string]string{"Name": name, "Events": a.events}); err != nil {
		log.Print(err)
	}
}

// login begins a session.
func (a *application) login(w http.ResponseWriter, r *http.Request) {
	name := r.PostFormValue("name")
	if !names.MatchString(name) {
		http.Error(w, "a name has letters, digits, - and _", http.StatusBadRequest)
		return
	}
	session := rand.Text()
	a.mu.Lock()
	a.sessions[session] = name
	a.mu.Unlock()
	set(w, r, "session", session, 24*time.Hour)
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// fresh gives a session a token that is good for a while again.
func (a *application) fresh(w http.ResponseWriter, r *http.Request) {
	name := a.who(r)
	if name == "" {
		http.Error(w, "the session is over", http.StatusUnauthorized)
		return
	}
	if a.give(w, r, name) != nil {
		http.Error(w, "the token can't be signed", http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// logout ends a session. A stream that is open goes on until its token ends.
func (a *application) logout(w http.ResponseWriter, r *http.Request) {
	if c, err := r.Cookie("session"); err == nil {
		a.mu.Lock()
		delete(a.sessions, c.Value)
		a.mu.Unlock()
	}
	set(w, r, "session", "", -time.Second)
	set(w, r, "eventsource_token", "", -time.Second)
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// who returns the name of who has logged in, "" for nobody.
func (a *application) who(r *http.Request) string {
	c, err := r.Cookie("session")
	if err != nil {
		return ""
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.sessions[c.Value]
}

// give sets the cookie with which the EventSource server knows who it is.
func (a *application) give(w http.ResponseWriter, r *http.Request, name string) error {
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.RegisteredClaims{
		Subject:   name,
		ExpiresAt: jwt.NewNumericDate(time.Now().Add(lifetime)),
	}).SignedString(a.secret)
	if err != nil {
		return err
	}
	set(w, r, "eventsource_token", token, lifetime)
	return nil
}

// set sets a cookie that no script can read and no page of another site has sent.
func set(w http.ResponseWriter, r *http.Request, name, value string, age time.Duration) {
	http.SetCookie(w, &http.Cookie{Name: name, Value: value, Path: "/", MaxAge: int(age.Seconds()),
		HttpOnly: true, Secure: r.TLS != nil, SameSite: http.SameSiteLaxMode})
}
