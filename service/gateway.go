package service

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/textproto"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/swaggest/swgui"
	"github.com/swaggest/swgui/v5emb"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"

	_ "embed"
)

// Names of headers, in the lower case of gRPC metadata.
const (
	headerRequestID       = "x-request-id"
	headerTraceparent     = "traceparent"
	headerIdempotencyKey  = "idempotency-key"
	headerRateLimit       = "ratelimit"
	headerRateLimitPolicy = "ratelimit-policy"
)

// restTimeout is how long a REST call waits that does not say so by Grpc-Timeout.
const restTimeout = 30 * time.Second

// headersIn are the headers that reach a method. What gRPC needs no name for (Grpc-Timeout) is read by the gateway.
var headersIn = map[string]bool{
	headerAuthorization: true, headerAPIKey: true, headerIdempotencyKey: true, "traceparent": true, "tracestate": true,
	headerRequestID: true, "last-event-id": true, "x-envoy-attempt-count": true,
}

// headersOut are the headers that leave, beside X-Request-Id.
var headersOut = map[string]string{
	headerRateLimit: "RateLimit", headerRateLimitPolicy: "RateLimit-Policy",
}

//go:embed openapi.json
var openAPI []byte

// pages are what the REST side has beside the API, by pattern.
type pages map[string]http.HandlerFunc

// The gateway keeps the parser of queries for the whole process, whatever the option looks like: it is set before there is a server.
func init() { runtime.NewServeMux(runtime.SetQueryParameterParser(&strictQuery{})) }

// newGateway makes the REST side: the generated routes over the in-process connection, so that every interceptor holds
// for REST too, with the contract of docs/rest.md around them.
func newGateway(ctx context.Context, conn grpc.ClientConnInterface, d *doors, others pages) (http.Handler, error) {
	mux := runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, jsonMarshaler{}),
		runtime.WithIncomingHeaderMatcher(func(name string) (string, bool) {
			name = strings.ToLower(name)
			return name, headersIn[name]
		}),
		runtime.WithOutgoingHeaderMatcher(func(name string) (string, bool) {
			out, ok := headersOut[name]
			return out, ok
		}),
		runtime.WithErrorHandler(func(ctx context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, err error) {
			if md, ok := runtime.ServerMetadataFromContext(ctx); ok {
				copyHeaders(w.Header(), md.HeaderMD)
			}
			writeError(w, gatewayStatus(r, err))
		}),
		runtime.WithRoutingErrorHandler(func(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, code int) {
			writeRoutingError(w, r, code)
		}),
		runtime.WithMiddlewares(strictMethod, d.knocked, strictRequest),
	)
	for _, register := range []func(context.Context, *runtime.ServeMux, grpc.ClientConnInterface) error{
		registerClient(facadev1.RegisterMessageServiceHandlerClient, facadev1.NewMessageServiceClient),
		registerClient(facadev1.RegisterNotificationServiceHandlerClient, facadev1.NewNotificationServiceClient),
		registerClient(facadev1.RegisterSendServiceHandlerClient, facadev1.NewSendServiceClient),
		registerClient(facadev1.RegisterBatchServiceHandlerClient, facadev1.NewBatchServiceClient),
		registerClient(facadev1.RegisterCapacityServiceHandlerClient, facadev1.NewCapacityServiceClient),
	} {
		if err := register(ctx, mux, conn); err != nil {
			return nil, err
		}
	}
	if err := registerStreams(mux, conn); err != nil {
		return nil, err
	}
	root := http.NewServeMux()
	root.Handle("/", mux)
	root.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(openAPI) // a client that left
	})
	// Swagger UI prints extensions as one heap of text, and x-examples is a page of it.
	page := v5emb.NewWithConfig(swgui.Config{SettingsUI: map[string]string{"showExtensions": "false"}})
	root.Handle("GET /docs/", page("jelou-facade", "/openapi.json", "/docs/"))
	root.Handle("GET /docs", http.RedirectHandler("/docs/", http.StatusMovedPermanently))
	for pattern, page := range others {
		root.HandleFunc(pattern, page)
	}
	bounded := http.MaxBytesHandler(root, maxRequestBytes)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if isStream(r) { // its lines are bounded one by one
			root.ServeHTTP(w, r)
			return
		}
		bounded.ServeHTTP(w, r)
	}), nil
}

