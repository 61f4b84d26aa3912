// Package jelousim imitates Jelou's REST API, to be called in its place.
//
// It is stricter than Jelou: a field that the documentation does not know, a wrong type, a length above the limit, a
// missing Content-Type, a second value for a query parameter are refused. It counts requests exactly, at the moment
// when they arrive, and keeps what a test has to ask afterwards: how many arrived in the worst window, how much of the
// allowance was used, which content was accepted twice. It can fail in every way that an upstream fails, each in
// two forms: it failed, or it failed and yet happened.
//
// [Server] is the http.Handler of Jelou's API. [Server.Control] is a second one, for the test that stands beside it.
// Everything that the second one can do is a method, too:
//
//	GET  /report    Report    arrivals, worst window, share of the allowance used, duplicates, number of 429
//	GET  /requests  Requests  requests that arrived; ?limit=N for the newest N (default 1000)
//	GET  /sends     Sends     sends that were accepted, contents as fingerprints; ?limit=N (default 1000)
//	POST /faults    SetFaults an array of [Fault] replaces those that are still to be played
//	POST /limit     SetLimit  a [Rate] holds from the next arrival on
//	POST /inbound   Inbound   {"bot", "user"}: a message from the user opens the 24-hour window
//	POST /reset     Reset     forgets what happened and goes back to the configuration
//
// Time is time.Now and time.Sleep: inside a testing/synctest bubble it is the bubble's.
//
// What it knows of Jelou, it knows from Jelou's documentation; it shares no code with a client of it.
package jelousim

import (
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
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

// ServeHTTP is Jelou's API. To cut a connection that it cannot take over (HTTP/2, or none at all in a test) it panics
// with http.ErrAbortHandler, as net/http asks for.
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
		fault, found := s.pickFault(c)
		if found {
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

func (s *Server) noRoute(c *call) answer { return s.refuse(c, noRoute) }

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
