package jelou

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// answer is what came back, as far as it could be read.
type answer struct {
	status int
	header http.Header
	body   []byte
	err    error // why the body is not whole
}

// decode judges an answer. It returns the JSON value of a success, or the error.
//
// Jelou speaks several dialects, sometimes a failure inside HTTP 200, so nothing is decoded into fixed Go types:
//
//	A {"code", "description"}                      C {"message": "…"}
//	B {"message": […], "statusMessage", "status",  D, E {"message": […], "status": "failed", …}
//	   "error": {"code", "key", …}, …}             F, G {"error": "…", "message" | "details"}
//	H a media token anywhere                       I whatever a proxy says
func decode(r *request, a answer) (any, *Error) {
	value, err := parse(a)
	said := inspect(value)
	if success(a.status) {
		switch {
		case err != nil:
			return nil, lost(r, a, err)
		case said.failed && said.succeeded:
			return nil, lost(r, a, errContradiction)
		case !said.failed:
			return value, nil
		}
	}
	return nil, refusal(r, a, value, said)
}

var errContradiction = errors.New("answer says both")

func success(status int) bool { return status >= 200 && status <= 299 }

// lost is an answer that says nothing about the send.
func lost(r *request, a answer, err error) *Error {
	e := noAnswer(r.op, true, Timing{}, err)
	e.Status = a.status
	e.RetryAfter = retryAfter(a.header)
	return e
}

// parse reads exactly one JSON value. Numbers stay as they are written.
func parse(a answer) (any, error) {
	if a.err != nil {
		return nil, a.err
	}
	d := json.NewDecoder(bytes.NewReader(a.body))
	d.UseNumber()
	var value any
	if d.Decode(&value) != nil {
		return nil, errUnreadable
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errUnreadable
	}
	return value, nil
}

// said is what an answer's body says, whichever dialect it speaks.
type said struct {
	code, key string
	text      string // the best words for people, not yet scrubbed
	failed    bool
	succeeded bool
	status    int // an HTTP status inside of the body, or 0
}

// inspect reads an object, or what all elements of an array agree about.
func inspect(value any) said {
	switch v := value.(type) {
	case map[string]any:
		return inspectObject(v)
	case []any:
		return inspectArray(v)
	}
	return said{}
}

func inspectArray(v []any) said {
	var first said
	for i, element := range v {
		s := inspect(element)
		if !s.failed {
			return said{}
		}
		if i == 0 {
			first = s
		}
	}
	first.succeeded = false
	return first
}

func inspectObject(v map[string]any) said {
	var s said
	for _, name := range []string{"success", "status", "statusMessage", "statusCode"} {
		ok, failed, status := verdict(v[name])
		s.succeeded, s.failed = s.succeeded || ok, s.failed || failed
		s.status = max(s.status, status)
	}
	if isRecord(v) {
		// A notification that could not be delivered has a status and an error of its own; the read succeeded.
		return said{}
	}
	s.code = text(v["code"])
	switch e := v["error"].(type) {
	case map[string]any:
		s.failed = s.failed || len(e) > 0
		s.key = text(e["key"])
		s.code = first(s.code, text(e["code"]), text(e["status"]))
		s.text = first(translated(e["developerMessages"]), text(e["description"]), translated(e["clientMessages"]), words(e["message"]))
	case string:
		s.failed = s.failed || e != ""
		s.text = first(words(v["message"]), e)
	case []any:
		s.failed = s.failed || len(e) > 0
		s.text = words(e)
	case bool:
		s.failed = s.failed || e
	}
	s.text = first(s.text, text(v["description"]), words(v["message"]))
	if violations, _ := v["validationError"].(map[string]any); len(violations) > 0 {
		s.failed = true
	}
	// Dialect A has no mark but its code.
	if _, isText := v["code"].(string); isText && v["description"] != nil {
		s.failed = true
	}
	return s
}

