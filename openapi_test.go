package eventsource_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/backend/sqlite"
)

// apiBase is where the API is.
const apiBase = "/api/v1"

// A contract is what openapi.json says of the API. Each request of the tests goes by
// it: what is answered has to be as the document says, and what the document says has
// to be seen in the end.
type contract struct {
	doc      map[string]any
	compiler *jsonschema.Compiler
	schemas  map[string]*jsonschema.Schema // by their pointers
	seen     map[string]bool
	sqlite   bool // the servers have a file
}

const documentURL = "https://eventsource.example/openapi.json"

func newContract(t *testing.T) *contract {
	t.Helper()
	text, err := os.ReadFile("openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	k := &contract{doc: doc.(map[string]any), compiler: jsonschema.NewCompiler(), schemas: map[string]*jsonschema.Schema{}, seen: map[string]bool{}}
	k.compiler.DefaultDraft(jsonschema.Draft2020)
	k.compiler.AssertFormat()
	if err := k.compiler.AddResource(documentURL, doc); err != nil {
		t.Fatal(err)
	}
	return k
}

// settings returns a copy of what is given with a backend.
func (k *contract) settings(t testing.TB, given *eventsource.Settings) *eventsource.Settings {
	t.Helper()
	with := eventsource.Settings{}
	if given != nil {
		with = *given
	}
	if k.sqlite {
		b, err := sqlite.New(filepath.Join(t.TempDir(), "events.db"), nil)
		if err != nil {
			t.Fatal(err)
		}
		with.Backend = b
	}
	return &with
}

// node serves settings with a backend.
func (k *contract) node(t testing.TB, given *eventsource.Settings) *node {
	t.Helper()
	return newNode(t, k.settings(t, given))
}

// at returns what stands at a pointer (RFC 6901), references followed, and the pointer
// that it really has.
func (k *contract) at(pointer string) (any, string) {
	var v any = k.doc
	real := ""
	for part := range strings.SplitSeq(strings.TrimPrefix(pointer, "/"), "/") {
		key := unescapePointer.Replace(part)
		switch in := v.(type) {
		case map[string]any:
			v = in[key]
		case []any:
			i, err := strconv.Atoi(key)
			if err != nil || i >= len(in) {
				return nil, pointer
			}
			v = in[i]
		default:
			return nil, pointer
		}
		real += "/" + part
		if m, ok := v.(map[string]any); ok && m["$ref"] != nil {
			v, real = k.at(strings.TrimPrefix(m["$ref"].(string), "#"))
		}
	}
	return v, real
}

func escapePointer(key string) string { return pointerEscape.Replace(key) }

// To make them takes longer than what they do.
var (
	pointerEscape   = strings.NewReplacer("~", "~0", "/", "~1")
	unescapePointer = strings.NewReplacer("~1", "/", "~0", "~")
)

// object returns the object at a pointer, an empty one where there is none.
func (k *contract) object(pointer string) map[string]any {
	v, _ := k.at(pointer)
	m, _ := v.(map[string]any)
	return m
}

// schema compiles what stands at a pointer.
func (k *contract) schema(t testing.TB, pointer string) *jsonschema.Schema {
	t.Helper()
	_, real := k.at(pointer)
	if k.schemas[real] == nil {
		compiled, err := k.compiler.Compile(documentURL + "#" + (&url.URL{Path: real}).EscapedPath())
		if err != nil {
			t.Fatalf("the schema at %s: %v", real, err)
		}
		k.schemas[real] = compiled
	}
	return k.schemas[real]
}

// valid fails the test unless a value is as the schema at a pointer says, and notes
// the members that it has.
func (k *contract) valid(t testing.TB, what, pointer string, value any) {
	t.Helper()
	if err := k.schema(t, pointer).Validate(value); err != nil {
		t.Errorf("%s is not as the document says: %v\n%v", what, err, value)
		return
	}
	k.note(t, pointer, value)
}

// note notes the members of a valid value.
func (k *contract) note(t testing.TB, pointer string, value any) {
	schema, real := k.at(pointer)
	said, ok := schema.(map[string]any)
	if !ok {
		return
	}
	for _, several := range []string{"oneOf", "anyOf"} {
		list, _ := said[several].([]any)
		for i := range list {
			one := fmt.Sprintf("%s/%s/%d", real, several, i)
			if k.schema(t, one).Validate(value) == nil {
				k.note(t, one, value)
			}
		}
	}
	switch v := value.(type) {
	case map[string]any:
		for member, inner := range v {
			if properties, _ := said["properties"].(map[string]any); properties[member] != nil {
				at := real + "/properties/" + escapePointer(member)
				k.seen[at] = true
				k.note(t, at, inner)
			}
		}
	case []any:
		for _, inner := range v {
			k.note(t, real+"/items", inner)
		}
	}
}

// match returns the path of the document that a request's path is one of.
func (k *contract) match(path string) string {
	segments := strings.Split(path, "/")
	for template := range k.object("/paths") {
		own := strings.Split(template, "/")
		if len(own) == len(segments) && !slices.ContainsFunc(slices.Collect(indexes(own)), func(i int) bool {
			return own[i] != segments[i] && (!strings.HasPrefix(own[i], "{") || segments[i] == "")
		}) {
			return template
		}
	}
	return ""
}

func indexes(s []string) func(func(int) bool) {
	return func(yield func(int) bool) {
		for i := range s {
			if !yield(i) {
				return
			}
		}
	}
}

// do sends a request to a path of the API, and holds the answer against the document.
func (k *contract) do(t testing.TB, n *node, method, path, body string, header ...string) answer {
	t.Helper()
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	a := n.do(t, method, apiBase+path, reader, header...)
	k.check(t, method, path, body, header, a)
	return a
}

// serve is do by a server that is not reached over a network.
func (k *contract) serve(t testing.TB, s *eventsource.Server, method, path, body string, header ...string) answer {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, apiBase+path, strings.NewReader(body))
	setHeader(r, header)
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	a := answer{w.Code, w.Header(), w.Body.String()}
	checkAnswer(t, method, path, a)
	k.check(t, method, path, body, header, a)
	return a
}

