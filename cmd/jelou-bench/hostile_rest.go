package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"syscall"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// route is the REST route of a method, with something in its path.
func (a *attack) route(m protoreflect.MethodDescriptor, rng *rand.Rand) (verb, path string) {
	rule, _ := proto.GetExtension(m.Options(), annotations.E_Http).(*annotations.HttpRule)
	verb, path = http.MethodPost, rule.GetPost()
	if path == "" {
		verb, path = http.MethodGet, rule.GetGet()
	}
	for {
		from := strings.IndexByte(path, '{')
		if from < 0 {
			return verb, path
		}
		to := from + strings.IndexByte(path[from:], '}')
		value := a.tenant.bot()
		if rng.IntN(2) == 0 {
			value = nasty(rng)
		}
		path = path[:from] + url.PathEscape(value) + path[to+1:]
	}
}

func (a *attack) someJSON(m protoreflect.MethodDescriptor, rng *rand.Rand) []byte {
	data, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(a.randomFields(m.Input(), rng, 4).Interface())
	if err != nil {
		return []byte("{}") // a time that is none
	}
	return data
}

func randomJSON(ctx context.Context, a *attack, kind string, rng *rand.Rand) {
	m := anyMethod(rng)
	verb, path := a.route(m, rng)
	a.request(ctx, kind, verb, path, a.someJSON(m, rng), nil)
}

func mutatedJSON(ctx context.Context, a *attack, kind string, rng *rand.Rand) {
	m := anyMethod(rng)
	verb, path := a.route(m, rng)
	a.request(ctx, kind, verb, path, mutate(a.someJSON(m, rng), rng), nil)
}

func deepJSON(ctx context.Context, a *attack, kind string, rng *rand.Rand) {
	depth := 1 + rng.IntN(200_000)
	body := strings.Repeat("[", depth)
	switch rng.IntN(3) {
	case 0:
		body = strings.Repeat(`{"message":`, depth/10)
	case 1:
		body = `{"message":{"text":{"text":` + body + strings.Repeat("]", depth) + `}}}`
	}
	m := anyMethod(rng)
	verb, path := a.route(m, rng)
	a.request(ctx, kind, verb, path, []byte(body), nil)
}

func largeBody(ctx context.Context, a *attack, kind string, rng *rand.Rand) {
	size := []int{3 << 20, 5 << 20, 20 << 20}[rng.IntN(3)]
	body := []byte(`{"user_id":"593991234567","message":{"text":{"text":"` + strings.Repeat("a", size) + `"}}}`)
	a.request(ctx, kind, http.MethodPost, "/v1/bots/"+a.tenant.bot()+"/messages", body, nil)
}

