// Package jelousim imitates Jelou's REST API, to be called in its place.
//
// It is stricter than Jelou: a field that the documentation does not know, a wrong type, a length above the limit, a
// missing Content-Type, a second value for a query parameter are refused. It counts requests exactly, at the moment
// when they arrive, and keeps what a test has to ask afterwards: how many arrived in the worst window, how much of the
// allowance was used, which content was accepted twice. It can fail in every way that an upstream fails, each in
// two forms: it failed, or it failed and yet happened.
//
// [Server] is the http.Handler of Jelou's API. [Server.Control] is a second one, for the test that stands beside it.
// Everything that the second one can do is a method, too. Time is time.Now and time.Sleep: inside a testing/synctest
// bubble it is the bubble's.
//
// What it knows of Jelou, it knows from Jelou's documentation; it shares no code with a client of it.
package jelousim

import (
	"bytes"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"math/rand/v2"
	"mime"
	"net"
	"net/http"
	"net/url"
	"path"
	"sync"
	"time"
)

// Server imitates Jelou. Its methods may be called at any time by several goroutines.
type Server struct {
	cfg   Config
	start time.Time
	mux   *http.ServeMux

	companies map[string]*company // by client id
	bots      map[string]*bot
	unknown   *credential // of requests whose client id no company has

	mu        sync.Mutex
	rng       *rand.Rand
	began     time.Time // the start or the last reset
	rate      Rate
	faults    []Fault
	inbound   map[conversation]time.Time // the user's last message
	requests  ring[record]
	sends     ring[Send]
	byID      map[string]uint64   // number of a send
	accepted  map[Fingerprint]int // sends of a content
	forgotten int
}

type company struct {
	Company
	credential *credential
}

type bot struct {
	Bot
	owner *company
}

type credential struct {
	name    string
	limiter limiter
}

// route is a method and path of Jelou's.
type route struct {
	endpoint Endpoint
	pattern  string
	dialect  Dialect // of what has none of its own
	serve    func(*Server, *call) answer
}

var routes = []route{
	{Messages, "POST /v1/bots/{botId}/messages", DialectA, (*Server).message},
	{WhatsAppMessages, "POST /v1/whatsapp/messages", DialectA, (*Server).whatsappMessage},
	{FlowMessage, "POST /v1/bots/{botId}/users/{userId}/flow_message", DialectA, (*Server).flow},
	{HSM, "POST /v2/whatsapp/{botId}/hsm", DialectA, (*Server).hsm},
	{Notifications, "GET /v1/bots/{botId}/notifications", DialectB, (*Server).notifications},
	{Notification, "GET /v1/bots/{botId}/notifications/{notificationId}", DialectB, (*Server).notification},
	{ExternalNotifications, "GET /v1/external/bots/{botId}/notifications", DialectB, (*Server).externalNotifications},
	{ExternalNotification, "GET /v1/external/bots/{botId}/notifications/{notificationId}", DialectB, (*Server).externalNotification},
	{Templates, "GET /v1/bots/{botId}/templates", DialectB, (*Server).templates},
	{ApprovedTemplates, "GET /v1/whatsapp/{botId}/hsm", DialectB, (*Server).approvedTemplates},
}

func endpoints() (names []Endpoint) {
	for _, r := range routes {
		names = append(names, r.endpoint)
	}
	return append(names, UnknownEndpoint)
}

// New makes a server that has just started. It panics when cfg.Validate gives an error.
func New(cfg Config) *Server {
	if err := cfg.Validate(); err != nil {
		panic(err)
	}
	cfg = cfg.withDefaults()
	cfg.Seed = or(cfg.Seed, rand.Uint64()>>11) // 53 bits: exact as a JSON number everywhere
	s := &Server{
		cfg: cfg, start: time.Now(), mux: http.NewServeMux(),
		companies: map[string]*company{}, bots: map[string]*bot{}, unknown: &credential{name: "unknown"},
		rng: rand.New(rand.NewPCG(cfg.Seed, 0)),
	}
	for _, c := range cfg.Companies {
		owner := &company{c, &credential{name: c.ClientID}}
		s.companies[c.ClientID] = owner
		for _, b := range c.Bots {
			s.bots[b.ID] = &bot{b, owner}
		}
	}
	for _, to := range append(routes, route{UnknownEndpoint, "/", DialectPlain, (*Server).noRoute}) {
		s.mux.HandleFunc(to.pattern, func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, to) })
	}
	s.requests, s.sends = newRing[record](cfg.Records, 1), newRing[Send](cfg.Records, 1)
	s.Reset()
	return s
}