// json sends a JSON body.
func (k *contract) json(t testing.TB, n *node, method, path, body string, header ...string) answer {
	t.Helper()
	return k.do(t, n, method, path, body, append([]string{"Content-Type", asJSON}, header...)...)
}

// ok is do for what must be answered with 200; it decodes the answer into v.
func (k *contract) ok(t testing.TB, n *node, method, path string, v any, header ...string) answer {
	t.Helper()
	a := k.do(t, n, method, path, "", header...)
	if a.status != http.StatusOK {
		t.Fatalf("%s %s: answered %d %s", method, path, a.status, a.body)
	}
	if err := json.Unmarshal([]byte(a.body), v); err != nil {
		t.Fatal(err)
	}
	return a
}

// passing are the statuses that any request may be answered with.
var passing = []int{403, 405, 429, 503}

// check holds a request and its answer against the document.
func (k *contract) check(t testing.TB, method, path, body string, header []string, a answer) {
	t.Helper()
	path, query, _ := strings.Cut(path, "?")
	if path == "" {
		path = "/"
	}
	template := k.match(path)
	if template == "" {
		if a.status != http.StatusNotFound {
			t.Errorf("%s %s is not in the document and answered %d", method, path, a.status)
		}
		return
	}
	item := "/paths/" + escapePointer(template)
	if method == http.MethodHead || method == http.MethodOptions {
		return
	}
	op := k.object(item)[strings.ToLower(method)]
	if op == nil {
		if a.status != http.StatusMethodNotAllowed {
			t.Errorf("%s %s is not in the document and answered %d", method, path, a.status)
		}
		for verb := range k.object(item) {
			k.seen[item+"/"+verb+"/responses/default"] = true
		}
		return
	}
	at := item + "/" + strings.ToLower(method)
	what := method + " " + path
	status := strconv.Itoa(a.status)
	if k.object(at + "/responses")[status] == nil {
		if !slices.Contains(passing, a.status) {
			t.Errorf("%s: %s is not in the document: %s", what, status, a.body)
			return
		}
		status = "default"
	}
	k.seen[at] = true
	k.seen[at+"/responses/"+status] = true
	k.checkParameters(t, at, query, header, a)
	response := at + "/responses/" + status
	k.checkHeaders(t, what, response, a)
	if a.status < 300 && body != "" {
		k.checkBody(t, what, at+"/requestBody", contentType(header), []byte(body))
	}
	if a.status == http.StatusNotModified {
		if a.body != "" {
			t.Errorf("%s: 304 with a body", what)
		}
		return
	}
	k.checkBody(t, what, response, a.header.Get("Content-Type"), []byte(a.body))
}