// isStream reports whether a request is for a route that streams.
func isStream(r *http.Request) bool {
	return strings.HasSuffix(r.URL.Path, ":stream") || strings.HasSuffix(r.URL.Path, ":watch")
}

// knocked looks at who calls a route before its body is read. Of a request that is refused nothing more is looked at: its method's
// guard says so.
func (d *doors) knocked(next runtime.HandlerFunc) runtime.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request, path map[string]string) {
		e := d.lookHTTP(r)
		if a := answerOf(r.Context()); a != nil {
			a.visit = e.visit
		}
		r = r.WithContext(context.WithValue(r.Context(), entryKey{}, e))
		if e.refused() {
			if r.ProtoMajor == 1 && r.ContentLength != 0 {
				w.Header().Set("Connection", "close") // or net/http would wait for the body before it answers
			}
			at := *r.URL
			at.RawQuery = ""
			r.URL, r.Body, r.ContentLength = &at, http.NoBody, 0
			r.Header.Del("Grpc-Timeout")
		}
		next(w, r, path)
	}
}

// registerClient fits a generated registration and its client constructor to a connection.
func registerClient[C any](register func(context.Context, *runtime.ServeMux, C) error, client func(grpc.ClientConnInterface) C) func(context.Context, *runtime.ServeMux, grpc.ClientConnInterface) error {
	return func(ctx context.Context, mux *runtime.ServeMux, conn grpc.ClientConnInterface) error {
		return register(ctx, mux, client(conn))
	}
}

// jsonMarshaler is JSON as docs/rest.md promises it: snake_case names, zero values written, absent messages not;
// strict reading, and errors that name the place and never the value.
type jsonMarshaler struct{}

var (
	jsonOut = protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}
	jsonIn  = protojson.UnmarshalOptions{}
)

func (jsonMarshaler) ContentType(any) string { return "application/json" }

func (jsonMarshaler) Marshal(v any) ([]byte, error) {
	if m, ok := v.(proto.Message); ok {
		return jsonOut.Marshal(m)
	}
	return json.Marshal(v)
}

func (jsonMarshaler) Unmarshal(data []byte, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return json.Unmarshal(data, v)
	}
	if err := jsonIn.Unmarshal(data, m); err != nil {
		return carried{jsonFault(data, err)}
	}
	return nil
}

func (m jsonMarshaler) NewDecoder(r io.Reader) runtime.Decoder {
	return runtime.DecoderFunc(func(v any) error {
		data, err := io.ReadAll(r) // at most maxRequestBytes, by http.MaxBytesHandler
		if err != nil {
			return carried{bodyFault(err)}
		}
		if len(bytes.TrimSpace(data)) == 0 {
			return io.EOF // the gateway takes it for an empty message
		}
		return m.Unmarshal(data, v)
	})
}

func (m jsonMarshaler) NewEncoder(w io.Writer) runtime.Encoder {
	return runtime.EncoderFunc(func(v any) error {
		data, err := m.Marshal(v)
		if err == nil {
			_, err = w.Write(data)
		}
		return err
	})
}

// carried is a fault on its way through the generated code, which keeps nothing of an error but its text.
type carried struct{ *fault }

const carriedPrefix = "\x00fault:"

func (c carried) Error() string {
	data, err := proto.Marshal(c.GRPCStatus().Proto())
	if err != nil { // cannot happen: strings of ours are UTF-8
		return c.fault.Error()
	}
	return carriedPrefix + base64.StdEncoding.EncodeToString(data)
}

// carriedStatus is the status of a fault that went through the generated code, or nil.
func carriedStatus(text string) *status.Status {
	encoded, ok := strings.CutPrefix(text, carriedPrefix)
	if !ok {
		return nil
	}
	var st spb.Status
	data, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil || proto.Unmarshal(data, &st) != nil {
		return nil
	}
	return status.FromProto(&st)
}

// strictRequest holds what the generated routes let through: a Content-Type other than JSON, query parameters beside a
// body, a path field that the body contradicts; and bounds the wait.
func strictRequest(next runtime.HandlerFunc) runtime.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request, path map[string]string) {
		if isStream(r) {
			next(w, r, path)
			return
		}
		if r.Method == http.MethodPost {
			f := checkBody(r, path)
			bodyHere(w, r)
			if f != nil {
				writeError(w, f.GRPCStatus())
				return
			}
		}
		if r.Header.Get("Grpc-Timeout") == "" {
			ctx, cancel := context.WithTimeout(r.Context(), restTimeout)
			defer cancel()
			r = r.WithContext(ctx)
		}
		next(w, r, path)
	}
}

