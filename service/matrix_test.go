package service_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/timestamppb"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/caller"
	"github.com/jelou-facade/jelou-facade/service/ledger"
)

// authority signs certificates.
type authority struct {
	*testing.T
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pool        *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{T: t, key: key, pool: x509.NewCertPool()}
	a.certificate = a.sign(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotAfter: time.Now().Add(time.Hour)}, key).Leaf
	a.pool.AddCert(a.certificate)
	return a
}

// sign makes a certificate of a template; for the authority's own key its own.
func (a *authority) sign(template *x509.Certificate, key *ecdsa.PrivateKey) tls.Certificate {
	a.Helper()
	template.SerialNumber, template.NotBefore = big.NewInt(time.Now().UnixNano()), time.Now().Add(-24*time.Hour)
	parent := a.certificate
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), a.key)
	if err != nil {
		a.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		a.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// client is a client's certificate for a URI.
func (a *authority) client(name string, notAfter time.Time) tls.Certificate {
	a.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.Fatal(err)
	}
	uri, err := url.Parse(name)
	if err != nil {
		a.Fatal(err)
	}
	return a.sign(&x509.Certificate{URIs: []*url.URL{uri}, NotAfter: notAfter, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, key)
}

// server is TLS as the listeners speak it.
func (a *authority) server() *tls.Config {
	a.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.Fatal(err)
	}
	own := a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "facade"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, key)
	return &tls.Config{
		Certificates: []tls.Certificate{own}, ClientCAs: a.pool, ClientAuth: tls.VerifyClientCertIfGiven,
		NextProtos: []string{"h2", "http/1.1"}, MinVersion: tls.VersionTLS12,
	}
}

// issuer signs JWTs.
type issuer struct {
	*testing.T
	name string
	key  *ecdsa.PrivateKey
	path string // of its public keys
	url  string // the same
}

func newIssuer(t *testing.T, name string) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := jwkset.NewJWKFromKey(key.Public(), jwkset.JWKOptions{Metadata: jwkset.JWKMetadataOptions{KID: "one"}})
	if err != nil {
		t.Fatal(err)
	}
	set := jwkset.NewMemoryStorage()
	if err := set.KeyWrite(t.Context(), public); err != nil {
		t.Fatal(err)
	}
	data, err := set.JSONPublic(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(data) }))
	t.Cleanup(site.Close)
	i := &issuer{T: t, name: name, key: key, path: filepath.Join(t.TempDir(), "jwks.json"), url: site.URL}
	if err := os.WriteFile(i.path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return i
}

func (i *issuer) token(subject string, expires time.Time) string {
	i.Helper()
	token := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{"iss": i.name, "aud": "facade", "sub": subject, "exp": expires.Unix()})
	token.Header["kid"] = "one"
	text, err := token.SignedString(i.key)
	if err != nil {
		i.Fatal(err)
	}
	return text
}

// credential is how a call proves whose it is.
type credential struct {
	header, value string
	certificate   *tls.Certificate
}

// A kind of caller, with each state that its credential can be in.
type kind struct {
	name        string
	credentials map[string]credential
}

const (
	good    = "right"
	clerk   = "no resolve right" // of a caller like the good one, but for this
	admin   = "admin, another's"
	missing = "none"
	wrong   = "wrong"
	expired = "expired"
	revoked = "revoked"
)

// matrixWorld is a server with TLS, two companies, and callers of every kind.
type matrixWorld struct {
	*facade
	kinds     []kind
	authority *authority
	conns     map[*tls.Certificate]*grpc.ClientConn
	clients   map[*tls.Certificate]*http.Client
	answers   strings.Builder // all that callers who are no admins were told
	secrets   []string
}