func contentType(header []string) string {
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Content-Type" {
			return header[i+1]
		}
	}
	return ""
}

// checkParameters notes the parameters of a request. What is accepted is documented.
func (k *contract) checkParameters(t testing.TB, at, query string, header []string, a answer) {
	t.Helper()
	documented := map[string]string{} // pointers by where and name
	list, _ := k.object(at)["parameters"].([]any)
	for i := range list {
		p, real := k.at(fmt.Sprintf("%s/parameters/%d", at, i))
		m := p.(map[string]any)
		documented[m["in"].(string)+" "+m["name"].(string)] = at + " " + real
	}
	q, err := url.ParseQuery(query)
	if err != nil {
		return
	}
	for name := range q {
		if key := documented["query "+name]; key != "" {
			k.seen[key] = true
		} else if a.status < 300 {
			t.Errorf("%s: the parameter %s is accepted and not documented", at, name)
		}
	}
	for i := 0; i < len(header); i += 2 {
		if key := documented["header "+header[i]]; key != "" {
			k.seen[key] = true
		}
	}
}

// checkHeaders notes the headers of an answer. Those that the document knows, stand in
// it where they come.
func (k *contract) checkHeaders(t testing.TB, what, response string, a answer) {
	t.Helper()
	_, real := k.at(response)
	documented := k.object(response + "/headers")
	for name := range k.object("/components/headers") {
		has := a.header.Get(name) != ""
		said := documented[name] != nil
		if has {
			k.seen[real+"/headers/"+name] = true
		}
		if has && !said && !strings.HasSuffix(response, "/default") {
			t.Errorf("%s: the header %s of a %d is not documented", what, name, a.status)
		}
		if required, _ := k.object(response + "/headers/" + name)["required"].(bool); said && required && !has {
			t.Errorf("%s: the %d has no %s", what, a.status, name)
		}
	}
}

// checkBody holds a body against its schema.
func (k *contract) checkBody(t testing.TB, what, at, contentType string, body []byte) {
	t.Helper()
	media, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		t.Errorf("%s: the Content-Type is %q", what, contentType)
		return
	}
	contents := k.object(at + "/content")
	if contents[media] == nil && strings.HasPrefix(media, "text/") {
		media = "text/*"
	}
	if contents[media] == nil {
		t.Errorf("%s: %s is not documented", what, media)
		return
	}
	pointer := at + "/content/" + escapePointer(media)
	_, real := k.at(pointer)
	k.seen[real] = true
	var value any = string(body)
	switch {
	case strings.HasSuffix(media, "json") && !strings.Contains(media, "ndjson"):
		if value, err = jsonschema.UnmarshalJSON(bytes.NewReader(body)); err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
	case media == asForm:
		fields := map[string]any{}
		q, _ := url.ParseQuery(string(body))
		for name := range q {
			fields[name] = q.Get(name)
		}
		value = fields
	}
	k.valid(t, what, pointer+"/schema", value)
}

// neverSeen is what no test can have the server show, and why.
var neverSeen = map[string]string{
	"/components/schemas/Problem/properties/outcome": "only a backend that took events and did not answer",
}

