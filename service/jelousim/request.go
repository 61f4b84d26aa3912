package jelousim

import (
	"crypto/subtle"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
)

// call is a request on its way through the server.
type call struct {
	route      route
	request    *http.Request
	body       []byte
	value      any // the body as JSON
	invalid    error
	botID      string
	company    *company // nil: no such client id
	credential *credential
	number     uint64 // of its record
	outcome    Outcome
}

// receive reads a request. What is wrong with it is told later: it has arrived all the same.
func (s *Server) receive(w http.ResponseWriter, r *http.Request, to route) *call {
	c := &call{route: to, request: r, botID: r.PathValue("botId"), outcome: Refused, credential: s.unknown}
	c.body, c.invalid = io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if c.invalid == nil && len(c.body) > 0 {
		c.value, c.invalid = parse(c.body)
	}
	if to.endpoint == WhatsAppMessages {
		body, _ := c.value.(map[string]any)
		c.botID, _ = body["botId"].(string)
	}
	if id, _, ok := r.BasicAuth(); ok && s.companies[id] != nil {
		c.company = s.companies[id]
		c.credential = c.company.credential
	}
	return c
}

// authorize checks all that does not depend on the endpoint.
func (s *Server) authorize(c *call) *problem {
	_, secret, _ := c.request.BasicAuth()
	if c.company == nil || subtle.ConstantTimeCompare([]byte(secret), []byte(c.company.ClientSecret)) == 0 {
		return &unauthorized
	}
	var tooLong *http.MaxBytesError
	if errors.As(c.invalid, &tooLong) {
		return &tooLarge
	}
	if wrong := checkHeaders(c.request); len(wrong) > 0 {
		p := wrongFields(wrong)
		return &p
	}
	if c.company.NoCompany {
		return &noCompany
	}
	if c.route.endpoint == UnknownEndpoint || c.botID == "" { // without a botId, the body is wrong: say that
		return nil
	}
	switch b := s.bots[c.botID]; {
	case b == nil || b.owner != c.company: // also hides other companies' bots
		return &botNotFound
	case b.Disabled:
		return &forbiddenBot
	}
	return nil
}

// checkHeaders wants JSON on every request, reads too, and no header that Jelou would ignore while its sender relies on it.
func checkHeaders(r *http.Request) (wrong violations) {
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	charset, given := params["charset"]
	if err != nil || kind != "application/json" || given && charset != "utf-8" {
		wrong.add("Content-Type", "must be application/json on every request")
	}
	for _, name := range []string{"Idempotency-Key", "X-Idempotency-Key"} {
		if r.Header.Get(name) != "" {
			wrong.add(name, "is not a header of this API: requests are not idempotent")
		}
	}
	for _, name := range []string{"Traceparent", "Tracestate", "Baggage"} {
		if r.Header.Get(name) != "" {
			wrong.add(name, "is not a header of this API: it tells a stranger what calls there are")
		}
	}
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" {
		wrong.add("Content-Encoding", "must be absent")
	}
	return wrong
}

// object is the body, which must be a JSON object.
func (c *call) object() (map[string]any, *problem) {
	body, ok := c.value.(map[string]any)
	if ok {
		return body, nil
	}
	p := messageRefused
	if c.route.endpoint == HSM {
		p = notificationRefused
	}
	p.text = "The body must be one JSON object"
	if c.invalid != nil {
		p.text += ": " + c.invalid.Error()
	}
	return nil, &p
}

// query checks the query parameters of a read, which has no body.
func (c *call) query(allowed map[string]rule) (map[string]string, violations) {
	var wrong violations
	if len(c.body) > 0 || c.invalid != nil {
		wrong.add("", "A read has no body")
	}
	given, err := url.ParseQuery(c.request.URL.RawQuery)
	if err != nil {
		wrong.add("", "The query is malformed")
	}
	query := map[string]string{}
	for name, values := range given {
		check, known := allowed[name]
		switch {
		case !known:
			wrong.add(name, "is not a known parameter here")
		case len(values) > 1:
			wrong.add(name, "must be given once")
		default:
			check(values[0], name, &wrong)
			query[name] = values[0]
		}
	}
	return query, wrong
}

// recipients that the request is for, as far as it can be read.
func (c *call) recipients() []string {
	body, _ := c.value.(map[string]any)
	all := stringsIn(body["destinations"])
	if id, ok := body["userId"].(string); ok {
		all = append(all, id)
	}
	return append(all, c.request.PathValue("userId"))
}