func newMatrixWorld(t *testing.T) *matrixWorld {
	w := &matrixWorld{authority: newAuthority(t), conns: map[*tls.Certificate]*grpc.ClientConn{}, clients: map[*tls.Certificate]*http.Client{}}
	tokens, elsewhere := newIssuer(t, "https://issuer.example.ec"), newIssuer(t, "https://elsewhere.example.ec")
	forged, forgedElsewhere := newIssuer(t, tokens.name), newIssuer(t, elsewhere.name)
	authentication := &configv1.Authentication{Issuers: []*configv1.TokenIssuer{
		{Issuer: tokens.name, Audiences: []string{"facade"}, JwksFile: tokens.path},
		{Issuer: elsewhere.name, Audiences: []string{"facade"}, JwksUrl: elsewhere.url},
	}}
	later, past := time.Now().Add(time.Hour), time.Now().Add(-time.Hour)
	callers := map[string]*configv1.Caller{
		good:    {Name: "orders", Companies: []string{"sandbox"}, Bots: []string{"demo"}, Lanes: []facadev1.SendOptions_Lane{2, 3}, MayResolve: true},
		clerk:   {Name: "clerk", Companies: []string{"sandbox"}},
		admin:   {Name: "admin", Companies: []string{"sandbox"}, Admin: true},
		revoked: {Name: "gone", Companies: []string{"*"}, Admin: true},
	}
	keyed := func(c *configv1.Caller, expires time.Time) string {
		key := caller.NewKey()
		hash := caller.HashKey(key)
		k := &configv1.Caller_Key{Sha256: hex.EncodeToString(hash[:])}
		if !expires.IsZero() {
			k.ExpireTime = timestamppb.New(expires)
		}
		c.Keys = append(c.Keys, k)
		return key
	}
	bearer := func(secret string) credential { return credential{header: "authorization", value: "Bearer " + secret} }
	apiKey := func(secret string) credential { return credential{header: "x-api-key", value: secret} }
	withCertificate := func(name string, until time.Time) credential {
		c := w.authority.client(name, until)
		return credential{certificate: &c}
	}
	byKey, byHeader := map[string]credential{missing: {}, wrong: bearer(caller.NewKey())}, map[string]credential{missing: {}, wrong: apiKey(caller.NewKey())}
	byToken := map[string]credential{missing: {}, wrong: bearer(forged.token("svc-orders", later)), expired: bearer(tokens.token("svc-orders", past))}
	byFetched := map[string]credential{missing: {}, wrong: bearer(forgedElsewhere.token("svc-orders", later)), expired: bearer(elsewhere.token("svc-orders", past))}
	byCertificate := map[string]credential{missing: {}, wrong: withCertificate("spiffe://example.ec/nobody", later), expired: withCertificate("spiffe://example.ec/orders", past)}
	for state, c := range callers {
		byKey[state], byHeader[state] = bearer(keyed(c, time.Time{})), apiKey(keyed(c, time.Time{}))
		c.Tokens = []*configv1.Caller_Token{{Issuer: tokens.name, Subject: "svc-" + c.Name}, {Issuer: elsewhere.name, Subject: "svc-" + c.Name}}
		byToken[state], byFetched[state] = bearer(tokens.token("svc-"+c.Name, later)), bearer(elsewhere.token("svc-"+c.Name, later))
		c.Certificates = []string{"uri:spiffe://example.ec/" + c.Name}
		byCertificate[state] = withCertificate("spiffe://example.ec/"+c.Name, later)
	}
	byKey[expired], byHeader[expired] = bearer(keyed(callers[good], past)), apiKey(keyed(callers[good], past))
	w.kinds = []kind{{"key as bearer", byKey}, {"x-api-key", byHeader}, {"JWT", byToken}, {"JWT, keys by URL", byFetched}, {"certificate", byCertificate}}
	for _, k := range w.kinds {
		for _, c := range k.credentials {
			if c.value != "" {
				w.secrets = append(w.secrets, strings.TrimPrefix(c.value, "Bearer "))
			}
		}
	}
	other := &configv1.Caller{Name: "other", Companies: []string{"*"}}
	otherKey := keyed(other, time.Time{})
	w.facade = newFacade(t, func(s *setup) {
		s.tls, s.rival = w.authority.server(), true
		s.callers = append(slices.Collect(maps.Values(callers)), other)
		s.authentication, s.configuration = authentication, func() ([]byte, error) { return []byte(`{"of": "canary-configuration"}`), nil }
	})
	w.facade.secrets = w.secrets
	w.kinds = append(w.kinds, kind{"other", map[string]credential{good: apiKey(otherKey)}}) // the last one is nobody under test
	// The revoked ones were callers, and are no more.
	delete(callers, revoked)
	set, err := w.source.Load(append(slices.Collect(maps.Values(callers)), other), authentication)
	w.must(err)
	w.settings.Callers = set
	w.server.Update(w.settings)
	return w
}

