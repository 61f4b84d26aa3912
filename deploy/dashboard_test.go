package deploy

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

var picture = flag.String("picture", "", "PNG `file` into which TestDashboard draws the dashboard; it is skipped without one")

// TestDashboard draws grafana/dashboard.json with what Prometheus read of three facades on PostgreSQL, over minutes in which not
// everything went well. `make dashboard` runs it: it needs what grafana/preview builds to, and Chromium.
func TestDashboard(t *testing.T) {
	if *picture == "" {
		t.Skip("no -picture")
	}
	c := newCompose(t)
	build(t, c.programs, "jelou-facade", "jelousim")
	c.startPostgres(t)
	control := c.startSimulator(t)
	l := &load{facades: make([]loaded, 3)}
	c.addCallers(t, "codes", "orders", "campaigns")
	var admin []string
	for i := range l.facades {
		f := &l.facades[i]
		f.calls = c.chooseGRPC(t)
		rest, address := c.startFacade(t, fmt.Sprintf("facade-%d", i+1))
		f.rest, admin = rest, append(admin, address)
	}
	p := c.startPrometheus(t, admin)
	await(t, "Prometheus to read three facades", func() bool { return p.value(t, `count(up{job="jelou-facade"} == 1)`) == "3" })

	began := time.Now()
	l.run(t, control)
	ended := time.Now()
	var fired struct {
		Data struct {
			Result []struct{ Metric map[string]string }
		}
	}
	getJSON(t, string(p)+"/api/v1/query?query="+url.QueryEscape(`count by (alertname) (max_over_time(ALERTS{alertstate="firing"}[15m]))`), &fired)
	for _, alert := range fired.Data.Result {
		t.Log("fired: ", alert.Metric["alertname"])
	}
	p.checkPanels(t, began, ended)
	draw(t, p, began, ended)
}

// addCallers lets more callers in than compose.yaml has; their keys are their names. Requests to Jelou may take two seconds, so that a
// Jelou that hangs is seen within the run.
func (c *compose) addCallers(t *testing.T, names ...string) {
	t.Helper()
	callers := "callers:\n"
	for _, name := range names {
		callers += fmt.Sprintf("  - name: %s\n    companies: [sandbox]\n    keys: [{sha256: %x}]\n", name, sha256.Sum256([]byte(keyOf(name))))
	}
	c.edit(t, "callers:\n", callers)
	c.edit(t, "    bots: [demo]\n", "    bots: [demo]\n    attempt_timeout: 2s\n")
}

func keyOf(caller string) string { return "the-key-of-" + caller }