// verdict reads the marks of success and failure: true, 1, "success" or 200, and false, 0, "failed" or 400.
func verdict(v any) (ok, failed bool, status int) {
	switch v := v.(type) {
	case bool:
		return v, !v, 0
	case json.Number:
		n, err := v.Float64()
		switch {
		case err != nil:
			return false, false, 0
		case n == 0:
			return false, true, 0
		case n == 1 || n >= 200 && n <= 299:
			return true, false, 0
		case n >= 400 && n <= 599:
			return false, true, int(n)
		}
	case string:
		if _, err := strconv.Atoi(v); err == nil {
			return verdict(json.Number(v))
		}
		word := strings.ToLower(strings.TrimSpace(v))
		return slices.Contains(successWords, word), slices.Contains(failureWords, word), 0
	}
	return false, false, 0
}

var (
	successWords = []string{"success", "ok", "true"}
	failureWords = []string{"failed", "fail", "failure", "error", "false"}
)

// isRecord tells a notification's record from an answer about a request.
func isRecord(v map[string]any) bool {
	return v["sentStatus"] != nil || v["destination"] != nil && v["elementName"] != nil
}

// A ruling is a reason and what it means for the send.
type ruling struct {
	reason  facadev1.ErrorReason
	outcome Outcome
}

var (
	rateLimited   = ruling{facadev1.ErrorReason_UPSTREAM_RATE_LIMITED, Throttled}
	unauthorized  = ruling{facadev1.ErrorReason_JELOU_UNAUTHORIZED, Unauthorized}
	noCompany     = ruling{facadev1.ErrorReason_JELOU_INTERNAL, Misconfigured}
	unknown       = ruling{facadev1.ErrorReason_OUTCOME_UNKNOWN, Unknown}
	refused       = ruling{facadev1.ErrorReason_UPSTREAM_REFUSED, Refused}
	unprocessable = ruling{facadev1.ErrorReason_UNPROCESSABLE_ENTITY, Refused}
	notRefused    = ruling{}
)

// rulings by Jelou's code or key, in lower case.
// https://docs.jelou.ai/en/api/introduction and, for E…, https://docs.jelou.ai/whatsapp/hsm/messages
var rulings = map[string]ruling{
	"bot_not_found":                  {facadev1.ErrorReason_BOT_NOT_FOUND, Refused},
	"e1019":                          {facadev1.ErrorReason_BOT_NOT_FOUND, Refused},
	"forbidden_bot":                  {facadev1.ErrorReason_FORBIDDEN_BOT, Refused},
	"message_could_not_be_send":      {facadev1.ErrorReason_MESSAGE_COULD_NOT_BE_SEND, Refused},
	"notification_could_not_be_send": {facadev1.ErrorReason_NOTIFICATION_COULD_NOT_BE_SEND, Refused},
	"unauthorized":                   unauthorized,
	"unprocessable_entity":           unprocessable,
	"e0422":                          unprocessable,
	"validator_error":                unprocessable,
	"invalid_media_url":              {facadev1.ErrorReason_INVALID_MEDIA_URL, Refused},
	"media_too_large":                {facadev1.ErrorReason_MEDIA_TOO_LARGE, Refused},
	"unsupported_media_type":         {facadev1.ErrorReason_UNSUPPORTED_MEDIA_TYPE, Refused},
}

// faults are codes of an error inside of Jelou. Without a 4xx status they say nothing about the send.
var faults = []string{"internal_server_error", "e0000", "unknown_error"}