// connection is how a certificate reaches the server.
func (w *matrixWorld) connection(c credential) (*grpc.ClientConn, *http.Client) {
	w.Helper()
	if w.conns[c.certificate] == nil {
		config := &tls.Config{RootCAs: w.authority.pool, MinVersion: tls.VersionTLS12}
		if c.certificate != nil {
			config.Certificates = []tls.Certificate{*c.certificate}
		}
		conn, err := grpc.NewClient(w.grpcAddr, grpc.WithTransportCredentials(credentials.NewTLS(config)))
		w.must(err)
		transport := &http.Transport{TLSClientConfig: config}
		w.conns[c.certificate], w.clients[c.certificate] = conn, &http.Client{Transport: transport}
		w.Cleanup(func() {
			transport.CloseIdleConnections()
			w.must(conn.Close())
		})
	}
	return w.conns[c.certificate], w.clients[c.certificate]
}

// errHandshake is a call that TLS refused before anybody could answer it.
var errHandshake = status.Error(codes.Unavailable, "handshake")

// httpError is an error over REST, with its HTTP status.
type httpError struct {
	error
	code int
}

// GRPCStatus is the error's.
func (e httpError) GRPCStatus() *status.Status { return status.Convert(e.error) }

// call makes one call, of any kind, over a transport, and gives its first answer or its error.
func (w *matrixWorld) call(over string, c credential, method protoreflect.MethodDescriptor, request proto.Message) (proto.Message, error) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 20*time.Second)
	defer cancel()
	conn, client := w.connection(c)
	kind, err := protoregistry.GlobalTypes.FindMessageByName(method.Output().FullName())
	w.must(err)
	answer := kind.New().Interface()
	if over == "gRPC" {
		if c.header != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, c.header, c.value)
		}
		err = w.callGRPC(ctx, conn, method, request, answer)
		if status.Code(err) == codes.Unavailable && reasonOf(err) == "" { // gRPC's own: the connection was cut
			err = errHandshake
		}
	} else {
		err = w.callREST(ctx, client, c, method, request, answer)
	}
	w.hear(answer, err)
	if err != nil {
		return nil, err
	}
	return answer, nil
}

func (w *matrixWorld) callGRPC(ctx context.Context, conn *grpc.ClientConn, method protoreflect.MethodDescriptor, request, answer proto.Message) error {
	name := fmt.Sprintf("/%s/%s", method.Parent().FullName(), method.Name())
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: method.IsStreamingServer(), ClientStreams: method.IsStreamingClient()}, name)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(request); err != nil && !errors.Is(err, io.EOF) { // io.EOF: RecvMsg says why
		return err
	}
	if !method.IsStreamingClient() {
		if err := stream.CloseSend(); err != nil {
			return err
		}
	}
	return stream.RecvMsg(answer)
}

func (w *matrixWorld) callREST(ctx context.Context, client *http.Client, c credential, method protoreflect.MethodDescriptor, request, answer proto.Message) error {
	w.Helper()
	verb, path, body := restRequest(w.facade, string(method.Parent().Name())+"/"+string(method.Name()), request)
	r, err := http.NewRequestWithContext(ctx, verb, w.rest+path, bytes.NewReader(body))
	w.must(err)
	if len(body) > 0 {
		r.Header.Set("Content-Type", "application/json")
	}
	if c.header != "" {
		r.Header.Set(c.header, c.value)
	}
	r.Close = method.IsStreamingClient() // an upload that is answered early leaves no connection that could be used again
	got, err := client.Do(r)
	if err != nil {
		return errHandshake
	}
	defer got.Body.Close()
	if challenge := got.Header.Get("WWW-Authenticate"); (got.StatusCode == http.StatusUnauthorized) != (challenge == "Bearer") {
		w.Errorf("HTTP %d with WWW-Authenticate %q", got.StatusCode, challenge)
	}
	if got.StatusCode == http.StatusOK && method.IsStreamingServer() {
		line, err := bufio.NewReader(got.Body).ReadBytes('\n')
		w.must(err)
		w.must(protojson.Unmarshal(line, answer))
		return nil
	}
	data, err := io.ReadAll(got.Body)
	w.must(err)
	if got.StatusCode != http.StatusOK {
		return httpError{restStatus(w.facade, data).Err(), got.StatusCode}
	}
	return protojson.Unmarshal(data, answer)
}