func checkBody(r *http.Request, path map[string]string) *fault {
	if r.URL.RawQuery != "" {
		return newFault(facadev1.ErrorReason_INVALID_FIELD, "this route takes no query parameters; put the fields into the JSON body")
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return bodyFault(err)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	if len(bytes.TrimSpace(body)) == 0 {
		return nil
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return newFault(facadev1.ErrorReason_INVALID_JSON, "Content-Type: must be application/json")
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(body, &fields) != nil {
		return nil // the decoder says it better
	}
	for name, inPath := range path {
		for _, spelling := range []string{name, camelCase(name)} {
			var inBody string
			if raw, ok := fields[spelling]; ok && (json.Unmarshal(raw, &inBody) != nil || inBody != inPath) {
				return invalidField(name, "the body has another value than the path; leave it out of the body")
			}
		}
	}
	return nil
}

// camelCase is the lowerCamelCase spelling of a proto field's name.
func camelCase(name string) string {
	parts := strings.Split(name, "_")
	for i, p := range parts[1:] {
		parts[i+1] = strings.ToUpper(p[:1]) + p[1:]
	}
	return strings.Join(parts, "")
}

// bodyFault is why a body could not be read.
func bodyFault(err error) *fault {
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return newFault(facadev1.ErrorReason_REQUEST_TOO_LARGE, "the body is larger than %d MiB; send fewer items at once", maxRequestBytes>>20)
	}
	return newFault(facadev1.ErrorReason_INVALID_JSON, "the body could not be read to its end").because(err)
}

// strictMethod tells a wrong method where the router takes what stands behind the colon for a part of an id: GET /v1/sends/s-9KD:cancel.
func strictMethod(next runtime.HandlerFunc) runtime.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request, path map[string]string) {
		if strings.Contains(r.URL.Path, ":") && !slices.Contains(methodsOf(r.URL.Path), r.Method) {
			writeRoutingError(w, r, http.StatusMethodNotAllowed)
			return
		}
		next(w, r, path)
	}
}

// writeRoutingError answers what the router found.
func writeRoutingError(w http.ResponseWriter, r *http.Request, code int) {
	if code == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", strings.Join(methodsOf(r.URL.Path), ", "))
	}
	writeError(w, routingFault(r, code).GRPCStatus())
}

// methodsOf are the methods of the route that a path is of: of a route with a verb, such as :cancel, before one that would have the
// verb in an id.
func methodsOf(path string) (methods []string) {
	verb := false
	for _, route := range routes() {
		if !route.path.MatchString(path) {
			continue
		}
		if route.verb && !verb {
			verb, methods = true, nil
		}
		if route.verb == verb {
			methods = append(methods, route.method)
		}
	}
	return methods
}

// A route is one of the protos' HTTP rules.
type route struct {
	method string
	path   *regexp.Regexp
	verb   bool
}

var pathField = regexp.MustCompile(`\\{[a-z_]+\\}`)

// routes are all routes of the API. The router keeps its own to itself.
var routes = sync.OnceValue(func() (all []route) {
	protoregistry.GlobalFiles.RangeFilesByPackage(facadev1.File_jelou_facade_v1_send_service_proto.Package(), func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				rule := proto.GetExtension(methods.Get(j).Options(), annotations.E_Http).(*annotations.HttpRule)
				for _, rule := range append([]*annotations.HttpRule{rule}, rule.GetAdditionalBindings()...) {
					method, template := http.MethodGet, rule.GetGet()
					if template == "" {
						method, template = http.MethodPost, rule.GetPost()
					}
					path := pathField.ReplaceAllString(regexp.QuoteMeta(template), "[^/]+")
					all = append(all, route{method, regexp.MustCompile("^" + path + "$"), strings.Contains(template, ":")})
				}
			}
		}
		return true
	})
	return all
})

// routingFault is what the router found.
func routingFault(r *http.Request, code int) *fault {
	switch code {
	case http.StatusMethodNotAllowed:
		return newFault(facadev1.ErrorReason_METHOD_NOT_ALLOWED, "this route has no method %s; /openapi.json lists them", safeMethod(r.Method))
	case http.StatusNotFound:
		return newFault(facadev1.ErrorReason_ROUTE_NOT_FOUND, "no such route; /openapi.json lists them")
	}
	return newFault(facadev1.ErrorReason_INVALID_JSON, "the request's path or body is malformed")
}

