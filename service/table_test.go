package service_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/timestamppb"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/internal/canary"
	"github.com/jelou-facade/jelou-facade/service"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
	"github.com/jelou-facade/jelou-facade/service/pace"
)

// A refusal is one way to get one row of the error table, end to end.
type refusal struct {
	name    string
	reason  string
	code    codes.Code
	http    int
	domain  string // jelou-facade when empty
	retry   bool   // RetryInfo must be there
	field   string // of BadRequest, when not empty
	setup   func(*setup)
	fault   *jelousim.Fault
	before  func(f *facade, tr transport)
	ctx     func(context.Context) context.Context
	timeout time.Duration // of the call; 10s when zero
	method  string
	request proto.Message
	only    string // transport, when the row exists on one only
	raw     func(f *facade) *http.Request
}

const jelouDomain = "api.jelou.ai"

func notification(name string, parameters ...string) *facadev1.SendNotificationRequest {
	return &facadev1.SendNotificationRequest{BotId: "demo", Notification: &facadev1.TemplateMessage{
		ElementName: name, Language: "es", Destinations: []string{openUser}, Parameters: parameters,
	}}
}

func withBot(r *facadev1.SendMessageRequest, bot string) *facadev1.SendMessageRequest {
	r.BotId = bot
	return r
}

func withID(r *facadev1.SendMessageRequest, id string) *facadev1.SendMessageRequest {
	r.RequestId = id
	return r
}

func queued(text string) *facadev1.SendMessageRequest {
	r := textTo(openUser, text)
	r.Mode = facadev1.SendOptions_QUEUE
	return r
}

func image() *facadev1.SendMessageRequest {
	return &facadev1.SendMessageRequest{BotId: "demo", UserId: openUser, Message: &facadev1.Message{Content: &facadev1.Message_Image{Image: &facadev1.ImageContent{MediaUrl: "https://cdn.example.ec/f/991.png"}}}}
}

const (
	sendMessage      = "MessageService/SendMessage"
	sendNotification = "NotificationService/SendNotification"
	getNotification  = "NotificationService/GetNotification"
)

func post(path, contentType, body string) func(*facade) *http.Request {
	return func(f *facade) *http.Request {
		r, err := http.NewRequest(http.MethodPost, f.rest+path, strings.NewReader(body))
		f.must(err)
		r.Header.Set("Content-Type", contentType)
		return r
	}
}

func get(path string) func(*facade) *http.Request {
	return func(f *facade) *http.Request {
		r, err := http.NewRequest(http.MethodGet, f.rest+path, nil)
		f.must(err)
		return r
	}
}

// retried marks a request as Envoy marks its second attempt.
func retried(first func(*facade) *http.Request) func(*facade) *http.Request {
	return func(f *facade) *http.Request {
		r := first(f)
		r.Header.Set("X-Envoy-Attempt-Count", "2")
		return r
	}
}

func slow(s *setup) { s.pace = pace.Config{Requests: 1, Window: 5 * time.Second} }