func randomRoute(ctx context.Context, a *attack, kind string, rng *rand.Rand) {
	verbs := []string{"GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "BREW", "get"}
	paths := []string{"/v1/", "/v1/bots", "/v1/bots//messages", "/v1/sends/" + url.PathEscape(nasty(rng)), "/v1/batches:nothing", "/v1/bots/a:b:c", "/healthz", "/openapi.json", "/%zz", "/v1/../etc", "/configz"}
	path := paths[rng.IntN(len(paths))]
	if rng.IntN(2) == 0 {
		_, path = a.route(anyMethod(rng), rng)
	}
	query := url.Values{}
	for range rng.IntN(4) {
		query.Add(nasty(rng), nasty(rng))
		query.Add([]string{"page_size", "page_token", "states", "labels[a]", "after_cursor", "labels[" + nasty(rng) + "]"}[rng.IntN(6)], nasty(rng))
	}
	a.request(ctx, kind, verbs[rng.IntN(len(verbs))], path+"?"+query.Encode(), nil, nil)
}

func headerFlood(ctx context.Context, a *attack, kind string, rng *rand.Rand) {
	h := http.Header{}
	for range 1 + rng.IntN(60) {
		h.Add("X-"+strings.Repeat("h", rng.IntN(30)), strings.Repeat("v", rng.IntN(1000)))
	}
	h.Set("Grpc-Timeout", strings.Map(printable, nasty(rng)))
	h.Set("Idempotency-Key", strings.Map(printable, nasty(rng)))
	m := anyMethod(rng)
	verb, path := a.route(m, rng)
	a.request(ctx, kind, verb, path, a.someJSON(m, rng), h)
}

func randomLines(ctx context.Context, a *attack, kind string, rng *rand.Rand) {
	var body bytes.Buffer
	for range 1 + rng.IntN(20) {
		line := a.someJSON(streamBatch, rng)
		if rng.IntN(4) == 0 {
			line = mutate(line, rng)
		}
		body.Write(line)
		body.WriteByte('\n')
	}
	a.request(ctx, kind, http.MethodPost, "/v1/batches:stream", body.Bytes(), http.Header{"Content-Type": {"application/x-ndjson"}})
}

// request makes an HTTP request and holds its answer to the contract.
func (a *attack) request(ctx context.Context, kind, verb, path string, body []byte, h http.Header) {
	ctx, cancel := context.WithTimeout(ctx, hostileWait)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, verb, a.facade.rest+path, bytes.NewReader(body))
	if err != nil {
		a.count(kind, answeredLeft, "") // the client itself refuses
		return
	}
	r.Header.Set("Content-Type", "application/json")
	own, _ := metadata.FromOutgoingContext(ctx)
	for name, values := range own {
		r.Header[http.CanonicalHeaderKey(name)] = values
	}
	for name, values := range h {
		r.Header[name] = values
	}
	answer, err := a.http.Do(r)
	if err != nil {
		a.countEnd(kind, err)
		return
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(io.LimitReader(answer.Body, 32<<20))
	switch {
	case err != nil:
		a.countEnd(kind, err)
	case answer.StatusCode < http.StatusBadRequest:
		a.countStream(kind, data)
	case verb == http.MethodHead:
		a.count(kind, answeredMapped, "") // it has no body
	default:
		a.countError(kind, answer, data)
	}
}

// countEnd counts a request without a whole answer: the server has cut it, or the client itself gave up, or would not make it.
func (a *attack) countEnd(kind string, err error) {
	for _, cut := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, cut) {
			a.count(kind, answeredCut, describe("%v", err))
			return
		}
	}
	a.count(kind, answeredLeft, "")
}

// restError is AIP-193's shape, as far as it is needed.
type restError struct {
	Error struct {
		Code    int
		Details []struct{ Reason string }
	}
}

// countStream looks at the last line of an answer that began well: it may be an error.
func (a *attack) countStream(kind string, data []byte) {
	lines := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	var last restError
	if json.Unmarshal(lines[len(lines)-1], &last) == nil && last.Error.Code != 0 {
		a.countReason(kind, last, data)
		return
	}
	a.count(kind, answeredOK, "")
}

func (a *attack) countError(kind string, answer *http.Response, data []byte) {
	var e restError
	if json.Unmarshal(data, &e) != nil || e.Error.Code != answer.StatusCode || !strings.HasPrefix(answer.Header.Get("Content-Type"), "application/json") {
		what := answeredUnmapped
		if answer.StatusCode == http.StatusRequestHeaderFieldsTooLarge || answer.StatusCode == http.StatusBadRequest && answer.Header.Get("X-Request-Id") == "" {
			what = answeredRefused // by net/http, before there is a request
		}
		a.count(kind, what, describe("%s %s: %s", answer.Request.Method, answer.Status, data))
		return
	}
	a.countReason(kind, e, data)
}

func (a *attack) countReason(kind string, e restError, data []byte) {
	for _, d := range e.Error.Details {
		if d.Reason != "" {
			a.count(kind, answeredMapped, d.Reason)
			return
		}
	}
	a.count(kind, answeredUnmapped, describe("%s", data))
}
