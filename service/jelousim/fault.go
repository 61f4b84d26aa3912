package jelousim

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// FaultKind is a way in which an upstream misbehaves.
type FaultKind string

// The kinds. Those of the first group cut the connection, those of the second answer in place of the rules, those
// of the third answer by the rules and then spoil it.
const (
	FaultReset FaultKind = "reset" // RST; over HTTP/2 the stream
	FaultClose FaultKind = "close" // FIN without an answer
	FaultHang  FaultKind = "hang"  // nothing for Delay (zero: 30 s), then FIN

	FaultServerError      FaultKind = "server_error"           // 500, dialect A, not the no-company one
	FaultUnknownError     FaultKind = "unknown_error"          // 500, dialect B, E0000
	FaultNoCompany        FaultKind = "no_company"             // 500, dialect A: the token has no company
	FaultBadGateway       FaultKind = "bad_gateway"            // 502, an HTML page
	FaultValidation       FaultKind = "validation"             // 422, dialect B, E0422 with validationError
	FaultInvalidMedia     FaultKind = "invalid_media_url"      // 400, dialect H
	FaultMediaTooLarge    FaultKind = "media_too_large"        // 400, dialect H
	FaultUnsupportedMedia FaultKind = "unsupported_media_type" // 400, dialect H
	FaultFailedIn200      FaultKind = "failed_in_200"          // 200, status "failed"
	FaultSuccessFalse     FaultKind = "success_false"          // 200, success false
	FaultStatusZero       FaultKind = "status_zero"            // 200, status 0 and an error.key
	FaultThrottle         FaultKind = "throttle"               // 429, whatever the rate
	FaultRedirect         FaultKind = "redirect"               // 307 to the same path

	FaultLatency         FaultKind = "latency"          // Delay, and nothing else
	FaultTruncate        FaultKind = "truncate"         // half the body, then the end
	FaultSwap            FaultKind = "swap"             // an object as an array, an array as an object
	FaultUnknownStatus   FaultKind = "unknown_status"   // a state that no page lists
	FaultHuge            FaultKind = "huge"             // 8 MiB
	FaultConnectionClose FaultKind = "connection_close" // Connection: close; over HTTP/2 GOAWAY
)

// Fault is something that goes wrong with a request that the rate let through. Scripted faults are played in
// their order, each on the first request that it matches; then it is used up. Random ones are played on any
// request that they match.
type Fault struct {
	Kind FaultKind `json:"kind"`
	// Accepted lets the request take effect first: failed, and yet it happened. Faults that spoil a proper answer always do.
	Accepted bool `json:"accepted,omitzero"`
	// Probability from 0 to 1 makes the fault random. Zero: scripted.
	Probability float64 `json:"probability,omitzero"`
	// Times that a scripted fault is played. Zero: once.
	Times int `json:"times,omitzero"`

	// What the request must have; empty matches all. User is the userId or one of the destinations,
	// Contains a part of the body as sent.
	Endpoint Endpoint `json:"endpoint,omitzero"`
	Bot      string   `json:"bot,omitzero"`
	User     string   `json:"user,omitzero"`
	Contains string   `json:"contains,omitzero"`

	// Delay comes before the request takes effect, or, with Accepted, after it.
	Delay Duration `json:"delay,omitzero"`
	// Status and Dialect replace the usual ones of a fault that answers in place of the rules.
	Status  int     `json:"status,omitzero"`
	Dialect Dialect `json:"dialect,omitzero"`
	// RetryAfter of a throttle, in the form of Rate.RetryAfter or else in seconds. Zero: no header.
	RetryAfter Duration `json:"retry_after,omitzero"`
}

// cut is how a connection ends without an answer.
type cut int

const (
	uncut cut = iota
	closed
	reset
)

// effect is what a kind of fault does.
type effect struct {
	cut     cut
	problem problem                         // answered in its dialect
	instead func(*call, Fault, Rate) answer // answered, where a problem does not say it
	spoil   func(*answer)                   // done to the proper answer
}