// Seed of the random choices.
func (s *Server) Seed() uint64 { return s.cfg.Seed }

// Reset forgets what happened and goes back to the configuration: rate, faults, open windows. A request that is
// under way loses its record; what it still sends is kept.
func (s *Server) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.began = time.Now()
	s.rate, s.faults = s.cfg.Rate, append([]Fault(nil), s.cfg.Faults...)
	s.requests, s.sends = newRing[record](s.cfg.Records, s.requests.next), newRing[Send](s.cfg.Records, s.sends.next)
	s.byID, s.accepted, s.forgotten = map[string]uint64{}, map[Fingerprint]int{}, 0
	s.unknown.limiter = limiter{}
	for _, c := range s.companies {
		c.credential.limiter = limiter{}
	}
	s.inbound = map[conversation]time.Time{}
	for id := range s.bots {
		for _, user := range s.cfg.OpenUsers {
			s.inbound[conversation{id, user}] = s.began
		}
	}
}

// SetLimit changes the rate from the next arrival on, without notice.
func (s *Server) SetLimit(r Rate) error {
	if err := r.validate(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rate = r.withDefaults()
	return nil
}

// HTTPServer is an http.Server for a handler of this package: HTTP/1.1 and HTTP/2, also in clear text, with bounded times.
func HTTPServer(h http.Handler) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler: h, Protocols: protocols,
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		WriteTimeout: 10 * time.Minute,           // above the longest way, processing and fault together
		ErrorLog:     log.New(io.Discard, "", 0), // what clients break is theirs to report
	}
}

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

// answer is what the client will see. Its zero value is 200 without a body.
type answer struct {
	status      int
	header      http.Header
	value       any // JSON
	raw         []byte
	contentType string // of raw
	truncated   bool
	cut         cut
}

func (a *answer) set(name, value string) {
	if a.header == nil {
		a.header = http.Header{}
	}
	a.header.Set(name, value)
}

// ServeHTTP is Jelou's API.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if path.Clean(r.URL.Path) != r.URL.Path {
		s.serve(w, r, route{UnknownEndpoint, "", DialectPlain, (*Server).noRoute}) // ServeMux would redirect it
		return
	}
	s.mux.ServeHTTP(w, r)
}

// serve takes a request along its way. A client that leaves changes nothing: what was sent arrives.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, to route) {
	c := s.receive(w, r, to)
	s.travel()
	processing, behind := s.processing()
	if behind {
		time.Sleep(processing)
	}
	a, admitted := s.arrive(c)
	if admitted {
		if !behind {
			time.Sleep(processing)
		}
		var fault Fault
		var found bool
		if fault, found = s.pickFault(c); found {
			a = s.play(c, fault)
		} else {
			a = s.handle(c)
		}
		s.finish(c, a, fault.Kind)
	}
	s.travel()
	a.deliver(w)
}

// travel spends one direction of the way, unless the connection does.
func (s *Server) travel() {
	if s.cfg.Network.Carry == CarryRequests {
		time.Sleep(s.leg())
	}
}