// checkSeen fails the test for what the document says and no answer had.
func (k *contract) checkSeen(t *testing.T) {
	t.Helper()
	said := map[string]bool{}
	for path := range k.object("/paths") {
		item := "/paths/" + escapePointer(path)
		for verb := range k.verbs(item) {
			at := item + "/" + verb
			said[at] = true
			list, _ := k.object(at)["parameters"].([]any)
			for i := range list {
				_, real := k.at(fmt.Sprintf("%s/parameters/%d", at, i))
				said[at+" "+real] = true
			}
			for media := range k.object(at + "/requestBody/content") {
				said[at+"/requestBody/content/"+escapePointer(media)] = true
			}
			for status := range k.object(at + "/responses") {
				response := at + "/responses/" + status
				said[response] = true
				_, real := k.at(response)
				for name := range k.object(response + "/headers") {
					said[real+"/headers/"+name] = true
				}
				for media := range k.object(response + "/content") {
					_, real := k.at(response + "/content/" + escapePointer(media))
					said[real] = true
				}
			}
		}
	}
	k.members("", k.doc, said)
	for _, what := range slices.Sorted(maps.Keys(said)) {
		if !k.seen[what] && neverSeen[what] == "" {
			t.Errorf("the document says, and no answer in these tests shows: %s", what)
		}
	}
	for what := range neverSeen {
		if k.seen[what] || !said[what] {
			t.Errorf("it is seen, or not said any more: %s", what)
		}
	}
}

// verbs yields the verbs of a path of the document.
func (k *contract) verbs(item string) map[string]any {
	verbs := maps.Clone(k.object(item))
	delete(verbs, "parameters")
	return verbs
}

// members adds the members that the schemas below a value have. Those that are only
// an example's are not among them.
func (k *contract) members(at string, v any, said map[string]bool) {
	switch v := v.(type) {
	case map[string]any:
		for key, inner := range v {
			if key == "example" || key == "examples" {
				continue
			}
			if key == "properties" {
				for member := range inner.(map[string]any) {
					said[at+"/properties/"+escapePointer(member)] = true
				}
			}
			k.members(at+"/"+escapePointer(key), inner, said)
		}
	case []any:
		for i, inner := range v {
			k.members(fmt.Sprintf("%s/%d", at, i), inner, said)
		}
	}
}

// The document has what the server has, and the other way round.
func TestOpenAPIHasEveryOperation(t *testing.T) {
	k := newContract(t)
	documented := map[string]bool{}
	for path := range k.object("/paths") {
		for verb := range k.verbs("/paths/" + escapePointer(path)) {
			documented[strings.ToUpper(verb)+" "+path] = true
		}
	}
	for _, op := range eventsource.APIOperations() {
		key := op[0] + " " + op[1]
		if !documented[key] {
			t.Errorf("%s is served and not documented", key)
		}
		delete(documented, key)
	}
	for key := range documented {
		t.Errorf("%s is documented and not served", key)
	}
}