var effects = map[FaultKind]effect{
	FaultReset: {cut: reset},
	FaultClose: {cut: closed},
	FaultHang:  {cut: closed},

	FaultServerError:      {problem: spoken(problem{status: 500, code: "internal_server_error", number: "E0000", key: "UNKNOWN_ERROR", text: "Unexpected error"}, DialectA)},
	FaultUnknownError:     {problem: spoken(unknownError, DialectB)},
	FaultNoCompany:        {problem: spoken(noCompany, DialectA)},
	FaultBadGateway:       {problem: problem{status: 502, text: "Bad gateway", code: "bad_gateway", number: "E0000", key: "BAD_GATEWAY", dialect: DialectI}},
	FaultValidation:       {problem: spoken(wrongFields(violations{{field: "userId", text: "must exist"}}), DialectB)},
	FaultInvalidMedia:     {problem: wrongFields(violations{{"mediaUrl", "could not be fetched", "INVALID_MEDIA_URL"}})},
	FaultMediaTooLarge:    {problem: wrongFields(violations{{"mediaUrl", "is larger than WhatsApp takes", "MEDIA_TOO_LARGE"}})},
	FaultUnsupportedMedia: {problem: wrongFields(violations{{"mediaUrl", "is of a content type that WhatsApp does not take", "UNSUPPORTED_MEDIA_TYPE"}})},
	FaultFailedIn200:      {problem: spoken(unknownError, DialectE)},
	FaultSuccessFalse:     {instead: func(*call, Fault, Rate) answer { return answer{value: map[string]any{"success": false}} }},
	FaultStatusZero:       {problem: problem{status: 200, number: "E0000", key: "USER_IN_MANUAL_STATE", text: "The user talks with an operator", dialect: DialectB}},
	FaultThrottle:         {instead: throttle},
	FaultRedirect:         {instead: redirect},

	FaultLatency:         {spoil: func(*answer) {}},
	FaultTruncate:        {spoil: func(a *answer) { a.truncated = true }},
	FaultSwap:            {spoil: swap},
	FaultUnknownStatus:   {spoil: func(a *answer) { a.value = withUnknownStatus(a.value) }},
	FaultHuge:            {spoil: pad},
	FaultConnectionClose: {spoil: func(a *answer) { a.set("Connection", "close") }},
}

func spoken(p problem, d Dialect) problem {
	p.dialect = d
	return p
}

// takesEffect tells whether the request is handled by the rules under this fault.
func (f Fault) takesEffect() bool { return f.Accepted || effects[f.Kind].spoil != nil }

func validateFaults(faults []Fault) error {
	for i, f := range faults {
		if err := f.validate(); err != nil {
			return fmt.Errorf("faults[%d].%w", i, err)
		}
	}
	return nil
}