// target is what a call is about.
type target struct {
	bot                       string
	lane                      facadev1.SendOptions_Lane
	send, batch, notification string
}

// A matrixRow is one RPC: its request, what of the target it is about, and what comes where nothing is in the way.
type matrixRow struct {
	request func(target) proto.Message
	about   string // letters: b bot, l lane, s send, B batch, n notification
	right   string // the reason; empty is OK
	resolve bool   // needs the right to resolve
}

// matrixTexts counts the texts: no two are alike, or the simulator would take them for one that was sent twice.
var matrixTexts atomic.Int64

func messageTo(t target) *facadev1.SendMessageRequest {
	r := textTo(openUser, fmt.Sprint("hola ", matrixTexts.Add(1)))
	r.BotId, r.Options = t.bot, &facadev1.SendOptions{Lane: t.lane}
	return r
}

func templateTo(t target) *facadev1.SendNotificationRequest {
	r := notification("order_ready", "Lucía", fmt.Sprint(matrixTexts.Add(1)))
	r.BotId, r.Options = t.bot, &facadev1.SendOptions{Lane: t.lane}
	return r
}

func specOf(t target) *facadev1.BatchSpec {
	return &facadev1.BatchSpec{BotId: t.bot, Paused: true, Options: &facadev1.SendOptions{Lane: t.lane}}
}

// matrixRows are all RPCs. One that is not here fails the test.
var matrixRows = map[string]matrixRow{
	"MessageService/SendMessage":           {about: "bl", request: func(t target) proto.Message { return messageTo(t) }},
	"NotificationService/SendNotification": {about: "bl", request: func(t target) proto.Message { return templateTo(t) }},
	"NotificationService/GetNotification": {about: "bn", request: func(t target) proto.Message {
		return &facadev1.GetNotificationRequest{BotId: t.bot, NotificationId: t.notification}
	}},
	"NotificationService/ListNotifications": {about: "b", request: func(t target) proto.Message { return &facadev1.ListNotificationsRequest{BotId: t.bot} }},
	"SendService/GetSend":                   {about: "s", request: func(t target) proto.Message { return &facadev1.GetSendRequest{SendId: t.send} }},
	"SendService/ListSends":                 {request: func(target) proto.Message { return &facadev1.ListSendsRequest{} }},
	"SendService/CancelSend":                {about: "s", right: "ALREADY_SENDING", request: func(t target) proto.Message { return &facadev1.CancelSendRequest{SendId: t.send} }},
	"SendService/ResolveSend": {about: "s", right: "NOT_UNKNOWN", resolve: true, request: func(t target) proto.Message {
		return &facadev1.ResolveSendRequest{SendId: t.send, State: facadev1.Send_SENT}
	}},
	"BatchService/CreateBatch": {about: "bl", request: func(t target) proto.Message {
		return &facadev1.CreateBatchRequest{Spec: specOf(t), Items: batchOf(1, "hola ").Items}
	}},
	"BatchService/StreamBatch": {about: "bl", request: func(t target) proto.Message {
		open := &facadev1.StreamBatchRequest_Open{Batch: &facadev1.StreamBatchRequest_Open_Spec{Spec: specOf(t)}}
		return &facadev1.StreamBatchRequest{Request: &facadev1.StreamBatchRequest_Open_{Open: open}}
	}},
	"BatchService/StreamBatch, reopened": {about: "B", request: func(t target) proto.Message {
		return &facadev1.StreamBatchRequest{Request: &facadev1.StreamBatchRequest_Open_{Open: reopen(t.batch, "")}}
	}},
	"BatchService/GetBatch":    {about: "B", request: func(t target) proto.Message { return &facadev1.GetBatchRequest{BatchId: t.batch} }},
	"BatchService/ListBatches": {request: func(target) proto.Message { return &facadev1.ListBatchesRequest{} }},
	"BatchService/WatchBatch":  {about: "B", request: func(t target) proto.Message { return &facadev1.WatchBatchRequest{BatchId: t.batch} }},
	"BatchService/CancelBatch": {about: "B", request: func(t target) proto.Message { return &facadev1.CancelBatchRequest{BatchId: t.batch} }},
	"BatchService/PauseBatch":  {about: "B", right: "BATCH_ENDED", request: func(t target) proto.Message { return &facadev1.PauseBatchRequest{BatchId: t.batch} }},
	"BatchService/ResumeBatch": {about: "B", right: "BATCH_ENDED", request: func(t target) proto.Message { return &facadev1.ResumeBatchRequest{BatchId: t.batch} }},
	"BatchService/ReplayBatch": {about: "B", right: "NOTHING_TO_REPLAY", request: func(t target) proto.Message {
		return &facadev1.ReplayBatchRequest{BatchId: t.batch, States: []facadev1.Send_State{facadev1.Send_FAILED}}
	}},
	"CapacityService/GetCapacity":   {about: "b", request: func(t target) proto.Message { return &facadev1.GetCapacityRequest{BotId: t.bot} }},
	"CapacityService/WatchCapacity": {about: "b", request: func(t target) proto.Message { return &facadev1.WatchCapacityRequest{BotId: t.bot} }},
}