// refusals are the ways to get each row.
var refusals = []refusal{
	{name: "unknown bot", reason: "BOT_NOT_FOUND", code: codes.NotFound, http: 404, method: sendMessage, request: withBot(textTo(openUser, "hola"), "nobody")},
	{name: "bot_not_found at Jelou", reason: "BOT_NOT_FOUND", code: codes.NotFound, http: 404, domain: jelouDomain, method: sendMessage, request: withBot(textTo(openUser, "hola"), numberBot)},
	{name: "forbidden_bot", reason: "FORBIDDEN_BOT", code: codes.PermissionDenied, http: 403, domain: jelouDomain, method: sendMessage, request: withBot(textTo(openUser, "hola"), "disabled")},
	{name: "message_could_not_be_send", reason: "MESSAGE_COULD_NOT_BE_SEND", code: codes.InvalidArgument, http: 400, domain: jelouDomain,
		setup: answering(400, `{"code":"message_could_not_be_send","description":"Message refused"}`), method: sendMessage, request: textTo(openUser, "hola")},
	{name: "window closed", reason: "SESSION_WINDOW_CLOSED", code: codes.FailedPrecondition, http: 400, domain: jelouDomain, method: sendMessage, request: textTo(canary.Number+"99999", "hola")},
	{name: "notification_could_not_be_send", reason: "NOTIFICATION_COULD_NOT_BE_SEND", code: codes.InvalidArgument, http: 400, domain: jelouDomain,
		setup: answering(400, `{"code":"notification_could_not_be_send","description":"Parameters do not match"}`), method: sendNotification, request: notification("order_ready", "Lucía", "991")},
	{name: "template missing", reason: "TEMPLATE_NOT_FOUND", code: codes.InvalidArgument, http: 400, domain: jelouDomain, method: sendNotification, request: notification("order_unknown", "Lucía", "991")},
	{name: "template not approved", reason: "TEMPLATE_NOT_FOUND", code: codes.InvalidArgument, http: 400, domain: jelouDomain, method: sendNotification, request: notification("draft_promo")},
	{name: "wrong credential", reason: "JELOU_UNAUTHORIZED", code: codes.Unauthenticated, http: 401, domain: jelouDomain, setup: func(s *setup) { s.secret = "other-secret" }, method: sendMessage, request: textTo(openUser, "hola")},
	{name: "E0422", reason: "UNPROCESSABLE_ENTITY", code: codes.InvalidArgument, http: 400, domain: jelouDomain, field: "user_id", fault: &jelousim.Fault{Kind: jelousim.FaultValidation}, method: sendMessage, request: textTo(openUser, "hola")},
	{name: "media not fetched", reason: "INVALID_MEDIA_URL", code: codes.InvalidArgument, http: 400, domain: jelouDomain, fault: &jelousim.Fault{Kind: jelousim.FaultInvalidMedia}, method: sendMessage, request: image()},
	{name: "media too large", reason: "MEDIA_TOO_LARGE", code: codes.InvalidArgument, http: 400, domain: jelouDomain, fault: &jelousim.Fault{Kind: jelousim.FaultMediaTooLarge}, method: sendMessage, request: image()},
	{name: "media type", reason: "UNSUPPORTED_MEDIA_TYPE", code: codes.InvalidArgument, http: 400, domain: jelouDomain, fault: &jelousim.Fault{Kind: jelousim.FaultUnsupportedMedia}, method: sendMessage, request: image()},
	{name: "no company", reason: "JELOU_INTERNAL", code: codes.Internal, http: 500, domain: jelouDomain, fault: &jelousim.Fault{Kind: jelousim.FaultNoCompany}, method: sendMessage, request: textTo(openUser, "hola")},
	{name: "other 4xx", reason: "UPSTREAM_REFUSED", code: codes.PermissionDenied, http: 403, domain: jelouDomain, setup: answering(402, `{"message":"payment required"}`), method: sendMessage, request: textTo(openUser, "hola")},
	{name: "failure inside 200", reason: "UPSTREAM_REFUSED", code: codes.FailedPrecondition, http: 400, domain: jelouDomain, fault: &jelousim.Fault{Kind: jelousim.FaultSuccessFalse}, method: sendMessage, request: textTo(openUser, "hola")},
	{name: "429 and no time left", reason: "UPSTREAM_RATE_LIMITED", code: codes.ResourceExhausted, http: 429, domain: jelouDomain, retry: true, timeout: 2 * time.Second,
		fault: &jelousim.Fault{Kind: jelousim.FaultThrottle, Times: 50, RetryAfter: jelousim.Duration(5 * time.Second)}, method: sendMessage, request: textTo(openUser, "hola")},
	{name: "429 and no time left, with a request_id", reason: "UPSTREAM_RATE_LIMITED", code: codes.ResourceExhausted, http: 429, domain: jelouDomain, retry: true, timeout: 4 * time.Second,
		fault: &jelousim.Fault{Kind: jelousim.FaultThrottle, Times: 50, RetryAfter: jelousim.Duration(5 * time.Second)}, method: sendMessage, request: withID(textTo(openUser, "hola"), "throttled-1")},
	{name: "connection refused", reason: "UPSTREAM_UNREACHABLE", code: codes.Unavailable, http: 503, retry: true, timeout: 1500 * time.Millisecond, setup: func(s *setup) { s.baseURL = "http://127.0.0.1:1" }, method: sendMessage, request: textTo(openUser, "hola")},
	{name: "reset after accepting", reason: "OUTCOME_UNKNOWN", code: codes.Unknown, http: 500, fault: &jelousim.Fault{Kind: jelousim.FaultReset, Accepted: true}, method: sendMessage, request: textTo(openUser, "hola")},
	{name: "HTML 502", reason: "OUTCOME_UNKNOWN", code: codes.Unknown, http: 500, fault: &jelousim.Fault{Kind: jelousim.FaultBadGateway}, method: sendMessage, request: textTo(openUser, "hola")},
	{name: "truncated answer", reason: "OUTCOME_UNKNOWN", code: codes.Unknown, http: 500, fault: &jelousim.Fault{Kind: jelousim.FaultTruncate}, method: sendMessage, request: textTo(openUser, "hola")},
	{name: "no time for its turn", reason: "WOULD_MISS_DEADLINE", code: codes.ResourceExhausted, http: 429, retry: true, timeout: 500 * time.Millisecond, setup: slow,
		before: func(f *facade, tr transport) {
			if _, _, err := f.sendText(tr, textTo(openUser, "the one before "+tr.name)); err != nil {
				f.Fatal(err)
			}
		}, method: sendMessage, request: textTo(openUser, "hola")},
	{name: "too many wait", reason: "QUEUE_FULL", code: codes.ResourceExhausted, http: 429, retry: true,
		setup: func(s *setup) { slow(s); s.bounds.Company = 1 },
		before: func(f *facade, tr transport) {
			if _, _, err := f.sendText(tr, queued("the one before "+tr.name)); err != nil {
				f.Fatal(err)
			}
		}, method: sendMessage, request: queued("hola")},
	{name: "request_id reused", reason: "REQUEST_ID_REUSED", code: codes.InvalidArgument, http: 400,
		before: func(f *facade, tr transport) {
			if _, _, err := f.sendText(tr, withID(textTo(openUser, "first"), "order-1")); err != nil {
				f.Fatal(err)
			}
		}, method: sendMessage, request: withID(textTo(openUser, "second"), "order-1")},
	{name: "blank text", reason: "INVALID_FIELD", code: codes.InvalidArgument, http: 400, field: "message.text.text", method: sendMessage, request: textTo(openUser, " ")},
	{name: "expire_time past", reason: "INVALID_FIELD", code: codes.InvalidArgument, http: 400, field: "options.expire_time", method: sendMessage,
		request: &facadev1.SendMessageRequest{BotId: "demo", UserId: openUser, Message: textTo(openUser, "hola").Message, Options: &facadev1.SendOptions{ExpireTime: &timestamppb.Timestamp{Seconds: 1}}}},
	{name: "no such notification", reason: "RESOURCE_NOT_FOUND", code: codes.NotFound, http: 404, domain: jelouDomain, method: getNotification, request: &facadev1.GetNotificationRequest{BotId: "demo", NotificationId: "0b6f2f0e-0c8a-4b0e-9a57-3f6d7a0c1e11"}},
	{name: "automatic retry without request_id", reason: "RETRY_WITHOUT_REQUEST_ID", code: codes.FailedPrecondition, http: 400, only: "gRPC",
		ctx: func(ctx context.Context) context.Context {
			return metadata.AppendToOutgoingContext(ctx, "x-envoy-attempt-count", "2")
		}, method: sendMessage, request: textTo(openUser, "hola")},
	{name: "automatic retry of a batch without request_id", reason: "RETRY_WITHOUT_REQUEST_ID", code: codes.FailedPrecondition, http: 400, only: "gRPC",
		ctx: func(ctx context.Context) context.Context {
			return metadata.AppendToOutgoingContext(ctx, "grpc-previous-rpc-attempts", "1")
		}, method: "BatchService/CreateBatch", request: batchOf(3, "hola ")},
	{name: "Envoy's retry of a batch without request_id", reason: "RETRY_WITHOUT_REQUEST_ID", code: codes.FailedPrecondition, http: 400,
		raw: retried(post("/v1/batches", "application/json", `{"spec": {"bot_id": "demo"}, "items": [{"user_id": "593991234567", "message": {"text": {"text": "hola"}}}]}`))},
	{name: "no such route", reason: "ROUTE_NOT_FOUND", code: codes.NotFound, http: 404, raw: get("/v2/nothing")},
	{name: "wrong method", reason: "METHOD_NOT_ALLOWED", code: codes.Unimplemented, http: 405, raw: get("/v1/bots/demo/messages")},
	{name: "not JSON", reason: "INVALID_JSON", code: codes.InvalidArgument, http: 400, raw: post("/v1/bots/demo/messages", "application/json", `{"user_id": `)},
	{name: "two JSON values", reason: "INVALID_JSON", code: codes.InvalidArgument, http: 400, raw: post("/v1/bots/demo/messages", "application/json", `{"user_id": "`+openUser+`"} {}`)},
	{name: "Content-Type", reason: "INVALID_JSON", code: codes.InvalidArgument, http: 400, raw: post("/v1/bots/demo/messages", "text/plain", `{"user_id": "`+openUser+`"}`)},
	{name: "unknown field", reason: "INVALID_FIELD", code: codes.InvalidArgument, http: 400, field: "message.text.texto", raw: post("/v1/bots/demo/messages", "application/json", `{"user_id": "`+openUser+`", "message": {"text": {"texto": "hola"}}}`)},
	{name: "text in place of an object", reason: "INVALID_FIELD", code: codes.InvalidArgument, http: 400, field: "message.text", raw: post("/v1/bots/demo/messages", "application/json", `{"user_id": "`+openUser+`", "message": {"text": "hola"}}`)},
	{name: "number in place of a text", reason: "INVALID_FIELD", code: codes.InvalidArgument, http: 400, field: "user_id", raw: post("/v1/bots/demo/messages", "application/json", `{"user_id": `+openUser+`, "message": {"text": {"text": "hola"}}}`)},
	{name: "another bot in the body", reason: "INVALID_FIELD", code: codes.InvalidArgument, http: 400, field: "bot_id", raw: post("/v1/bots/demo/messages", "application/json", `{"botId": "other", "user_id": "`+openUser+`", "message": {"text": {"text": "hola"}}}`)},
	{name: "query beside a body", reason: "INVALID_FIELD", code: codes.InvalidArgument, http: 400, raw: post("/v1/bots/demo/messages?validate_only=true", "application/json", `{}`)},
	{name: "unknown query parameter", reason: "INVALID_FIELD", code: codes.InvalidArgument, http: 400, field: "stats", raw: get("/v1/bots/demo/notifications?stats=FAILED")},
	{name: "wrong type in the query", reason: "INVALID_FIELD", code: codes.InvalidArgument, http: 400, field: "page_size", raw: get("/v1/bots/demo/notifications?page_size=many")},
	{name: "too large", reason: "REQUEST_TOO_LARGE", code: codes.ResourceExhausted, http: 413, method: sendMessage, request: textTo(openUser, strings.Repeat("a", 5<<20))},
}