// chooseGRPC gives the next facade a gRPC address that is known here.
func (c *compose) chooseGRPC(t *testing.T) *grpc.ClientConn {
	t.Helper()
	address := freeAddress(t)
	text := c.read(t, "facade/facade.yaml")
	_, rest, _ := strings.Cut(text, "  grpc: ")
	old, _, _ := strings.Cut(rest, "\n")
	c.edit(t, "  grpc: "+old, "  grpc: "+address)
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// edit changes the configuration that the facades to come begin with.
func (c *compose) edit(t *testing.T, from, to string) {
	t.Helper()
	text := c.read(t, "facade/facade.yaml")
	if !strings.Contains(text, from) {
		t.Fatalf("facade.yaml has no %q", from)
	}
	if err := os.WriteFile(filepath.Join(c.local, "facade/facade.yaml"), []byte(strings.Replace(text, from, to, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// load is what callers do for some minutes. What comes back is nothing to it: much is to go wrong, and the dashboard shows it.
type load struct {
	facades []loaded
	calling sync.WaitGroup
}

type loaded struct {
	rest  string
	calls *grpc.ClientConn
}

const loadTime = 9 * time.Minute

// weather is what the simulated Jelou does, from a time on.
var weather = []struct {
	from       time.Duration
	path, body string
}{
	{0, "/faults", `[]`},
	{90 * time.Second, "/faults", `[
		{"kind": "latency", "probability": 0.1, "delay": "800ms"},
		{"kind": "server_error", "probability": 0.02},
		{"kind": "reset", "probability": 0.02, "accepted": true},
		{"kind": "invalid_media_url", "probability": 0.03}]`},
	{3 * time.Minute, "/faults", `[{"kind": "throttle", "retry_after": "20s"}]`},
	{4 * time.Minute, "/limit", `{"requests": 3, "window": "1s"}`}, // somebody else uses the credential
	{4*time.Minute + 45*time.Second, "/limit", `{"requests": 5, "window": "1s"}`},
	{5*time.Minute + 30*time.Second, "/faults", `[{"kind": "server_error", "status": 401, "probability": 1}]`},
	{6 * time.Minute, "/faults", `[{"kind": "latency", "probability": 0.1, "delay": "800ms"}]`},
	{7 * time.Minute, "/faults", `[{"kind": "hang", "probability": 0.3, "delay": "5s"}]`},
	{7*time.Minute + 20*time.Second, "/faults", `[]`},
}

// run calls until loadTime is over and the last calls are answered.
func (l *load) run(t *testing.T, control string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), loadTime)
	defer cancel()
	l.every(ctx, 1400*time.Millisecond, func(i int) { l.sendCode(ctx, i) })
	l.every(ctx, 450*time.Millisecond, func(i int) { l.sendOrder(ctx, i) })
	l.every(ctx, 2*time.Second, func(i int) { l.callWrongly(ctx, i) })
	l.every(ctx, 3*time.Second, func(i int) { l.read(ctx, i) })
	for _, w := range weather {
		l.after(ctx, w.from, func() {
			if code := l.post(ctx, control+w.path, "", w.body); code != http.StatusOK {
				t.Errorf("%s %s: %d", w.path, w.body, code)
			}
		})
	}
	l.after(ctx, time.Minute, func() { l.sendBatch(ctx, "campaigns", 300, false) })
	l.after(ctx, 2*time.Minute, func() { l.sendBatch(ctx, "orders", 150, false) })
	l.after(ctx, 5*time.Minute, func() { l.sendBatch(ctx, "campaigns", 100, true) })
	l.calling.Wait()
}

// every makes a call again and again, whether the one before is answered or not.
func (l *load) every(ctx context.Context, span time.Duration, call func(i int)) {
	l.calling.Go(func() {
		tick := time.NewTicker(span)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				l.calling.Go(func() { call(i) })
			}
		}
	})
}

func (l *load) after(ctx context.Context, span time.Duration, call func()) {
	l.calling.Go(func() {
		select {
		case <-ctx.Done():
		case <-time.After(span):
			call()
		}
	})
}

// sendCode sends a one-time code over gRPC: urgent, and of no use after some seconds.
func (l *load) sendCode(ctx context.Context, i int) {
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, "x-api-key", keyOf("codes")), 6*time.Second)
	defer cancel()
	_, _ = facadev1.NewMessageServiceClient(l.facades[i%3].calls).SendMessage(ctx, &facadev1.SendMessageRequest{
		BotId: "demo", UserId: "593991234567", RequestId: fmt.Sprintf("code-%d", i),
		Message: &facadev1.Message{Content: &facadev1.Message_Text{Text: &facadev1.TextContent{Text: fmt.Sprintf("Su código es %06d.", i)}}},
		Options: &facadev1.SendOptions{Lane: facadev1.SendOptions_URGENT},
	})
}

// sendOrder sends over REST; every twentieth call is made twice.
func (l *load) sendOrder(ctx context.Context, i int) {
	body := fmt.Sprintf(`{"user_id": "593991234567", "message": {"text": {"text": "Su pedido %d salió de bodega."}}, "request_id": "order-%[1]d"}`, i)
	l.post(ctx, l.facades[i%3].rest+"/v1/bots/demo/messages", "orders", body)
	if i%20 == 0 {
		l.post(ctx, l.facades[(i+1)%3].rest+"/v1/bots/demo/messages", "orders", body)
	}
}