func (f Fault) validate() error {
	e, known := effects[f.Kind]
	switch {
	case !known:
		return fmt.Errorf("kind: no fault is called %q", f.Kind)
	case f.Probability < 0 || f.Probability > 1 || f.Times < 0 || f.Probability > 0 && f.Times > 0:
		return fmt.Errorf("probability, times: from 0 to 1, not negative, and not both")
	case f.Accepted && (f.Kind == FaultThrottle || f.Kind == FaultRedirect):
		return fmt.Errorf("accepted: a %s takes no effect", f.Kind)
	case e.problem.status == 0 && (f.Status != 0 || f.Dialect != ""):
		return fmt.Errorf("status, dialect: %s has none to choose", f.Kind)
	case f.Status != 0 && (f.Status < 200 || f.Status > 599):
		return fmt.Errorf("status: must be 200 to 599")
	case f.RetryAfter != 0 && f.Kind != FaultThrottle:
		return fmt.Errorf("retry_after: only a throttle has it")
	case f.Kind == FaultLatency && f.Delay == 0:
		return fmt.Errorf("delay: latency needs one")
	}
	for _, err := range []error{
		choice("endpoint", f.Endpoint, append(endpoints(), "")...),
		choice("dialect", f.Dialect, append(slices.Clone(dialects), "")...),
		inOrder("delay", maxDelay, f.Delay), inOrder("retry_after", time.Hour, f.RetryAfter),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

// SetFaults replaces the faults that are still to be played.
func (s *Server) SetFaults(faults ...Fault) error {
	if err := validateFaults(faults); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = slices.Clone(faults)
	return nil
}

// pickFault takes the fault for a call out of the list: the first scripted one that matches, else a random one.
func (s *Server) pickFault(c *call) (Fault, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.faults {
		f := &s.faults[i]
		if f.Probability > 0 || !f.matches(c) {
			continue
		}
		picked := *f
		if f.Times--; f.Times <= 0 {
			s.faults = slices.Delete(s.faults, i, i+1)
		}
		return picked, true
	}
	for _, f := range s.faults {
		if f.Probability > 0 && f.matches(c) && s.rng.Float64() < f.Probability {
			return f, true
		}
	}
	return Fault{}, false
}

func (f Fault) matches(c *call) bool {
	return (f.Endpoint == "" || f.Endpoint == c.route.endpoint) && (f.Bot == "" || f.Bot == c.botID) &&
		(f.User == "" || slices.Contains(c.recipients(), f.User)) &&
		(f.Contains == "" || bytes.Contains(c.body, []byte(f.Contains)))
}

// play answers a call under a fault.
func (s *Server) play(c *call, f Fault) answer {
	e, a := effects[f.Kind], answer{}
	c.outcome = Lost
	if !f.Accepted {
		f.wait(c)
	}
	if f.takesEffect() {
		a = s.handle(c)
	}
	if f.Accepted {
		f.wait(c)
	}
	switch {
	case e.cut != uncut:
		return answer{cut: e.cut}
	case e.spoil != nil:
		e.spoil(&a)
		return a
	case e.instead != nil:
		s.mu.Lock()
		rate := s.rate
		s.mu.Unlock()
		return e.instead(c, f, rate)
	}
	a = e.problem.in(or(f.Dialect, e.problem.dialect))
	a.status = or(f.Status, a.status)
	return a
}

// wait spends the fault's delay. Where there will be no answer it ends with the client's patience.
func (f Fault) wait(c *call) {
	delay := time.Duration(f.Delay)
	if f.Kind == FaultHang && delay == 0 {
		delay = 30 * time.Second
	}
	if effects[f.Kind].cut == uncut {
		time.Sleep(delay)
		return
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.request.Context().Done():
	}
}

func throttle(c *call, f Fault, rate Rate) answer {
	c.outcome = Throttled
	if f.RetryAfter == 0 {
		rate.RetryAfter = RetryAfterNone
	} else if rate.RetryAfter == RetryAfterNone {
		rate.RetryAfter = RetryAfterSeconds
	}
	return rate.throttled(time.Duration(f.RetryAfter))
}

func redirect(c *call, _ Fault, _ Rate) answer {
	a := answer{status: http.StatusTemporaryRedirect}
	a.set("Location", c.request.URL.RequestURI())
	return a
}

func swap(a *answer) {
	switch v := a.value.(type) {
	case []any:
		a.value = map[string]any{"results": v}
	case map[string]any:
		a.value = []any{v}
	}
}

// withUnknownStatus replaces every state by one that no page lists, and adds one where there was none.
func withUnknownStatus(v any) any {
	const unheardOf = "PARKED"
	switch v := v.(type) {
	case []any:
		for i := range v {
			v[i] = withUnknownStatus(v[i])
		}
	case map[string]any:
		rows, paged := v["results"]
		_, row := v["sentStatus"]
		switch {
		case paged:
			v["results"] = withUnknownStatus(rows)
		case row:
			v["sentStatus"] = unheardOf
		default:
			v["status"] = unheardOf
		}
	}
	return v
}

const hugeBody = 8 << 20

func pad(a *answer) {
	padding := strings.Repeat("x", hugeBody)
	switch v := a.value.(type) {
	case []any:
		a.value = append(v, map[string]any{"padding": padding})
	case map[string]any:
		v["padding"] = padding
	default:
		a.raw = append(a.raw, padding...)
	}
}