// answering is a Jelou that gives every request one answer.
func answering(code int, body string) func(*setup) {
	return func(s *setup) {
		s.baseURL = newAnswer(code, body)
	}
}

func newAnswer(code int, body string) string {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		fmt.Fprint(w, body)
	}))
	answers = append(answers, server)
	return server.URL
}

var answers []*httptest.Server

// TestErrorTable gets every row of the error table through gRPC and REST, and prints what came.
func TestErrorTable(t *testing.T) {
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "case\treason\tgRPC\tHTTP\tdomain\tover")
	seen := map[string]bool{}
	cases, ran := 0, 0
	for _, r := range refusals {
		for _, tr := range transports {
			if r.only != "" && r.only != tr.name || r.raw != nil && tr.name != "REST" {
				continue
			}
			cases++
			t.Run(r.name+"/"+tr.name, func(t *testing.T) {
				ran++
				code, err := r.run(t, tr)
				info := detailOf[*errdetails.ErrorInfo](err)
				fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\n", r.name, info.GetReason(), status.Code(err), code, info.GetDomain(), tr.name)
				seen[info.GetReason()] = true
			})
		}
	}
	for _, server := range answers {
		server.Close()
	}
	w.Flush()
	t.Logf("what came:\n%s", out.String())
	if ran < cases {
		return // -run chose some
	}
	for _, reason := range service.Reasons() {
		if !seen[reason] && !elsewhere[reason] {
			t.Errorf("no case gets the reason %s", reason)
		}
	}
}

