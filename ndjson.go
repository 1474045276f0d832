package eventsource

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// linesTogether bounds what is published together.
const linesTogether = 256

// publishLines is POST of NDJSON: an event a line, published as the lines
// arrive and answered by a line each, in order, while the body is still coming
// (full duplex). A bad line is answered by a problem and ends it.
func (s *Server) publishLines(w http.ResponseWriter, r *http.Request, by publisher) {
	q, p := query(r)
	if p != nil {
		s.refuse(w, r, p)
		return
	}
	quiet := false
	switch a := q.Get("answers"); a {
	case "":
	case "errors":
		quiet = true
	default:
		s.refuse(w, r, badRequest("answers="+quote(a)+` is unknown: leave it out, or give answers=errors`))
		return
	}
	if r.Header.Get("Idempotency-Key") != "" {
		s.refuse(w, r, badRequest("an Idempotency-Key is for one publish, and NDJSON is many: give the events ids, or send a batch"))
		return
	}
	if s.draining.Load() {
		s.refuse(w, r, drainingProblem(s.settings.Retry))
		return
	}
	rc := http.NewResponseController(w)
	if r.ProtoMajor == 1 {
		if err := rc.EnableFullDuplex(); err != nil {
			s.refuse(w, r, newProblem(http.StatusInternalServerError, "this server can't read and answer at once"))
			return
		}
	}
	rc.SetReadDeadline(time.Time{})
	if strings.EqualFold(r.Header.Get("Expect"), "100-continue") {
		w.WriteHeader(http.StatusContinue) // net/http would leave it out: the answer begins before the body is read
	}
	h := w.Header()
	h.Set("Content-Type", "application/x-ndjson")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no")
	w.WriteHeader(http.StatusOK)
	rc.Flush()

	l := &lineReader{r: bufio.NewReaderSize(r.Body, 32<<10), limit: s.limits().Body}
	out := &lineWriter{w: w, rc: rc, timeout: s.settings.Timeout}
	published := 0
	var err error
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	leave := s.interrupt(func() {
		cancel()
		rc.SetReadDeadline(time.Now())
	})
	defer leave()
	for p == nil && err == nil {
		var events []Event
		events, p, err = l.next()
		if len(events) == 0 {
			continue
		}
		if err = by.policy.wait(ctx, by.policy.publishes, by.visitor, r, len(events)); err != nil {
			break
		}
		var receipt Receipt
		refusal := s.mayStill(&by) // it may have waited for long
		if refusal == nil {
			receipt, refusal = s.publish(r.Context(), &Record{Channels: by.names, Events: events})
		}
		if refusal != nil {
			p = refusal
			break
		}
		published += len(events)
		if quiet {
			continue
		}
		for _, id := range receipt.IDs {
			out.b = append(receipt.appendDocument(out.b, id), '\n')
		}
		if out.flush() != nil {
			err = io.ErrClosedPipe
		}
	}
	if p == nil && err != nil && !errors.Is(err, io.EOF) {
		p = badRequest("the body ended in the middle of it: a line counts once it is whole")
		if s.draining.Load() {
			p = drainingProblem(s.settings.Retry)
		}
	}
	if p != nil {
		s.stats.refuse(p)
		out.add(p)
	}
	if quiet {
		out.add(map[string]int{"published": published})
	}
	out.flush()
	if !errors.Is(err, io.EOF) {
		// net/http reads the rest before it takes the next request, and panics
		// when the handler still does.
		rc.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		io.CopyN(io.Discard, r.Body, s.limits().Body)
	}
	rc.SetWriteDeadline(time.Time{})
}

// A lineReader decodes events from lines.
type lineReader struct {
	r     *bufio.Reader
	limit int64
	line  []byte
}

// next waits for a line and returns the events of all that have come with it.
// A problem or an error is of what follows them.
func (l *lineReader) next() ([]Event, *Problem, error) {
	var events []Event
	for {
		line, p, err := l.read()
		if p == nil {
			if line = bytes.TrimSpace(line); len(line) > 0 && (err == nil || errors.Is(err, io.EOF)) {
				var e Event
				if e, p = decodeLine(line); p == nil {
					events = append(events, e)
				}
			}
		}
		if p != nil || err != nil || len(events) >= linesTogether || len(events) > 0 && !l.ready() {
			return events, p, err
		}
	}
}

// ready reports whether a whole line has come already.
func (l *lineReader) ready() bool {
	b, _ := l.r.Peek(l.r.Buffered())
	return bytes.IndexByte(b, '\n') >= 0
}

// read returns the next line, which may lack its end only where the body ends.
func (l *lineReader) read() ([]byte, *Problem, error) {
	l.line = l.line[:0]
	for {
		part, err := l.r.ReadSlice('\n')
		l.line = append(l.line, part...)
		if int64(len(l.line)) > l.limit+1 {
			return nil, newProblem(http.StatusRequestEntityTooLarge,
				fmt.Sprintf("a line is longer than %d bytes: send less in one", l.limit)), nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return l.line, nil, err
		}
	}
}

// A lineWriter answers by lines. Who does not read them is cut off.
type lineWriter struct {
	w       http.ResponseWriter
	rc      *http.ResponseController
	timeout time.Duration
	b       []byte
}

func (l *lineWriter) add(document any) {
	b, err := json.Marshal(document)
	if err != nil {
		panic("eventsource: an answer can't fail to encode: " + err.Error())
	}
	l.b = append(append(l.b, b...), '\n')
}

func (l *lineWriter) flush() error {
	if len(l.b) == 0 {
		return nil
	}
	l.rc.SetWriteDeadline(time.Now().Add(l.timeout))
	_, err := l.w.Write(l.b)
	l.b = l.b[:0]
	err = errors.Join(err, l.rc.Flush())
	if err == nil {
		l.rc.SetWriteDeadline(time.Time{}) // HTTP/2 resets a stream whose deadline passes, though nothing is written
	}
	return err
}
