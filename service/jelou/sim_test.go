package jelou

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
)

// newSim is the simulator without limit and delays. It shares no code with this package, so both agree about Jelou only
// where both have read the same in its documentation.
func newSim() *jelousim.Server {
	c := jelousim.Sandbox()
	c.Rate, c.Processing, c.EveryoneOpen = jelousim.Rate{}, jelousim.Processing{}, true
	c.ExtraTypes = []string{"reaction"}
	c.Templates = append(c.Templates,
		jelousim.Template{ElementName: "welcome", Language: "es"}, jelousim.Template{ElementName: "order_ready_document", Language: "es", Params: 2, Type: "document"})
	return jelousim.New(c)
}

// newSimClient serves the simulator over HTTP/1.1 or HTTP/2.
func newSimClient(t *testing.T, sim *jelousim.Server, overHTTP2 bool, edit func(*Config)) *Client {
	t.Helper()
	server := httptest.NewUnstartedServer(nil)
	server.Config = jelousim.HTTPServer(sim)
	c := Config{Credential: func() (string, string, error) { return "sandbox", "sandbox", nil }}
	if overHTTP2 {
		server.EnableHTTP2 = true
		server.StartTLS()
		c.RootCAs = server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	} else {
		server.Start()
	}
	t.Cleanup(server.Close)
	c.BaseURL = server.URL
	if edit != nil {
		edit(&c)
	}
	return newClient(t, c)
}

var protocols = map[string]bool{"HTTP1": false, "HTTP2": true}

func TestSimulatorTakesEveryKind(t *testing.T) {
	for protocol, overHTTP2 := range protocols {
		sim := newSim()
		client := newSimClient(t, sim, overHTTP2, nil)
		for name, g := range mustReadGolden(t) {
			item := mustItem(t, string(g.Item))
			if name == "notification" {
				item.GetNotification().ElementName = "order_ready_document"
				item.GetNotification().HeaderParameters, item.GetNotification().Cards = nil, nil
			}
			result, err := client.Send(t.Context(), "demo", item)
			if err != nil {
				t.Errorf("%s %s: %v %+v", protocol, name, err, mustFail(t, err).Fields)
				continue
			}
			if len(result.Warnings) != 0 || (result.MessageID == "") != (name == "flow" || item.GetNotification() != nil) {
				t.Errorf("%s %s: %+v", protocol, name, result)
			}
			for i, n := range result.Notifications {
				record, _, err := client.GetNotification(t.Context(), "demo", n.NotificationId)
				if err != nil || record.Destination != n.Destination || record.Status == facadev1.Notification_STATUS_UNSPECIFIED || n.Destination != Normalize(item.GetNotification().Destinations[i]) {
					t.Errorf("%s %s: %v %v", protocol, name, record, err)
				}
			}
		}
		if got := sim.Report(); got.Duplicates != 0 {
			t.Errorf("%s: %d duplicates", protocol, got.Duplicates)
		}
	}
}