// methodsOf are the RPCs of the API, from the descriptors.
func methodsOf(t *testing.T) map[string]protoreflect.MethodDescriptor {
	t.Helper()
	methods := map[string]protoreflect.MethodDescriptor{}
	protoregistry.GlobalFiles.RangeFilesByPackage("jelou.facade.v1", func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				m := service.Methods().Get(j)
				methods[string(service.Name())+"/"+string(m.Name())] = m
			}
		}
		return true
	})
	return methods
}

// ownedBy makes a send, a notification and an ended batch of a caller, all of demo's.
func (w *matrixWorld) ownedBy(c credential, methods map[string]protoreflect.MethodDescriptor, canary string) target {
	w.Helper()
	t := target{bot: "demo", lane: facadev1.SendOptions_NORMAL}
	must := func(method string, request proto.Message) proto.Message {
		answer, err := w.call("gRPC", c, methods[method], request)
		w.must(err)
		return answer
	}
	message := messageTo(t)
	message.RequestId, message.Options.Labels = canary, map[string]string{"app": canary}
	t.send = must("MessageService/SendMessage", message).(*facadev1.SendMessageResponse).Send.SendId
	t.notification = must("NotificationService/SendNotification", templateTo(t)).(*facadev1.SendNotificationResponse).Send.Notifications[0].NotificationId
	batch := &facadev1.CreateBatchRequest{Spec: specOf(t), Items: batchOf(1, "hola ").Items}
	batch.Spec.RequestId, batch.Spec.Options.Labels = canary+"-batch", map[string]string{"app": canary}
	t.batch = must("BatchService/CreateBatch", batch).(*facadev1.CreateBatchResponse).Batch.BatchId
	must("BatchService/CancelBatch", &facadev1.CancelBatchRequest{BatchId: t.batch})
	return t
}

// scenario is a column: the credential, what the call is about, and the reason that is expected where the row is about it.
type scenario struct {
	name       string
	credential string
	target     func(own, others, absent target) target
	expect     func(row matrixRow) (reason string, applies bool)
}

func itsOwn(own, _, _ target) target { return own }

func always(reason string) func(matrixRow) (string, bool) {
	return func(matrixRow) (string, bool) { return reason, true }
}