// sendBatch stores a batch, which waits behind all single sends, and when it is paused for ever.
func (l *load) sendBatch(ctx context.Context, caller string, size int, paused bool) {
	items := make([]string, size)
	for i := range items {
		items[i] = fmt.Sprintf(`{"user_id": "593987654321", "message": {"text": {"text": "Oferta %d."}}}`, i)
	}
	l.post(ctx, l.facades[0].rest+"/v1/batches", caller, fmt.Sprintf(`{"spec": {"bot_id": "demo", "paused": %t}, "items": [%s]}`, paused, strings.Join(items, ",")))
}

// callWrongly does what callers do wrong, one after the other.
func (l *load) callWrongly(ctx context.Context, i int) {
	const hello = `{"user_id": "593991234567", "message": {"text": {"text": "Hola."}}}`
	rest := l.facades[i%3].rest
	wrong := []func(){
		func() { l.post(ctx, rest+"/v1/bots/demo/messages", "orders", strings.Replace(hello, "Hola.", " ", 1)) },
		func() { l.post(ctx, rest+"/v1/bots/nobody/messages", "orders", hello) },
		func() { l.post(ctx, rest+"/v1/bots/demo/messages", "strangers", hello) },
		func() { l.post(ctx, rest+"/v1/bots/demo/letters", "orders", hello) },
		func() { l.post(ctx, rest+"/v1/bots/demo/messages", "campaigns", `{"user_id"`) },
		func() {
			ctx, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
			defer cancel()
			l.post(ctx, rest+"/v1/bots/demo/messages", "orders", hello)
		},
	}
	wrong[i%len(wrong)]()
}

// read asks for what there is.
func (l *load) read(ctx context.Context, i int) {
	ctx = metadata.AppendToOutgoingContext(ctx, "x-api-key", keyOf("orders"))
	conn := l.facades[i%3].calls
	_, _ = facadev1.NewCapacityServiceClient(conn).GetCapacity(ctx, &facadev1.GetCapacityRequest{BotId: "demo"})
	_, _ = facadev1.NewSendServiceClient(conn).ListSends(ctx, &facadev1.ListSendsRequest{})
}

// post answers 0 where no answer came in time.
func (l *load) post(ctx context.Context, address, caller, body string) (code int) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, address, strings.NewReader(body))
	if err != nil {
		return 0
	}
	request.Header.Set("Content-Type", "application/json")
	if caller != "" {
		request.Header.Set("X-Api-Key", keyOf(caller))
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, response.Body)
	return response.StatusCode
}

// checkPanels asks for what each panel shows: it must be something.
func (p prometheus) checkPanels(t *testing.T, began, ended time.Time) {
	t.Helper()
	text, err := os.ReadFile("grafana/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Templating struct {
			List []struct{ Name, AllValue string }
		}
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, variable := range dashboard.Templating.List {
		all = append(all, "$"+variable.Name, variable.AllValue)
	}
	variables := strings.NewReplacer(all...)
	for _, panel := range dashboard.Panels {
		series := 0
		for _, target := range panel.Targets {
			query := url.Values{"query": {variables.Replace(target.Expr)}, "start": {fmt.Sprint(began.Unix())}, "end": {fmt.Sprint(ended.Unix())}, "step": {"15"}}
			var found struct{ Data struct{ Result []any } }
			getJSON(t, string(p)+"/api/v1/query_range?"+query.Encode(), &found)
			series += len(found.Data.Result)
		}
		t.Logf("%s: %d series", panel.Title, series)
		if series == 0 {
			t.Errorf("%s: no data", panel.Title)
		}
	}
}

// draw has Chromium draw the page of grafana/preview.
func draw(t *testing.T, p prometheus, began, ended time.Time) {
	t.Helper()
	page := httptest.NewServer(http.FileServer(http.Dir("grafana")))
	defer page.Close()
	address := page.URL + "/preview/index.html?" + url.Values{
		"prometheus": {string(p)}, "from": {fmt.Sprint(began.Unix())}, "to": {fmt.Sprint(ended.Unix())},
	}.Encode()
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "node", "grafana/preview/screenshot.mjs", chromium, address, *picture).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Logf("drawn, without data: %q", out)
}
