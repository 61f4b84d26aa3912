package service

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"buf.build/go/protovalidate"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelou"
	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/telemetry"
)

// serverStream lets a method set headers without a transport.
type serverStream struct{}

func (serverStream) Method() string               { return "/test" }
func (serverStream) SetHeader(metadata.MD) error  { return nil }
func (serverStream) SendHeader(metadata.MD) error { return nil }
func (serverStream) SetTrailer(metadata.MD) error { return nil }

// TestPanic: a panic is INTERNAL to the caller and one line in the log, without what was sent.
func TestPanic(t *testing.T) {
	validator, err := protovalidate.New()
	if err != nil {
		t.Fatal(err)
	}
	var logs strings.Builder
	g := &guard{log: slog.New(slog.NewTextHandler(&logs, nil)), doors: newDoors(Config{}), validator: validator, metrics: newCallMetrics((&telemetry.Telemetry{}).Meter()), tracer: (&telemetry.Telemetry{}).Tracer()}
	ctx := grpc.NewContextWithServerTransportStream(context.Background(), serverStream{})
	_, err = g.Unary(ctx, &facadev1.GetSendRequest{SendId: "s1"}, &grpc.UnaryServerInfo{FullMethod: "/test"},
		func(context.Context, any) (any, error) { panic("593991234567") })
	if status.Code(err) != codes.Internal || errorInfo(status.Convert(err)).GetReason() != "INTERNAL" {
		t.Errorf("error: %v", err)
	}
	for _, text := range []string{logs.String(), fmt.Sprint(status.Convert(err).Proto())} {
		if strings.Contains(text, "593991234567") {
			t.Errorf("the panic's value is quoted: %s", text)
		}
	}
	if !strings.Contains(logs.String(), "guard_test.go") {
		t.Errorf("the log has no stack: %s", logs.String())
	}
}

