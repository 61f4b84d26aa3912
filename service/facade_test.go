package service_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/internal/canary"
	"github.com/jelou-facade/jelou-facade/service"
	"github.com/jelou-facade/jelou-facade/service/audit"
	"github.com/jelou-facade/jelou-facade/service/caller"
	"github.com/jelou-facade/jelou-facade/service/dispatch"
	"github.com/jelou-facade/jelou-facade/service/jelou"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
	"github.com/jelou-facade/jelou-facade/service/keyring"
	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/pace"
	"github.com/jelou-facade/jelou-facade/service/telemetry"
)

// facade is a real server on real listeners with a real SQLite ledger, in front of the simulator.
type facade struct {
	*testing.T
	sim      *jelousim.Server
	ledger   *ledger.Ledger
	server   *service.Server
	settings service.Settings
	source   *caller.Source
	conn     *grpc.ClientConn
	grpcAddr string
	rest     string
	admin    string
	spans    *spanBuffer
	trace    *telemetry.Telemetry
	// auditFile is the audit log, where the setup names no other.
	auditFile string
	logs      *logBuffer
	stop      context.CancelFunc
	ended     chan error

	log     *slog.Logger
	answers *logBuffer        // errors and warnings that callers were told
	looked  map[string][]byte // what the admin port said at the end
	secrets []string          // credentials of this test's own
	planted bool              // there is a canary in every sink, and each must be found
}

// setup is what a test may want different.
type setup struct {
	sim     jelousim.Config
	baseURL string // of Jelou, instead of the simulator
	secret  string
	pace    pace.Config
	// attemptTimeout bounds a request to Jelou, and with it its lease.
	attemptTimeout time.Duration
	ledger         ledger.Config // Path is a new one unless it is given
	keyFile        string        // of what is stored; a new one unless it is given
	bounds         service.Bounds

	audit         audit.Config // a file unless it is given
	configuration func() ([]byte, error)
	files         bool // PostgreSQL's are searched, which is a cluster of the test's own

	connections service.Connections
	tls         *tls.Config

	callers        []*configv1.Caller
	authentication *configv1.Authentication
	credential     func() (id, secret string, err error) // of Jelou, instead of the secret
	rival          bool                                  // there is another company, `rival`, with the bot `rival-bot`
}