// phrases are rulings by Jelou's loose text, for what has no code of its own. The texts are undocumented but for
// "Template does not exist" and "Authentication failed"; 131047 is WhatsApp's code for a closed window.
var phrases = []struct {
	op     func(operation) bool
	match  *regexp.Regexp
	ruling ruling
}{
	{anyOperation, regexp.MustCompile(`(?i)authentication failed`), unauthorized},
	{session, regexp.MustCompile(`(?i)\b24[- ]?(h|hs|hr|hrs|hours?|horas?)\b|131047|(session|service|conversation|messaging)\W+window|ventana|janela`),
		ruling{facadev1.ErrorReason_SESSION_WINDOW_CLOSED, Refused}},
	{templates, regexp.MustCompile(`(?i)\b(template|plantilla|modelo)\b[^.;]*(\b(not|no|não|nao)\b|n't\b)[^.;]*(exist|found|approv|aprob|aprov|encontr|encuentr)` +
		`|\b(no|not|não|nao)\b[^.;]*(exist|found|approv|aprob|aprov|encontr|encuentr)[^.;]*\b(template|plantilla|modelo)\b|132001`),
		ruling{facadev1.ErrorReason_TEMPLATE_NOT_FOUND, Refused}},
}

func anyOperation(operation) bool { return true }
func session(o operation) bool    { return o == sendMessage || o == sendFlow }
func templates(o operation) bool  { return o == sendNotification }

// withoutCompany is the description of the one 500 that is permanent. Its words are undocumented: the current
// introduction says only that the token has no company. It is narrow on purpose: any other 500 is unknown.
var withoutCompany = regexp.MustCompile(`(?i)\b(no|without|sin|sem)\s+((an?|una|uma|associated|valid)\s+)*` + company +
	`|(\b(not|no|não|nao)|n't)\s+(have|belong|tiene|pertenece|tem|possui|pertence)\b.{0,40}` + company +
	`|` + company + `.{0,20}\b(missing|(not|no|não|nao)\s+(found|set|associated|assigned|encontrad|asociad|associad))`)

const company = `\b(company|compañ[ií]a|compania|empresa|companhia)\b`

// refusal is the error of an answer that is no success.
func refusal(r *request, a answer, value any, s said) *Error {
	all := texts(value, nil)
	if value == nil && !bytes.HasPrefix(bytes.TrimSpace(a.body), []byte("<")) {
		all = append(all, string(a.body)) // plain text; a proxy's page would only mislead
	}
	ruled := rule(r.op, a.status, s, all)
	e := &Error{
		Outcome: ruled.outcome, Reason: ruled.reason,
		Sent: true, Status: a.status, Code: publicCode(first(s.key, s.code)),
		RetryAfter: retryAfter(a.header),
	}
	if e.Outcome == Unknown {
		e.Reason = r.op.unknownReason()
	}
	own := ownWords(r)
	e.Message = e.text(r.op)
	if explained := redirect(a.status); explained != "" {
		e.Message += ": " + explained
	} else if theirs := scrub(s.text, own); theirs != "" && wordy[e.Reason] {
		e.Message += ": " + theirs
	}
	if e.Outcome == Refused {
		e.Fields = violations(r, value, own)
	}
	return e
}

// wordy are the reasons where Jelou's own words help the caller.
var wordy = map[facadev1.ErrorReason]bool{
	facadev1.ErrorReason_MESSAGE_COULD_NOT_BE_SEND:      true,
	facadev1.ErrorReason_NOTIFICATION_COULD_NOT_BE_SEND: true,
	facadev1.ErrorReason_UNPROCESSABLE_ENTITY:           true,
	facadev1.ErrorReason_UPSTREAM_REFUSED:               true,
}

// rule decides by HTTP status first where that is the stronger word, then by text and code, then by the rest.
func rule(op operation, status int, s said, all []string) ruling {
	code, key := strings.ToLower(s.code), strings.ToLower(s.key)
	inside := slices.Contains(faults, first(key, code)) // E0000 stands beside keys that say more
	switch {
	case status == http.StatusTooManyRequests || s.status == http.StatusTooManyRequests:
		return rateLimited
	case (inside || slices.Contains(faults, code)) && (status >= 500 || success(status)) && slices.ContainsFunc(all, withoutCompany.MatchString):
		return noCompany
	case status == http.StatusUnauthorized:
		return unauthorized
	case mayHaveSent(status), success(status) && (inside || s.status != 0 && mayHaveSent(s.status)):
		return unknown
	}
	known, specific := rulings[key], true
	if known == notRefused {
		known = rulings[code]
	}
	switch known.reason {
	case facadev1.ErrorReason_ERROR_REASON_UNSPECIFIED, facadev1.ErrorReason_MESSAGE_COULD_NOT_BE_SEND, facadev1.ErrorReason_NOTIFICATION_COULD_NOT_BE_SEND:
		specific = false
	}
	if !specific {
		if by := byText(op, all); by != notRefused {
			return by
		}
	}
	switch {
	case known != notRefused:
		return known
	case status == http.StatusUnprocessableEntity:
		return unprocessable
	case status == http.StatusNotFound && op == readOne:
		return ruling{facadev1.ErrorReason_RESOURCE_NOT_FOUND, Refused}
	}
	return refused
}