// The document is one of OpenAPI 3.1, as far as its text alone shows.
func TestOpenAPIIsWellFormed(t *testing.T) {
	k := newContract(t)
	if v, _ := k.doc["openapi"].(string); !regexp.MustCompile(`^3\.1\.\d+$`).MatchString(v) {
		t.Errorf("openapi: %q", v)
	}
	for _, member := range []string{"title", "version"} {
		if v, _ := k.object("/info")[member].(string); v == "" {
			t.Errorf("info has no %s", member)
		}
	}
	tags := map[string]bool{}
	for _, tag := range k.doc["tags"].([]any) {
		tags[tag.(map[string]any)["name"].(string)] = true
	}
	ids := map[string]bool{}
	used := map[string]bool{}
	k.references(t, "", k.doc, used)
	for path := range k.object("/paths") {
		item := "/paths/" + escapePointer(path)
		inPath := map[string]bool{}
		for _, m := range regexp.MustCompile(`\{([^}]+)\}`).FindAllStringSubmatch(path, -1) {
			inPath[m[1]] = true
		}
		for verb := range k.verbs(item) {
			at := item + "/" + verb
			op := k.object(at)
			if !slices.Contains([]string{"get", "put", "post", "delete"}, verb) {
				t.Errorf("%s: no such verb", at)
			}
			id, _ := op["operationId"].(string)
			if id == "" || ids[id] || op["summary"] == nil {
				t.Errorf("%s: the operationId %q is empty or comes twice, or there is no summary", at, id)
			}
			ids[id] = true
			for _, tag := range op["tags"].([]any) {
				if !tags[tag.(string)] {
					t.Errorf("%s: there is no tag %s", at, tag)
				}
			}
			names := map[string]bool{}
			for _, holder := range []string{item, at} {
				list, _ := k.object(holder)["parameters"].([]any)
				for i := range list {
					p := k.object(fmt.Sprintf("%s/parameters/%d", holder, i))
					in, name := p["in"].(string), p["name"].(string)
					if names[in+" "+name] || p["schema"] == nil || p["description"] == nil {
						t.Errorf("%s: the parameter %s comes twice, or has no schema or description", at, name)
					}
					names[in+" "+name] = true
					if (in == "path") != inPath[name] && in == "path" || in == "path" && p["required"] != true {
						t.Errorf("%s: the parameter %s is not in the path, or not required", at, name)
					}
				}
			}
			for name := range inPath {
				if !names["path "+name] {
					t.Errorf("%s: {%s} is not described", at, name)
				}
			}
			if len(k.object(at+"/responses")) < 2 {
				t.Errorf("%s: it has no responses", at)
			}
			for status := range k.object(at + "/responses") {
				r := k.object(at + "/responses/" + status)
				if r["description"] == nil || !regexp.MustCompile(`^([1-5][0-9][0-9]|default)$`).MatchString(status) {
					t.Errorf("%s: the response %s", at, status)
				}
			}
		}
	}
	for kind := range k.object("/components") {
		for name := range k.object("/components/" + kind) {
			at := "/components/" + kind + "/" + name
			if !used[at] && kind != "securitySchemes" {
				t.Errorf("nothing refers to %s", at)
			}
			if kind == "schemas" {
				k.schema(t, at)
			}
		}
	}
	k.examples(t, "", k.doc)
}

// references checks that every reference leads to something.
func (k *contract) references(t *testing.T, at string, v any, used map[string]bool) {
	switch v := v.(type) {
	case map[string]any:
		if ref, ok := v["$ref"].(string); ok {
			pointer := strings.TrimPrefix(ref, "#")
			if k.object(pointer) == nil {
				t.Errorf("%s refers to %s, which is not there", at, ref)
			}
			used[pointer] = true
		}
		for key, inner := range v {
			k.references(t, at+"/"+escapePointer(key), inner, used)
		}
	case []any:
		for i, inner := range v {
			k.references(t, fmt.Sprintf("%s/%d", at, i), inner, used)
		}
	}
}

// examples checks that every example is as the schema beside it says, and that objects
// have no members that are not named.
func (k *contract) examples(t *testing.T, at string, v any) {
	switch v := v.(type) {
	case map[string]any:
		if v["schema"] != nil {
			if example, ok := v["example"]; ok {
				k.valid(t, "the example at "+at, at+"/schema", example)
			}
			several, _ := v["examples"].(map[string]any)
			for name, example := range several {
				k.valid(t, "the example "+name+" at "+at, at+"/schema", example.(map[string]any)["value"])
			}
		}
		if v["properties"] != nil && v["additionalProperties"] != false && at != "/components/schemas/CloudEvent" {
			t.Errorf("%s: other members are not excluded", at)
		}
		for key, inner := range v {
			if key != "example" && key != "examples" && key != "properties" {
				k.examples(t, at+"/"+escapePointer(key), inner)
			}
		}
		for name, inner := range k.object(at + "/properties") {
			if v["properties"] != nil {
				k.examples(t, at+"/properties/"+escapePointer(name), inner)
			}
		}
	case []any:
		for i, inner := range v {
			k.examples(t, fmt.Sprintf("%s/%d", at, i), inner)
		}
	}
}