// newFacade starts everything; the end of the test stops it and checks what must hold after every scenario.
func newFacade(t *testing.T, change func(*setup)) *facade {
	t.Helper()
	s := setup{sim: jelousim.Sandbox(), secret: canary.NewWord(), pace: pace.Config{Requests: 50, Window: 100 * time.Millisecond}}
	s.sim.Rate = jelousim.Rate{Requests: 50, Window: jelousim.Duration(100 * time.Millisecond)}
	s.sim.Processing = jelousim.Processing{}
	s.sim.Companies[0].ClientSecret = s.secret
	s.sim.OpenUsers = append(s.sim.OpenUsers, openUser, secondUser)
	s.attemptTimeout = 2 * time.Second
	if change != nil {
		change(&s)
	}
	f := &facade{T: t, sim: jelousim.New(s.sim), logs: &logBuffer{}, answers: &logBuffer{}, ended: make(chan error, 1)}
	upstream := httptest.NewServer(f.sim)
	t.Cleanup(upstream.Close)
	if s.baseURL == "" {
		s.baseURL = upstream.URL
	}
	ctx, stop := context.WithCancel(context.Background())
	f.stop = stop
	var err error
	log := slog.New(slog.NewJSONHandler(f.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if s.ledger == (ledger.Config{}) {
		s.ledger.Path = filepath.Join(t.TempDir(), "ledger.db")
	}
	f.spans = &spanBuffer{}
	f.trace, err = telemetry.Open(ctx, telemetry.Config{Version: "test", Exporter: f.spans})
	f.must(err)
	f.log = log
	s.ledger.Replica, s.ledger.Logger, s.ledger.Meter = t.Name(), log, f.trace.Meter()
	f.ledger, err = ledger.Open(ctx, s.ledger)
	f.must(err)
	if s.credential == nil {
		s.credential = func() (string, string, error) { return "sandbox", s.secret, nil }
	}
	client, err := jelou.New(jelou.Config{BaseURL: s.baseURL, AttemptTimeout: s.attemptTimeout, Credential: s.credential})
	f.must(err)
	id, err := f.ledger.Company(ctx, "sandbox")
	f.must(err)
	company := &dispatch.Company{ID: id, Name: "sandbox", Client: client, Pace: s.pace, AttemptTimeout: s.attemptTimeout}
	if s.keyFile == "" {
		s.keyFile = filepath.Join(t.TempDir(), "ledger.key")
		f.must(os.WriteFile(s.keyFile, []byte(keyring.New()), 0o600))
	}
	keys, err := keyring.Load(s.keyFile)
	f.must(err)
	f.source = caller.NewSource(ctx, log)
	callers, err := f.source.Load(s.callers, s.authentication)
	f.must(err)
	f.settings = service.Settings{
		Bots:   map[string]*dispatch.Company{"demo": company, "disabled": company, numberBot: company},
		Bounds: s.bounds, DrainTimeout: 3 * time.Second, Callers: callers,
	}
	if s.rival {
		id, err := f.ledger.Company(ctx, "rival")
		f.must(err)
		f.settings.Bots["rival-bot"] = &dispatch.Company{ID: id, Name: "rival", Client: client, Pace: s.pace, AttemptTimeout: s.attemptTimeout}
	}
	f.auditFile = filepath.Join(t.TempDir(), "audit.jsonl")
	if s.audit == (audit.Config{}) {
		s.audit.File = f.auditFile
	}
	audited, err := audit.Open(s.audit)
	f.must(err)
	server, err := service.New(service.Config{
		GRPCAddress: "127.0.0.1:0", HTTPAddress: "127.0.0.1:0", AdminAddress: "127.0.0.1:0", TLS: s.tls,
		Ledger: f.ledger, Connections: s.connections, Keys: keys, Logger: log, Telemetry: f.trace, Audit: audited, Settings: f.settings, Configuration: s.configuration,
	})
	f.must(err)
	f.server = server
	f.rest, f.grpcAddr, f.admin = "http://"+server.HTTPAddr().String(), server.GRPCAddr().String(), "http://"+server.AdminAddr().String()
	f.conn, err = grpc.NewClient(f.grpcAddr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithUnaryInterceptor(f.hearUnary), grpc.WithStreamInterceptor(f.hearStream))
	f.must(err)
	if s.tls != nil {
		f.rest = "https://" + server.HTTPAddr().String()
	}
	go func() { f.ended <- server.Run(ctx) }()
	t.Cleanup(func() {
		f.listenIn()
		f.must(f.conn.Close())
		stop()
		f.must(<-f.ended)
		f.checkInvariants()
		f.must(f.ledger.Close())
		client.Close()
		_ = f.trace.Close(context.Background()) // a test that looks at traces has closed it
		f.must(audited.Close())
		f.checkCanaries(s)
	})
	return f
}

func (f *facade) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

// checkInvariants is what must hold after every scenario.
func (f *facade) checkInvariants() {
	f.Helper()
	if err := f.ledger.CheckInvariant(context.Background()); err != nil {
		f.Error(err)
	}
	if r := f.sim.Report(); r.Duplicates != 0 {
		f.Errorf("the simulator saw %d sends twice: %+v", r.Duplicates, r.Doubled)
	}
}

// logBuffer keeps what is logged. Calls that were cut at the stop may still log when it is read.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// spanBuffer keeps the spans that have ended.
type spanBuffer struct {
	tracetest.InMemoryExporter
}

// Shutdown keeps them too.
func (*spanBuffer) Shutdown(context.Context) error { return nil }

func (b *spanBuffer) String() string {
	var all strings.Builder
	for _, s := range b.GetSpans() {
		fmt.Fprintf(&all, "%+v\n", s)
	}
	return all.String()
}

// scrape reads the metrics as Prometheus does.
func (f *facade) scrape() string {
	f.Helper()
	answer, err := http.Get(f.admin + "/metrics")
	f.must(err)
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	f.must(err)
	if answer.StatusCode != http.StatusOK {
		f.Fatalf("%s: %s", answer.Status, data)
	}
	return string(data)
}

// transport is a way to call the facade: every case runs over each.
type transport struct {
	name string
	call func(ctx context.Context, f *facade, method string, request, response proto.Message) (http.Header, error)
}

var transports = []transport{{"gRPC", overGRPC}, {"REST", overREST}}

// onEach runs a case over every transport, beside each other: they wait more than they compute.
func onEach(t *testing.T, run func(t *testing.T, tr transport)) {
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			t.Parallel()
			run(t, tr)
		})
	}
}

func overGRPC(ctx context.Context, f *facade, method string, request, response proto.Message) (http.Header, error) {
	var md metadata.MD
	err := f.conn.Invoke(ctx, "/jelou.facade.v1."+method, request, response, grpc.Header(&md))
	h := http.Header{}
	for name, values := range md {
		for _, v := range values {
			h.Add(name, v)
		}
	}
	return h, err
}

// overREST calls by the method's HTTP annotation, as any REST client would.
func overREST(ctx context.Context, f *facade, method string, request, response proto.Message) (http.Header, error) {
	return overRESTWith(ctx, f, method, request, response, nil)
}