// about applies to rows that are about one of the letters.
func about(letters, reason string) func(matrixRow) (string, bool) {
	return func(row matrixRow) (string, bool) { return reason, strings.ContainsAny(row.about, letters) }
}

func asRight(row matrixRow) (string, bool) { return row.right, true }

const unauthenticated, forbidden, notFound = "CALLER_UNAUTHENTICATED", "CALLER_FORBIDDEN", "RESOURCE_NOT_FOUND"

var scenarios = []scenario{
	{good, good, itsOwn, asRight},
	{missing, missing, itsOwn, always(unauthenticated)},
	{wrong, wrong, itsOwn, always(unauthenticated)},
	{expired, expired, itsOwn, always(unauthenticated)},
	{revoked, revoked, itsOwn, always(unauthenticated)},
	{"another caller's", good, func(_, others, _ target) target { return others }, about("sBn", notFound)},
	{"nobody's", good, func(_, _, absent target) target { return absent }, about("sBn", notFound)},
	{"other company's bot", good, func(own, _, _ target) target { own.bot = "rival-bot"; return own }, about("b", forbidden)},
	{"other bot", good, func(own, _, _ target) target { own.bot = "disabled"; return own }, about("b", forbidden)},
	{"nobody's bot", good, func(own, _, _ target) target { own.bot = "nowhere"; return own }, about("b", forbidden)},
	{"forbidden lane", good, func(own, _, _ target) target { own.lane = facadev1.SendOptions_URGENT; return own }, about("l", forbidden)},
	{clerk, clerk, nil, func(row matrixRow) (string, bool) { return forbidden, row.resolve }}, // its own: see run
	{"not admin, another's", clerk, func(_, others, _ target) target { return others }, about("sBn", notFound)},
	{admin, admin, func(_, others, _ target) target { return others }, asRight},
}

// TestMatrix calls every RPC with every kind of credential in every state, for what the caller may use and for what it may not,
// over gRPC and REST, and holds the reason of every answer.
func TestMatrix(t *testing.T) {
	w := newMatrixWorld(t)
	methods := methodsOf(t)
	for name := range methods {
		if _, ok := matrixRows[name]; !ok {
			t.Errorf("%s has no row: say what it is about, so that it is called as everybody", name)
		}
	}
	kinds, stranger := w.kinds[:len(w.kinds)-1], w.kinds[len(w.kinds)-1].credentials[good]
	others := w.ownedBy(stranger, methods, "canary-other")
	own := map[string]target{
		good:  w.ownedBy(kinds[0].credentials[good], methods, "own-good"),
		clerk: w.ownedBy(kinds[0].credentials[clerk], methods, "own-clerk"),
	}
	absent := w.absent(own[good])
	cells, table := 0, map[string]map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(matrixRows)) {
		row, table1 := matrixRows[name], map[string]string{}
		table[name] = table1
		method, _, _ := strings.Cut(name, ",")
		for _, s := range scenarios {
			want, applies := s.expect(row)
			if !applies {
				table1[s.name] = "-"
				continue
			}
			table1[s.name] = cmpOr(want, "OK")
			at := own[clerk]
			if s.target != nil {
				at = s.target(own[good], others, absent)
			}
			for _, k := range kinds {
				for _, over := range []string{"gRPC", "REST"} {
					cells++
					answer, err := w.call(over, k.credentials[s.credential], methods[method], row.request(at))
					w.hold(fmt.Sprintf("%s, %s, %s, %s", name, s.name, k.name, over), s, k, want, answer, err)
				}
			}
			w.server.Update(w.settings) // the same callers again: what failed is forgiven, so that each refusal is for its own reason
		}
	}
	w.holdSameAnswers(kinds, methods, others, absent)
	cells += w.holdPages(kinds, table)
	w.holdReflection(kinds[0])
	w.holdSecrets(others)
	t.Logf("%d cells; each the same for %d kinds of credential over gRPC and REST, but that TLS itself refuses an expired certificate:\n%s", cells, len(kinds), printTable(table))
}

