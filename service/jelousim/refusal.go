package jelousim

import (
	"encoding/json"
	"fmt"
	"html"
	"net/http"
	"strings"
)

// Dialect is one of the shapes in which Jelou, or a proxy before it, words an error.
type Dialect string

// The dialects. A to H are Jelou's; none of its pages shows when which is used.
const (
	DialectA     Dialect = "A"     // {code, description}: the introduction page
	DialectB     Dialect = "B"     // the platform's envelope: message[], statusMessage, status 0, error{…}
	DialectC     Dialect = "C"     // {message: "…"}
	DialectD     Dialect = "D"     // {message: […], status: "failed", _metadata}: template sends
	DialectE     Dialect = "E"     // {message: […], status: "failed"} with HTTP 200
	DialectF     Dialect = "F"     // {error: "…", message: "…"}
	DialectG     Dialect = "G"     // {error: "…", details: […]}
	DialectH     Dialect = "H"     // a media token as the code
	DialectI     Dialect = "I"     // an HTML page from a proxy
	DialectPlain Dialect = "plain" // plain text
	DialectEmpty Dialect = "empty" // no body
)

var dialects = []Dialect{
	DialectA, DialectB, DialectC, DialectD, DialectE, DialectF, DialectG, DialectH, DialectI, DialectPlain, DialectEmpty,
}

// problem is why a request is refused, before it is put into a dialect.
type problem struct {
	status      int
	code        string  // dialect A's
	number, key string  // dialect B's; numbers that Jelou does not document are E0000
	text        string  // for people
	dialect     Dialect // where this problem has one of its own; empty: the endpoint's
	wrong       violations
	sent        map[string]any // what dialect D repeats
}

var (
	unauthorized         = problem{status: 401, code: "unauthorized", number: "E0000", key: "UNAUTHORIZED", text: "Authentication failed", dialect: DialectC}
	noCompany            = problem{status: 500, code: "internal_server_error", number: "E0000", key: "NO_COMPANY", text: "The token has no company"}
	botNotFound          = problem{status: 404, code: "bot_not_found", number: "E1019", key: "BOT_NOT_FOUND", text: "Bot is not assigned to the company"}
	forbiddenBot         = problem{status: 403, code: "forbidden_bot", number: "E0000", key: "FORBIDDEN_BOT", text: "Bot is not enabled for this company"}
	messageRefused       = problem{status: 400, code: "message_could_not_be_send", number: "E0000", key: "BAD_REQUEST", text: "Message could not be sent"}
	notificationRefused  = problem{status: 400, code: "notification_could_not_be_send", number: "E0000", key: "BAD_REQUEST", text: "Notification could not be sent"}
	windowClosed         = problem{status: 400, code: "message_could_not_be_send", number: "E0000", key: "WINDOW_CLOSED", text: "The user is outside the 24-hour session window"}
	unprocessable        = problem{status: 422, code: "unprocessable_entity", number: "E0422", key: "VALIDATOR_ERROR", text: "A field is missing or wrong"}
	notificationNotFound = problem{status: 404, code: "not_found", number: "E0000", key: "NOTIFICATION_NOT_FOUND", text: "Notification does not exist"}
	noRoute              = problem{status: 404, code: "not_found", number: "E0000", key: "ROUTE_NOT_FOUND", text: "No such route", dialect: DialectPlain}
	tooLarge             = problem{status: 413, code: "unprocessable_entity", number: "E0000", key: "TOO_LARGE", text: "The body is larger than 1 MiB", dialect: DialectPlain}
	tooManyRequests      = problem{status: 429, code: "too_many_requests", number: "E0000", key: "TOO_MANY_REQUESTS", text: "Too many requests"}
	unknownError         = problem{status: 500, code: "internal_server_error", number: "E0000", key: "UNKNOWN_ERROR", text: "Unknown error"}
)

// dialectKeys are what Config.Dialects may name. A 429's body is Rate.Body.
var dialectKeys = func() (keys []string) {
	for _, r := range routes {
		keys = append(keys, string(r.endpoint))
	}
	for _, p := range []problem{unauthorized, noCompany, botNotFound, forbiddenBot, messageRefused, notificationRefused, unprocessable, notificationNotFound} {
		keys = append(keys, p.code)
	}
	return keys
}()

// wrongFields is 422, or, where only media are wrong, 400 with Jelou's token for that. Neither the status nor
// the body of media errors is documented.
func wrongFields(wrong violations) problem {
	p := unprocessable
	if wrong[0].media != "" {
		p = problem{status: 400, code: wrong[0].media, number: "E0000", key: wrong[0].media, dialect: DialectH}
	}
	p.wrong = wrong
	p.text = ""
	for i, w := range wrong[:min(len(wrong), 5)] {
		if i > 0 {
			p.text += "; "
		}
		p.text += strings.TrimSpace(w.field + " " + w.text)
	}
	return p
}

// refuse puts a problem into the dialect of the call.
func (s *Server) refuse(c *call, p problem) answer {
	for _, d := range []Dialect{s.cfg.Dialects[p.code], s.cfg.Dialects[string(c.route.endpoint)], p.dialect} {
		if d != "" {
			return p.in(d)
		}
	}
	return p.in(c.route.dialect)
}

// in words the problem in a dialect.
func (p problem) in(d Dialect) answer {
	a := answer{status: p.status}
	switch d {
	case DialectA, DialectH:
		a.value = map[string]any{"code": p.code, "description": p.text}
	case DialectB:
		a.value = p.envelope()
	case DialectC:
		a.value = map[string]any{"message": p.text}
	case DialectD:
		a.value = map[string]any{
			"message": []any{p.text}, "status": "failed",
			"_metadata": map[string]any{"error": map[string]any{}, "body": p.sent},
		}
	case DialectE:
		a.status = http.StatusOK
		a.value = map[string]any{"message": []any{p.text}, "status": "failed"}
	case DialectF:
		a.value = map[string]any{"error": http.StatusText(p.status), "message": p.text}
	case DialectG:
		details := []any{}
		for _, w := range p.wrong {
			details = append(details, map[string]any{"path": w.field, "message": w.text, "code": "invalid"})
		}
		a.value = map[string]any{"error": "Validation failed", "details": details}
	case DialectI:
		title := html.EscapeString(fmt.Sprintf("%d %s", p.status, http.StatusText(p.status)))
		a.raw = []byte("<html><head><title>" + title + "</title></head><body><center><h1>" + title + "</h1></center></body></html>\n")
		a.contentType = "text/html"
	case DialectPlain:
		a.raw, a.contentType = []byte(p.text+"\n"), "text/plain; charset=utf-8"
	case DialectEmpty:
	}
	return a
}

func (p problem) envelope() map[string]any {
	said := map[string]any{"es": p.text, "en": p.text, "pt": p.text}
	e := map[string]any{
		"message": []any{p.text}, "statusMessage": "failed", "status": json.Number("0"),
		"error": map[string]any{
			"code": p.number, "key": p.key, "description": p.text, "developerMessages": said, "clientMessages": said,
		},
	}
	if len(p.wrong) > 0 {
		wrong := map[string][]any{}
		for _, w := range p.wrong {
			wrong[w.field] = append(wrong[w.field], map[string]any{"es": w.text, "en": w.text, "pt": w.text})
		}
		e["validationError"] = wrong
	}
	return e
}