// TestPanicsOverHTTP: a panic outside of the methods is INTERNAL to the client, or the end of its connection where an answer had
// begun; it is told and counted, and its value is nowhere.
func TestPanicsOverHTTP(t *testing.T) {
	const private = "593991234567"
	for _, test := range []struct {
		name     string
		handler  http.HandlerFunc
		answered bool
		told     bool
	}{
		{"nothing written", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "7")
			panic(private)
		}, true, true},
		{"written", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte("half"))
			panic(errors.New(private))
		}, false, true},
		{"flushed", func(w http.ResponseWriter, _ *http.Request) {
			_ = http.NewResponseController(w).Flush()
			panic(private)
		}, false, true},
		{"on purpose", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, false, false},
	} {
		for _, over := range []transport{overREST, overAdmin} {
			t.Run(test.name+", "+string(over), func(t *testing.T) {
				measured, err := telemetry.Open(t.Context(), telemetry.Config{Version: "test"})
				if err != nil {
					t.Fatal(err)
				}
				var logs strings.Builder
				log := slog.New(slog.NewTextHandler(&logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
				g := &guard{log: log, transport: over, metrics: newCallMetrics(measured.Meter())}
				handler := g.requests(patient(test.handler))
				if over == overAdmin {
					handler = g.recovering(test.handler)
				}
				server := httptest.NewUnstartedServer(handler)
				server.Config.ErrorLog = slog.NewLogLogger(log.Handler(), slog.LevelDebug)
				server.Start()
				answer, err := http.Get(server.URL)
				var body []byte
				if err == nil {
					body, err = io.ReadAll(answer.Body)
					_ = answer.Body.Close()
				}
				server.Close() // the handler has ended
				if (err == nil) != test.answered {
					t.Errorf("got %q, %v", body, err)
				}
				var shape restError
				if test.answered && (answer.StatusCode != http.StatusInternalServerError || json.Unmarshal(body, &shape) != nil || shape.Error.Status != "INTERNAL" || !strings.Contains(string(body), `"reason":"INTERNAL"`)) {
					t.Errorf("%s: %s", answer.Status, body)
				}
				scraped := httptest.NewRecorder()
				measured.Handler().ServeHTTP(scraped, httptest.NewRequest(http.MethodGet, "/metrics", nil))
				if counted := strings.Contains(scraped.Body.String(), `jelou_call_errors_total{caller="none",reason="INTERNAL"} 1`); counted != test.told {
					t.Errorf("counted: %v", counted)
				}
				if told := strings.Count(logs.String(), "level=ERROR") == 1 && strings.Contains(logs.String(), "guard_test.go"); told != test.told {
					t.Errorf("the log has it: %v", told)
				}
				if strings.Contains(logs.String()+string(body), private) {
					t.Errorf("the panic's value is quoted: %s", logs.String())
				}
			})
		}
	}
}

// TestFaults: what methods return is told by its row of the table.
func TestFaults(t *testing.T) {
	for err, reason := range map[error]string{
		ledger.ErrCursorExpired: "CURSOR_EXPIRED",
		ledger.ErrUnavailable:   "LEDGER_UNAVAILABLE",
		ledger.ErrUncertain:     "OUTCOME_UNKNOWN",
		// What may have been done is unknown, whatever kept it from being found out.
		errors.Join(ledger.ErrUncertain, ledger.ErrUnavailable):                                           "OUTCOME_UNKNOWN",
		fmt.Errorf("%w: the replay goes on by itself: %w", ledger.ErrUncertain, context.DeadlineExceeded): "OUTCOME_UNKNOWN",
		ledger.ErrNothingToReplay:                         "NOTHING_TO_REPLAY",
		status.Error(codes.Unimplemented, "not there"):    "NOT_BUILT_YET",
		context.DeadlineExceeded:                          "EXPIRED",
		haltFault(ledger.Halt{Held: true}):                "LEDGER_HELD",
		haltFault(ledger.Halt{Held: true, Rewound: true}): "LEDGER_REWOUND",
		errors.New("anything"):                            "INTERNAL",
	} {
		st := toStatus(fmt.Errorf("somewhere: %w", err))
		if got := errorInfo(st).GetReason(); got != reason || st.Code() != meanings[facadev1.ErrorReason(facadev1.ErrorReason_value[reason])].code {
			t.Errorf("%v is told as %s %s, want %s", err, st.Code(), got, reason)
		}
	}
}

// TestDetailsAreBounded: more details than clients can take are cut.
func TestDetailsAreBounded(t *testing.T) {
	f := invalidField("field", "%s", strings.Repeat("é", 5000))
	for range 1000 {
		f.fields = append(f.fields, &errdetails.BadRequest_FieldViolation{Field: strings.Repeat("f", 100), Description: strings.Repeat("d", 100)})
	}
	st := f.GRPCStatus()
	if n := proto.Size(st.Proto()); n > 6<<10 {
		t.Errorf("%d bytes", n)
	}
	if n := len(detail[*errdetails.BadRequest](st).FieldViolations); n == 0 || n > maxFieldViolations {
		t.Errorf("%d violations", n)
	}
}

// FuzzStatus: whatever error a method returns, the caller gets an error of the table, within the bounds.
func FuzzStatus(f *testing.F) {
	for i := range table {
		f.Add(i, "text", "code", 404, 3)
	}
	f.Add(-1, "", "", 0, 0)
	f.Fuzz(func(t *testing.T, reason int, text, code string, httpCode, kind int) {
		var err error
		switch kind & 3 {
		case 0:
			err = newFault(facadev1.ErrorReason(reason), "%s", text).with("jelou_code", code)
		case 1:
			err = fmt.Errorf("%s: %w", text, &jelou.Error{Reason: facadev1.ErrorReason(reason), Status: httpCode, Code: code, Message: text, Outcome: jelou.Outcome(kind)})
		case 2:
			err = status.Error(codes.Code(uint32(httpCode)%20+1), text)
		default:
			err = errors.New(text)
		}
		st := toStatus(err)
		if st.Code() == codes.OK {
			t.Fatalf("%v became OK", err)
		}
		info := errorInfo(st)
		if _, known := facadev1.ErrorReason_value[info.GetReason()]; !known || info.GetDomain() == "" {
			t.Fatalf("%v has no reason: %v", err, st.Proto())
		}
		if c := httpStatus(st); c < 400 || c > 599 {
			t.Fatalf("%v became HTTP %d", err, c)
		}
		if data, err := proto.Marshal(st.Proto()); err != nil || len(data) > 8<<10 {
			t.Fatalf("%d bytes of details: %v", len(data), err)
		}
	})
}

// TestErrorsInOpenAPI holds the document's responses to the table: each reason stands at its status.
func TestErrorsInOpenAPI(t *testing.T) {
	var document struct {
		Responses map[string]struct{ Description string }
	}
	if err := json.Unmarshal(openAPI, &document); err != nil {
		t.Fatal(err)
	}
	ofNoOperation := []int{http.StatusMethodNotAllowed, http.StatusNotImplemented}
	for _, row := range table {
		code := httpStatus((&fault{reason: row.reason}).GRPCStatus())
		words := strings.FieldsFunc(document.Responses[strconv.Itoa(code)].Description, func(r rune) bool { return r != '_' && !unicode.IsLetter(r) })
		if !slices.Contains(words, row.reason.String()) && !slices.Contains(ofNoOperation, code) {
			t.Errorf("openapi.json does not have %s among the errors with status %d", row.reason, code)
		}
	}
}

var update = flag.Bool("update", false, "write the generated documents anew")

// TestErrorDocs holds docs/errors.md to the table.
func TestErrorDocs(t *testing.T) {
	var b strings.Builder
	b.WriteString(`# Errors

Made from the table in service/status.go by ` + "`go test ./service -run TestErrorDocs -update`" + `; the tests walk its rows through gRPC and REST.

Every error carries google.rpc.ErrorInfo with the reason below, the domain of who said it (` + "`api.jelou.ai`" + ` or ` + "`jelou-facade`" + `), and metadata:
` + "`send_id`, `batch_id`, `jelou_code`, `jelou_status`" + ` where they exist. BadRequest names the fields, at most 20. RetryInfo stands where a retry helps, and only there;
retry only with a request_id. UNAVAILABLE means that nothing was sent: but a broken connection looks the same to a client.

| reason | when | gRPC | HTTP | domain | retry | what becomes of the send |
|---|---|---|---|---|---|---|
`)
	for _, row := range table {
		retry := "no"
		if row.retry {
			retry = "yes"
		}
		st := (&fault{reason: row.reason}).GRPCStatus()
		fmt.Fprintf(&b, "| %s | %s | %s | %d | %s | %s | %s |\n", row.reason, row.cause, codeNames[row.code], httpStatus(st), row.domain, retry, row.ledger)
	}
	b.WriteString("\nUPSTREAM_REFUSED has the gRPC code that fits Jelou's HTTP status; the one in the table is that of a failure inside HTTP 200.\n")
	const path = "../docs/errors.md"
	if *update {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(path)
	if err != nil || string(have) != b.String() {
		t.Errorf("docs/errors.md is not what the table says: go test ./service -run TestErrorDocs -update (%v)", err)
	}
}

// TestTableIsWhole: every reason of the API has its row.
func TestTableIsWhole(t *testing.T) {
	for number, name := range facadev1.ErrorReason_name {
		if _, ok := meanings[facadev1.ErrorReason(number)]; !ok && number != 0 {
			t.Errorf("%s has no row", name)
		}
	}
}

// TestContentHash: equal contents have equal hashes however a map is ordered, other contents others.
func TestContentHash(t *testing.T) {
	item := func(text string) *facadev1.BatchItem {
		return &facadev1.BatchItem{UserId: "593991234567", Content: &facadev1.BatchItem_Message{Message: &facadev1.Message{Content: &facadev1.Message_Text{Text: &facadev1.TextContent{Text: text}}}}}
	}
	same := string(contentHash("demo", item("hola")))
	for name, other := range map[string][]byte{
		"text": contentHash("demo", item("adiós")),
		"bot":  contentHash("other", item("hola")),
		"user": contentHash("demo", &facadev1.BatchItem{UserId: "593991234568", Content: item("hola").Content}),
	} {
		if string(other) == same {
			t.Errorf("another %s has the same hash", name)
		}
	}
	if string(contentHash("demo", &facadev1.BatchItem{Sequence: 7, RequestId: "x", UserId: "593991234567", Content: item("hola").Content, Options: &facadev1.SendOptions{Lane: facadev1.SendOptions_URGENT}})) != same {
		t.Error("options changed the hash")
	}
}

// TestChanging: what is not read by GET is a change, in every service.
func TestChanging(t *testing.T) {
	known := 0
	protoregistry.GlobalFiles.RangeFilesByPackage("jelou.facade.v1", func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				m := methods.Get(j)
				rule := proto.GetExtension(m.Options(), annotations.E_Http).(*annotations.HttpRule)
				name := fmt.Sprintf("/%s/%s", file.Services().Get(i).FullName(), m.Name())
				if changes := rule.GetGet() == ""; changes != changing[name] {
					t.Errorf("%s: the audit log takes it for a change: %v", name, changing[name])
				}
				known++
			}
		}
		return true
	})
	if known == 0 {
		t.Error("no methods")
	}
}