func cmpOr(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

// hold checks one cell.
func (w *matrixWorld) hold(cell string, s scenario, k kind, want string, answer proto.Message, err error) {
	w.Helper()
	if k.name == "certificate" && s.credential == expired {
		// TLS ends it before there is a call.
		if !errors.Is(err, errHandshake) {
			w.Errorf("%s: %v, want no handshake", cell, err)
		}
		return
	}
	if got := reasonOf(err); got != want || want == "" && err != nil {
		w.Errorf("%s: got %s (%v), want %s", cell, got, err, cmpOr(want, "OK"))
	}
	exact, known := matrixCodes[want]
	if !known || status.Code(err) != exact.grpc {
		w.Errorf("%s: code %s, want %s", cell, status.Code(err), exact.grpc)
	}
	if over, ok := errors.AsType[httpError](err); ok && over.code != exact.http {
		w.Errorf("%s: HTTP %d, want %d", cell, over.code, exact.http)
	}
	if s.credential != admin {
		fmt.Fprintln(&w.answers, protojson.Format(status.Convert(err).Proto()))
		if answer != nil {
			fmt.Fprintln(&w.answers, protojson.Format(answer))
		}
	}
}

// matrixCodes are the exact codes of the reasons that are expected; empty is success. They are not taken from the table: clients know
// them by heart.
var matrixCodes = map[string]struct {
	grpc codes.Code
	http int
}{
	"":              {codes.OK, http.StatusOK},
	unauthenticated: {codes.Unauthenticated, http.StatusUnauthorized}, forbidden: {codes.PermissionDenied, http.StatusForbidden}, notFound: {codes.NotFound, http.StatusNotFound},
	"ALREADY_SENDING": {codes.FailedPrecondition, http.StatusBadRequest}, "NOT_UNKNOWN": {codes.FailedPrecondition, http.StatusBadRequest},
	"BATCH_ENDED": {codes.FailedPrecondition, http.StatusBadRequest}, "NOTHING_TO_REPLAY": {codes.FailedPrecondition, http.StatusBadRequest},
}

// holdSameAnswers: what is another caller's answers to the letter like what does not exist.
func (w *matrixWorld) holdSameAnswers(kinds []kind, methods map[string]protoreflect.MethodDescriptor, others, absent target) {
	w.Helper()
	for name, row := range matrixRows {
		if !strings.ContainsAny(row.about, "sBn") {
			continue
		}
		method, _, _ := strings.Cut(name, ",")
		for _, over := range []string{"gRPC", "REST"} {
			c := kinds[0].credentials[good]
			_, one := w.call(over, c, methods[method], row.request(others))
			_, two := w.call(over, c, methods[method], row.request(absent))
			if !proto.Equal(status.Convert(one).Proto(), status.Convert(two).Proto()) {
				w.Errorf("%s over %s tells another's from nobody's: %v, %v", name, over, status.Convert(one).Proto(), status.Convert(two).Proto())
			}
		}
	}
	for _, r := range []*facadev1.ListSendsRequest{{BatchId: others.batch}, {BatchId: absent.batch}, {RequestId: "canary-other"}, {BotId: "rival-bot"}} {
		answer, err := w.call("gRPC", kinds[0].credentials[good], methods["SendService/ListSends"], r)
		w.must(err)
		if sends := answer.(*facadev1.ListSendsResponse).Sends; len(sends) != 0 {
			w.Errorf("ListSends %v: %v", r, sends)
		}
	}
}

// matrixPages are what is beside the API, with what comes of each state of a credential; empty is success. Health needs none.
var matrixPages = map[string]map[string]string{
	"health":   {good: "", missing: "", wrong: "", expired: "", revoked: "", clerk: "", admin: ""},
	"/configz": {good: forbidden, missing: unauthenticated, wrong: unauthenticated, expired: unauthenticated, revoked: unauthenticated, clerk: forbidden, admin: ""},
}

// holdPages asks for the pages as everybody, for health over gRPC and REST. It gives how many cells there were.
func (w *matrixWorld) holdPages(kinds []kind, table map[string]map[string]string) (cells int) {
	w.Helper()
	health := func(c credential) error {
		conn, _ := w.connection(c)
		ctx := w.Context()
		if c.header != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, c.header, c.value)
		}
		_, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{})
		if status.Code(err) == codes.Unavailable && reasonOf(err) == "" {
			err = errHandshake
		}
		return err
	}
	page := func(path string) func(credential) error {
		return func(c credential) error {
			_, client := w.connection(c)
			r, err := http.NewRequestWithContext(w.Context(), http.MethodGet, w.rest+path, nil)
			w.must(err)
			if c.header != "" {
				r.Header.Set(c.header, c.value)
			}
			got, err := client.Do(r)
			if err != nil {
				return errHandshake
			}
			defer got.Body.Close()
			data, err := io.ReadAll(got.Body)
			w.must(err)
			if got.StatusCode == http.StatusOK {
				return nil
			}
			if strings.Contains(string(data), "canary") {
				w.Errorf("%s: %s", path, data)
			}
			return httpError{restStatus(w.facade, data).Err(), got.StatusCode}
		}
	}
	for name, gets := range map[string]map[string]func(credential) error{
		"health": {"gRPC": health, "REST": page("/healthz")}, "/configz": {"REST": page("/configz")},
	} {
		table[name] = map[string]string{}
		for _, s := range scenarios {
			table[name][s.name] = "-"
		}
		for state, want := range matrixPages[name] {
			table[name][state] = cmpOr(want, "OK")
			for _, k := range kinds {
				for over, get := range gets {
					cells++
					w.hold(fmt.Sprintf("%s, %s, %s, %s", name, state, k.name, over), scenario{credential: state}, k, want, nil, get(k.credentials[state]))
				}
			}
			w.server.Update(w.settings)
		}
	}
	return cells
}