// Every fault over both protocols: what the client says of it, one request each, and never a wrong "not sent".
func TestSimulatorFaults(t *testing.T) {
	fault := func(kind jelousim.FaultKind, accepted bool) jelousim.Fault {
		return jelousim.Fault{Kind: kind, Accepted: accepted}
	}
	for name, c := range map[string]struct {
		fault   jelousim.Fault
		outcome Outcome // zero: accepted
		reason  facadev1.ErrorReason
	}{
		"reset":                 {fault(jelousim.FaultReset, false), Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN},
		"reset, accepted":       {fault(jelousim.FaultReset, true), Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN},
		"close":                 {fault(jelousim.FaultClose, false), Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN},
		"close, accepted":       {fault(jelousim.FaultClose, true), Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN},
		"hang":                  {fault(jelousim.FaultHang, true), Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN},
		"500":                   {fault(jelousim.FaultServerError, true), Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN},
		"500 B":                 {fault(jelousim.FaultUnknownError, false), Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN},
		"no company":            {fault(jelousim.FaultNoCompany, false), Misconfigured, facadev1.ErrorReason_JELOU_INTERNAL},
		"no company, B":         {jelousim.Fault{Kind: jelousim.FaultNoCompany, Dialect: jelousim.DialectB}, Misconfigured, facadev1.ErrorReason_JELOU_INTERNAL},
		"502":                   {fault(jelousim.FaultBadGateway, true), Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN},
		"422":                   {fault(jelousim.FaultValidation, false), Refused, facadev1.ErrorReason_UNPROCESSABLE_ENTITY},
		"media URL":             {fault(jelousim.FaultInvalidMedia, false), Refused, facadev1.ErrorReason_INVALID_MEDIA_URL},
		"media size":            {fault(jelousim.FaultMediaTooLarge, false), Refused, facadev1.ErrorReason_MEDIA_TOO_LARGE},
		"media type":            {fault(jelousim.FaultUnsupportedMedia, false), Refused, facadev1.ErrorReason_UNSUPPORTED_MEDIA_TYPE},
		"failed in 200":         {fault(jelousim.FaultFailedIn200, false), Refused, facadev1.ErrorReason_UPSTREAM_REFUSED},
		"success false":         {fault(jelousim.FaultSuccessFalse, false), Refused, facadev1.ErrorReason_UPSTREAM_REFUSED},
		"status 0":              {fault(jelousim.FaultStatusZero, false), Refused, facadev1.ErrorReason_UPSTREAM_REFUSED},
		"429":                   {jelousim.Fault{Kind: jelousim.FaultThrottle, RetryAfter: jelousim.Duration(3 * time.Second)}, Throttled, facadev1.ErrorReason_UPSTREAM_RATE_LIMITED},
		"307":                   {fault(jelousim.FaultRedirect, false), Refused, facadev1.ErrorReason_UPSTREAM_REFUSED},
		"truncated":             {fault(jelousim.FaultTruncate, true), Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN},
		"huge":                  {fault(jelousim.FaultHuge, true), Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN},
		"swapped":               {fault(jelousim.FaultSwap, true), 0, 0},
		"connection: close":     {fault(jelousim.FaultConnectionClose, true), 0, 0},
		"nothing is the matter": {jelousim.Fault{Kind: jelousim.FaultLatency, Delay: 1}, 0, 0},
	} {
		for protocol, overHTTP2 := range protocols {
			t.Run(protocol+"/"+name, func(t *testing.T) {
				sim := newSim()
				client := newSimClient(t, sim, overHTTP2, func(c *Config) {
					if c.AttemptTimeout = 5 * time.Second; name == "hang" {
						c.AttemptTimeout = time.Second
					}
				})
				if err := sim.SetFaults(c.fault); err != nil {
					t.Fatal(err)
				}
				_, err := client.Send(t.Context(), "demo", mustItem(t, textItem))
				if c.outcome == 0 {
					if err != nil {
						t.Error(err)
					}
				} else if e := mustFail(t, err); e.Outcome != c.outcome || e.Reason != c.reason || !e.Sent {
					t.Errorf("%v %v sent %v: %v", e.Outcome, e.Reason, e.Sent, e)
				} else if e.RetryAfter != time.Duration(c.fault.RetryAfter) {
					t.Error("retry after", e.RetryAfter)
				}
				if arrived := sim.Report().Arrived; arrived != 1 {
					t.Errorf("%d requests for one call", arrived)
				}
				if _, err := client.Send(t.Context(), "demo", mustItem(t, strings.Replace(textItem, "Estimada", "Querida", 1))); err != nil {
					t.Error("the next call:", err)
				}
			})
		}
	}
}

// shapes are the simulator's words for a body that has another shape than Jelou documents; its limits on contents may be
// narrower than the API's.
var shapes = []string{"is not a known field", "is required", "must be an object", "must be a string", "must be an array", "must be an integer", "must be a number", "is not a message type", "Content-Type", "JSON"}

// FuzzEncodeSimulator: the simulator, which refuses unknown members and wrong types, knows every body.
func FuzzEncodeSimulator(f *testing.F) {
	for _, g := range mustReadGolden(f) {
		data, err := proto.Marshal(mustItem(f, string(g.Item)))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	sim := newSim()
	f.Fuzz(func(t *testing.T, data []byte) {
		item := &facadev1.BatchItem{}
		if proto.Unmarshal(data, item) != nil || item.GetMessage().GetRaw() != nil || protovalidate.Validate(item) != nil {
			return
		}
		r, refused := encode("demo", item)
		if refused != nil {
			return
		}
		request := httptest.NewRequest(r.method, r.path, bytes.NewReader(r.body))
		request.SetBasicAuth("sandbox", "sandbox")
		request.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		sim.ServeHTTP(w, request)
		switch {
		case w.Code == http.StatusOK:
			if _, e := decodeSend(r, answer{status: w.Code, body: w.Body.Bytes()}); e != nil {
				t.Fatalf("%v: %s", e, w.Body)
			}
		case w.Code != http.StatusBadRequest && w.Code != http.StatusUnprocessableEntity:
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		for _, shape := range shapes {
			if strings.Contains(w.Body.String(), shape) {
				t.Fatalf("%s\n%s", w.Body, r.body)
			}
		}
	})
}