// overRESTWith is overREST with more headers.
func overRESTWith(ctx context.Context, f *facade, method string, request, response proto.Message, headers http.Header) (http.Header, error) {
	verb, path, body := restRequest(f, method, request)
	r, err := http.NewRequestWithContext(ctx, verb, f.rest+path, bytes.NewReader(body))
	f.must(err)
	for name, values := range headers {
		r.Header[name] = values
	}
	if len(body) > 0 {
		r.Header.Set("Content-Type", "application/json")
	}
	if deadline, ok := ctx.Deadline(); ok {
		r.Header.Set("Grpc-Timeout", fmt.Sprintf("%dm", time.Until(deadline).Milliseconds()))
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	f.must(err)
	if answer.StatusCode == http.StatusOK {
		f.must(protojson.Unmarshal(data, response))
		f.hear(response, nil)
		return answer.Header, nil
	}
	st := restStatus(f, data)
	if got := answer.StatusCode; got != restCode(data) {
		f.Errorf("HTTP status %d and error.code %d differ", got, restCode(data))
	}
	answer.Header.Set("Test-Http-Status", fmt.Sprint(answer.StatusCode))
	return answer.Header, st.Err()
}

func restRequest(f *facade, method string, request proto.Message) (verb, path string, body []byte) {
	f.Helper()
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName("jelou.facade.v1." + strings.Replace(method, "/", ".", 1)))
	f.must(err)
	rule := proto.GetExtension(d.Options(), annotations.E_Http).(*annotations.HttpRule)
	verb, path = http.MethodPost, rule.GetPost()
	if path == "" {
		verb, path = http.MethodGet, rule.GetGet()
	}
	rest := proto.Clone(request).ProtoReflect()
	fields := rest.Descriptor().Fields()
	for i := range fields.Len() {
		name := "{" + string(fields.Get(i).Name()) + "}"
		if strings.Contains(path, name) {
			path = strings.Replace(path, name, url.PathEscape(rest.Get(fields.Get(i)).String()), 1)
			rest.Clear(fields.Get(i))
		}
	}
	if verb == http.MethodPost {
		body, err = protojson.MarshalOptions{UseProtoNames: true}.Marshal(rest.Interface())
		f.must(err)
		return verb, path, body
	}
	query := url.Values{}
	rest.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsList():
			for i := range v.List().Len() {
				query.Add(string(fd.Name()), fmt.Sprint(v.List().Get(i).Interface()))
			}
		case fd.IsMap():
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				query.Add(fmt.Sprintf("%s[%s]", fd.Name(), k.String()), v.String())
				return true
			})
		case fd.Message() != nil: // a time
			text, err := protojson.Marshal(v.Message().Interface())
			f.must(err)
			query.Set(string(fd.Name()), strings.Trim(string(text), `"`))
		default:
			query.Set(string(fd.Name()), fmt.Sprint(v.Interface()))
		}
		return true
	})
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	return verb, path, nil
}

// restErrorShape is AIP-193's.
type restErrorShape struct {
	Error struct {
		Code    int
		Status  string
		Message string
		Details []json.RawMessage
	}
}

func restCode(data []byte) int {
	var shape restErrorShape
	_ = json.Unmarshal(data, &shape)
	return shape.Error.Code
}

// restStatus reads an error's body back into a status, strictly.
func restStatus(f *facade, data []byte) *status.Status {
	f.Helper()
	_, _ = f.answers.Write(data)
	var shape restErrorShape
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&shape); err != nil {
		f.Fatalf("%v: no error of AIP-193's shape: %s", err, data)
	}
	var code codes.Code
	f.must(code.UnmarshalJSON([]byte(`"` + shape.Error.Status + `"`)))
	st := status.New(code, shape.Error.Message)
	for _, raw := range shape.Error.Details {
		for _, m := range []proto.Message{&errdetails.ErrorInfo{}, &errdetails.RetryInfo{}, &errdetails.BadRequest{}, &errdetails.QuotaFailure{}} {
			var fields map[string]json.RawMessage
			f.must(json.Unmarshal(raw, &fields))
			if string(fields["@type"]) != `"type.googleapis.com/`+string(m.ProtoReflect().Descriptor().FullName())+`"` {
				continue
			}
			delete(fields, "@type")
			plain, err := json.Marshal(fields)
			f.must(err)
			f.must(protojson.Unmarshal(plain, m))
			st, err = st.WithDetails(protoadapt.MessageV1Of(m))
			f.must(err)
		}
	}
	return st
}

func reasonOf(err error) string {
	info := detailOf[*errdetails.ErrorInfo](err)
	return info.GetReason()
}

func detailOf[T any](err error) (found T) {
	for _, d := range status.Convert(err).Details() {
		if t, ok := d.(T); ok {
			return t
		}
	}
	return found
}

// textTo is a request for a text to a user.
func textTo(user, text string) *facadev1.SendMessageRequest {
	return &facadev1.SendMessageRequest{BotId: "demo", UserId: user, Message: &facadev1.Message{Content: &facadev1.Message_Text{Text: &facadev1.TextContent{Text: said(text)}}}}
}

// said is a text with the canary that every text of these tests has; a blank one stays blank.
func said(text string) string {
	if strings.TrimSpace(text) == "" {
		return text
	}
	return text + " " + canary.Word
}

const (
	openUser   = canary.Number + "00001"
	secondUser = canary.Number + "00002"
	numberBot  = "+" + canary.Bot + "00001" // which Jelou does not know
)

// sendText sends a text and returns what came.
func (f *facade) sendText(tr transport, r *facadev1.SendMessageRequest) (*facadev1.Send, http.Header, error) {
	f.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	response := &facadev1.SendMessageResponse{}
	h, err := tr.call(ctx, f, "MessageService/SendMessage", r, response)
	return response.Send, h, err
}