func safeMethod(m string) string {
	if len(m) > 16 || strings.ToUpper(m) != m {
		return "of this name"
	}
	return m
}

// gatewayStatus is the status of an error that a method returned or that the gateway found by itself.
func gatewayStatus(r *http.Request, err error) *status.Status {
	if he, ok := errors.AsType[*runtime.HTTPStatusError](err); ok {
		return routingFault(r, he.HTTPStatus).GRPCStatus()
	}
	st, ok := status.FromError(err)
	switch {
	case ok && errorInfo(st) != nil:
		return st
	case ok && carriedStatus(st.Message()) != nil:
		return carriedStatus(st.Message())
	case ok && st.Code() == codes.InvalidArgument:
		// The generated code wraps what the decoder or the query parser said into a bare InvalidArgument.
		return newFault(facadev1.ErrorReason_INVALID_JSON, "the request is malformed; /openapi.json describes it").GRPCStatus()
	case ok && st.Code() == codes.DeadlineExceeded:
		return toStatus(context.DeadlineExceeded)
	case ok && st.Code() == codes.Canceled:
		return toStatus(context.Canceled)
	}
	return toStatus(err)
}

// restError is the body of an error, in AIP-193's shape.
type restError struct {
	Error restErrorBody `json:"error"`
}

type restErrorBody struct {
	Code    int               `json:"code"`
	Status  string            `json:"status"`
	Message string            `json:"message"`
	Details []json.RawMessage `json:"details"`
}

// errorBody writes a status in AIP-193's shape.
func errorBody(st *status.Status) []byte {
	body := restErrorBody{Code: httpStatus(st), Status: codeNames[st.Code()], Message: st.Message(), Details: []json.RawMessage{}}
	for _, d := range st.Proto().Details {
		if data, err := jsonOut.Marshal(d); err == nil {
			body.Details = append(body.Details, data)
		}
	}
	data, err := json.Marshal(restError{body})
	if err != nil { // cannot happen: strings, numbers and JSON that was just written
		return []byte(`{"error":{"code":500,"status":"INTERNAL","message":"internal error","details":[]}}`)
	}
	return data
}

// codeNames are the names of gRPC's codes as AIP-193 writes them.
var codeNames = map[codes.Code]string{
	codes.OK: "OK", codes.Canceled: "CANCELLED", codes.Unknown: "UNKNOWN", codes.InvalidArgument: "INVALID_ARGUMENT",
	codes.DeadlineExceeded: "DEADLINE_EXCEEDED", codes.NotFound: "NOT_FOUND", codes.AlreadyExists: "ALREADY_EXISTS",
	codes.PermissionDenied: "PERMISSION_DENIED", codes.ResourceExhausted: "RESOURCE_EXHAUSTED",
	codes.FailedPrecondition: "FAILED_PRECONDITION", codes.Aborted: "ABORTED", codes.OutOfRange: "OUT_OF_RANGE",
	codes.Unimplemented: "UNIMPLEMENTED", codes.Internal: "INTERNAL", codes.Unavailable: "UNAVAILABLE",
	codes.DataLoss: "DATA_LOSS", codes.Unauthenticated: "UNAUTHENTICATED",
}

// writeError answers a status as REST.
func writeError(w http.ResponseWriter, st *status.Status) {
	noteStatus(w, st)
	h := w.Header()
	h.Set("Content-Type", "application/json")
	if info := detail[*errdetails.RetryInfo](st); info != nil {
		h.Set("Retry-After", strconv.FormatInt(wholeSeconds(info.RetryDelay.AsDuration()), 10))
	}
	if st.Code() == codes.Unauthenticated && errorInfo(st).GetDomain() == domainFacade {
		h.Set("WWW-Authenticate", "Bearer")
	}
	w.WriteHeader(httpStatus(st))
	_, _ = w.Write(errorBody(st)) // a client that left
}

// wholeSeconds rounds up: who comes back a second early is refused again.
func wholeSeconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

func copyHeaders(h http.Header, md metadata.MD) {
	for name, values := range md {
		if out, ok := headersOut[name]; ok {
			h[textproto.CanonicalMIMEHeaderKey(out)] = values
		}
	}
}