// byText looks for media tokens, which Jelou lists without a body, and for phrases.
func byText(op operation, all []string) ruling {
	for _, text := range all {
		for _, token := range []string{"INVALID_MEDIA_URL", "MEDIA_TOO_LARGE", "UNSUPPORTED_MEDIA_TYPE"} {
			if strings.Contains(text, token) {
				return rulings[strings.ToLower(token)]
			}
		}
	}
	for _, p := range phrases {
		if p.op(op) && slices.ContainsFunc(all, p.match.MatchString) {
			return p.ruling
		}
	}
	return notRefused
}

// mayHaveSent are the statuses after which a send may have gone out: the server, or a proxy, gave up on it midway. A
// redirect to the same request elsewhere (301, 307, 308) was not carried out; 303 and, as browsers have it, 302 come
// after one that was.
func mayHaveSent(status int) bool {
	switch status {
	case http.StatusRequestTimeout, 499:
		return true
	case http.StatusMovedPermanently, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return false
	}
	return status < 200 || status >= 300 && status <= 399 || status >= 500
}

func redirect(status int) string {
	if status >= 300 && status <= 399 {
		return "it redirects, which is not followed; an operator must check the company's base_url"
	}
	return ""
}

// maxRetryAfter bounds what Jelou can make a company wait: a probe after it costs one request.
const maxRetryAfter = time.Hour

// retryAfter reads both forms of the header. A date counts from the answer's own date, so that no clocks are compared.
func retryAfter(h http.Header) time.Duration {
	value := strings.TrimSpace(h.Get("Retry-After"))
	if value == "" {
		return 0
	}
	if seconds, err := strconv.ParseFloat(value, 64); err == nil {
		if !(seconds > 0) {
			return 0
		}
		return time.Duration(min(seconds, maxRetryAfter.Seconds()) * float64(time.Second))
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	now, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		now = time.Now()
	}
	return min(max(at.Sub(now), 0), maxRetryAfter)
}

// text is a string or a number as text.
func text(v any) string {
	switch v := v.(type) {
	case string:
		return strings.TrimSpace(v)
	case json.Number:
		return v.String()
	}
	return ""
}

// words is a text, or the first one of an array.
func words(v any) string {
	switch v := v.(type) {
	case []any:
		for _, element := range v {
			if t := words(element); t != "" {
				return t
			}
		}
		return ""
	case map[string]any:
		return first(translated(v), text(v["message"]), text(v["description"]))
	}
	return text(v)
}

// translated picks a language of {"es", "en", "pt"}.
func translated(v any) string {
	m, ok := v.(map[string]any)
	if !ok {
		return text(v)
	}
	return first(text(m["en"]), text(m["es"]), text(m["pt"]))
}

func first(options ...string) string {
	for _, o := range options {
		if o != "" {
			return o
		}
	}
	return ""
}

// texts are all strings of a value. `_metadata` is left out: Jelou repeats the request there.
func texts(v any, all []string) []string {
	switch v := v.(type) {
	case string:
		all = append(all, v)
	case []any:
		for _, element := range v {
			all = texts(element, all)
		}
	case map[string]any:
		for name, member := range v {
			if name != "_metadata" {
				all = texts(member, all)
			}
		}
	}
	return all
}