// holdReflection: it needs a credential.
func (w *matrixWorld) holdReflection(k kind) {
	w.Helper()
	conn, _ := w.connection(credential{})
	for state, want := range map[string]codes.Code{missing: codes.Unauthenticated, wrong: codes.Unauthenticated, good: codes.OK} {
		ctx := w.Context()
		if c := k.credentials[state]; c.header != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, c.header, c.value)
		}
		stream, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
		w.must(err)
		_ = stream.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}) // Recv says why not
		if _, err := stream.Recv(); status.Code(err) != want {
			w.Errorf("reflection, %s: %v, want %s", state, err, want)
		}
	}
}

// holdSecrets: nobody is told what is others', and no log has a credential.
func (w *matrixWorld) holdSecrets(others target) {
	w.Helper()
	answers := w.answers.String()
	if len(answers) < 10_000 {
		w.Errorf("only %d bytes of answers were looked at", len(answers))
	}
	for _, canary := range []string{"canary-other", others.send, others.batch, others.notification, "rival"} {
		if strings.Contains(answers, canary) {
			w.Errorf("an answer has %q", canary)
		}
	}
	for _, secret := range w.secrets {
		if strings.Contains(answers, secret) || strings.Contains(w.logs.String(), secret) {
			w.Errorf("a credential is in an answer or in the log")
		}
	}
}

// absent is like a target, but nothing has its ids.
func (w *matrixWorld) absent(like target) target {
	w.Helper()
	send, err := ledger.ParseID(like.send)
	w.must(err)
	batch, err := ledger.ParseQueueID(like.batch)
	w.must(err)
	send.Pos, batch.Queue = send.Pos+1_000_000, batch.Queue+1
	like.send, like.batch, like.notification = send.String(), batch.String(), "n-nobody"
	return like
}

func printTable(table map[string]map[string]string) string {
	var out strings.Builder
	tw := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	fmt.Fprint(tw, "RPC")
	for _, s := range scenarios {
		fmt.Fprint(tw, "\t"+s.name)
	}
	fmt.Fprintln(tw)
	for _, name := range slices.Sorted(maps.Keys(table)) {
		fmt.Fprint(tw, name)
		for _, s := range scenarios {
			fmt.Fprint(tw, "\t"+strings.TrimPrefix(table[name][s.name], "CALLER_"))
		}
		fmt.Fprintln(tw)
	}
	_ = tw.Flush()
	return out.String()
}