func (s *Server) processing() (d time.Duration, behind bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return draw(s.rng, s.cfg.Processing.Min, s.cfg.Processing.Max), s.rate.Behind
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

// arrive records the request and holds it against the rate. A request with a known client id counts for that
// credential even when its secret is wrong.
func (s *Server) arrive(c *call) (a answer, admitted bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := record{at: time.Since(s.start), credential: c.credential, endpoint: c.route.endpoint, outcome: Pending}
	wait, admitted := c.credential.limiter.admit(q.at, s.rate)
	if !admitted {
		a = s.rate.throttled(wait)
		q.outcome, q.status = Throttled, a.status
	}
	var old *record
	if c.number, old = s.requests.push(q); old != nil {
		s.forgotten++
	}
	return a, admitted
}

// finish completes the record, before the answer starts on its way.
func (s *Server) finish(c *call, a answer, fault FaultKind) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if q := s.requests.at(c.number); q != nil {
		q.outcome, q.fault = c.outcome, fault
		if a.cut == uncut {
			q.status = or(a.status, http.StatusOK)
		}
	}
}

// handle answers by the rules.
func (s *Server) handle(c *call) answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.outcome = Refused
	if refused := s.authorize(c); refused != nil {
		return s.refuse(c, *refused)
	}
	a := c.route.serve(s, c)
	if c.outcome == Refused && or(a.status, http.StatusOK) == http.StatusOK && c.request.Method == http.MethodGet {
		c.outcome = Answered
	}
	return a
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
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" {
		wrong.add("Content-Encoding", "must be absent")
	}
	return wrong
}

func (s *Server) noRoute(c *call) answer { return s.refuse(c, noRoute) }

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

// accept keeps a send. From here on it has happened, whatever the client gets to see.
func (s *Server) accept(c *call, send Send) {
	send.At, send.Endpoint, send.Credential, send.Bot = time.Now(), c.route.endpoint, c.credential.name, c.botID
	for _, id := range s.cfg.Unreachable {
		if id == send.Recipient {
			send.failure = "131026: message undeliverable"
		}
	}
	number, old := s.sends.push(send)
	if old != nil {
		s.forgotten++
		delete(s.byID, old.ID)
		if s.accepted[old.Fingerprint]--; s.accepted[old.Fingerprint] == 0 {
			delete(s.accepted, old.Fingerprint)
		}
	}
	s.byID[send.ID] = number
	s.accepted[send.Fingerprint]++
	c.outcome = Accepted
}

func (s *Server) uuid() string {
	a, b := s.rng.Uint64(), s.rng.Uint64()
	a, b = a&^0xf000|0x4000, b&^(3<<62)|2<<62 // version 4, variant 10
	return fmt.Sprintf("%08x-%04x-%04x-%04x-%012x", a>>32, a>>16&0xffff, a&0xffff, b>>48, b&0xffffffffffff)
}

// deliver writes the answer, or cuts the connection.
func (a answer) deliver(w http.ResponseWriter) {
	if a.cut != uncut {
		cutConnection(w, a.cut)
		return
	}
	body, header := a.raw, w.Header()
	maps.Copy(header, a.header)
	if a.contentType != "" {
		header.Set("Content-Type", a.contentType)
	}
	if a.value != nil {
		body = encode(a.value)
		header.Set("Content-Type", "application/json; charset=utf-8")
	}
	header.Set("Content-Length", fmt.Sprint(len(body)))
	if a.truncated {
		body = body[:len(body)/2] // net/http cuts the connection, or the stream, when less comes than was said
	}
	w.WriteHeader(or(a.status, http.StatusOK))
	_, _ = w.Write(body) // a client that has left misses its answer; nothing depends on it
}

func encode(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(v) // maps, slices, strings and numbers: it cannot fail
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// cutConnection ends an HTTP/1.1 connection by FIN or RST. An HTTP/2 stream, and a call without a connection, end
// by http.ErrAbortHandler.
func cutConnection(w http.ResponseWriter, how cut) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if how == reset {
		abort(conn)
	}
	conn.Close()
}

// abort makes the close of a connection an RST, also below TLS.
func abort(conn net.Conn) {
	for conn != nil {
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // fails only on a connection that is gone already
			return
		}
		inner, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			return
		}
		conn = inner.NetConn()
	}
}