// elsewhere are the reasons that other tests get, or that nothing in this server answers yet.
var elsewhere = map[string]bool{
	"DRAINING": true,                                                                  // TestStop
	"EXPIRED":  true, "CANCELLED": true, "ALREADY_SENDING": true, "NOT_UNKNOWN": true, // TestExpired, TestSendService
	"SEQUENCE_MISMATCH": true, "BATCH_SEALED": true, "STREAM_REPLACED": true, // TestStreamErrors
	"BATCH_ENDED": true, "NOTHING_TO_REPLAY": true, // TestBatchLifecycle, TestReplay
	"INTERNAL":    true,                                                     // TestPanic
	"LEDGER_HELD": true, "LEDGER_REWOUND": true, "LEDGER_UNAVAILABLE": true, // TestLedgerHeld, TestLedgerRewound, TestLedgerGone
	"CURSOR_EXPIRED": true, "NOT_BUILT_YET": true, // TestFaults; the ledger's own tests make them happen
	"AUDIT_UNAVAILABLE": true,                                                           // TestAuditRequired
	"CALLER_QUOTA":      true, "CALLER_UNAUTHENTICATED": true, "CALLER_FORBIDDEN": true, // TestMatrix, TestDailyQuota, TestRate
}

// run makes the call and checks what came.
func (r refusal) run(t *testing.T, tr transport) (int, error) {
	f := newFacade(t, r.setup)
	if r.fault != nil {
		f.must(f.sim.SetFaults(*r.fault))
	}
	if r.before != nil {
		r.before(f, tr)
	}
	timeout := r.timeout
	if timeout == 0 {
		timeout = 10 * time.Second
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if r.ctx != nil {
		ctx = r.ctx(ctx)
	}
	h, err := r.call(ctx, f, tr)
	st := status.Convert(err)
	info := detailOf[*errdetails.ErrorInfo](err)
	if st.Code() != r.code || info.GetReason() != r.reason {
		t.Fatalf("got %s %s: %q, want %s %s", st.Code(), info.GetReason(), st.Message(), r.code, r.reason)
	}
	domain := r.domain
	if domain == "" {
		domain = "jelou-facade"
	}
	if info.GetDomain() != domain {
		t.Errorf("domain %q, want %q", info.GetDomain(), domain)
	}
	if got := detailOf[*errdetails.RetryInfo](err) != nil; got != r.retry {
		t.Errorf("RetryInfo there: %v, want %v", got, r.retry)
	}
	if r.field != "" && detailOf[*errdetails.BadRequest](err).GetFieldViolations()[0].GetField() != r.field {
		t.Errorf("violations %v, want %s", detailOf[*errdetails.BadRequest](err), r.field)
	}
	for _, private := range []string{openUser, "hola", "Lucía", "other-secret"} {
		if strings.Contains(fmt.Sprint(st.Proto()), private) {
			t.Errorf("the error quotes %q: %v", private, st.Proto())
		}
	}
	code := 0
	if tr.name == "REST" {
		fmt.Sscan(h.Get("Test-Http-Status"), &code)
		if code != r.http {
			t.Errorf("HTTP %d, want %d", code, r.http)
		}
		if (h.Get("Retry-After") != "") != r.retry {
			t.Errorf("Retry-After %q", h.Get("Retry-After"))
		}
	}
	if h.Get("X-Request-Id") == "" {
		t.Error("no x-request-id")
	}
	return code, err
}

func (r refusal) call(ctx context.Context, f *facade, tr transport) (http.Header, error) {
	if r.raw == nil {
		return tr.call(ctx, f, r.method, r.request, responseOf(f, r.method))
	}
	answer, err := http.DefaultClient.Do(r.raw(f).WithContext(ctx))
	f.must(err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	f.must(err)
	answer.Header.Set("Test-Http-Status", fmt.Sprint(answer.StatusCode))
	return answer.Header, restStatus(f, body).Err()
}

// responseOf is an empty response of a method.
func responseOf(f *facade, method string) proto.Message {
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName("jelou.facade.v1." + strings.Replace(method, "/", ".", 1)))
	f.must(err)
	kind, err := protoregistry.GlobalTypes.FindMessageByName(d.(protoreflect.MethodDescriptor).Output().FullName())
	f.must(err)
	return kind.New().Interface()
}
