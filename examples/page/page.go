// Package page holds a page that follows a channel, for the programs beside it.
package page

import _ "embed"

// HTML is the page. Its query may have server (a URL, or a path of the same
// host), channel, types (of events, besides those without one) and history.
//
//go:embed index.html
var HTML []byte
