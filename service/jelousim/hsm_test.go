package jelousim

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func hsmBody(fields string) string { return `{"destinations":["593991234567"],` + fields + `}` }

func TestTemplatesThatAreSent(t *testing.T) {
	cfg := world()
	cfg.Templates = append(cfg.Templates,
		Template{ElementName: "otp", Language: "es", Params: 1, Category: "AUTHENTICATION"},
		Template{ElementName: "spot", Language: "es", Type: "video"})
	for name, body := range map[string]string{
		"text":               ready,
		"closed window":      strings.Replace(ready, "593991234567", "593900000001", 1),
		"without language":   hsmBody(`"elementName":"order_ready","parameters":["a","b"]`),
		"type text":          hsmBody(`"elementName":"order_ready","type":"text","parameters":["a","b"]`),
		"document":           hsmBody(`"elementName":"invoice_ready","type":"document","mediaUrl":"` + mediaURL + `.pdf","filename":"f.pdf","parameters":["a","b"]`),
		"older spelling":     hsmBody(`"elementName":"invoice_ready","type":"document","mediaUrl":"` + mediaURL + `.pdf","fileName":"f.pdf","parameters":["a","b"]`),
		"image":              hsmBody(`"elementName":"order_photo","type":"image","mediaUrl":"` + mediaURL + `.png","parameters":["a"]`),
		"video, no values":   hsmBody(`"elementName":"spot","type":"video","mediaUrl":"` + mediaURL + `.mp4"`),
		"authentication":     hsmBody(`"elementName":"otp","parameters":["123456"]`),
		"everything else":    hsmBody(`"elementName":"order_ready","parameters":["a","b"],"headerParameters":["h"],"buttonPayloads":[{"flowId":3,"action":"Si"}],"actions":{"setFlow":{"id":12}},"buttonParameters":[{"type":"URL","payload":{},"param":1}],"dynamicUrlParameter":["x"],"ltoParams":{"expirationTime":1768482309412},"cards":[{"mediaUrl":"` + mediaURL + `.png","params":["a"]}],"expirationTime":"1h","campaignId":"c1"`),
		"business-scoped id": `{"destinations":["EC.8h3Kq0Zt"],"elementName":"order_ready","parameters":["a","b"]}`,
	} {
		t.Run(name, func(t *testing.T) {
			if got := do(New(cfg), "POST", hsmPath, body); got.status != 200 || !strings.HasPrefix(got.body, `[{"destination":`) {
				t.Errorf("got %d %s", got.status, got.body)
			}
		})
	}
}

func TestTemplatesThatAreRefused(t *testing.T) {
	cfg := world()
	cfg.Templates = append(cfg.Templates,
		Template{ElementName: "otp", Language: "es", Params: 1, Category: "AUTHENTICATION"},
		Template{ElementName: "order_ready", Language: "pt_BR", Params: 2})
	const ab = `,"language":"es","parameters":["a","b"]`
	for name, tc := range map[string]struct {
		body   string
		status int
		says   string
	}{
		"unknown":             {hsmBody(`"elementName":"none"`), 400, `"message":["Template does not exist"]`},
		"not approved":        {hsmBody(`"elementName":"draft_promo"`), 400, `"message":["Template does not exist"]`},
		"other language":      {hsmBody(`"elementName":"invoice_ready","language":"en"`), 400, `"Template does not exist"`},
		"which language":      {hsmBody(`"elementName":"order_ready","parameters":["a","b"]`), 400, "language is required"},
		"one value short":     {hsmBody(`"elementName":"order_ready","language":"es","parameters":["a"]`), 400, "needs 2 parameters"},
		"no values":           {hsmBody(`"elementName":"order_ready","language":"es"`), 400, "needs 2 parameters"},
		"type not given":      {hsmBody(`"elementName":"invoice_ready","mediaUrl":"` + mediaURL + `.pdf"` + ab), 400, "of type document"},
		"no media":            {hsmBody(`"elementName":"invoice_ready","type":"document"` + ab), 400, "mediaUrl is required"},
		"media not wanted":    {hsmBody(`"elementName":"order_ready","mediaUrl":"` + mediaURL + `"` + ab), 400, "only for them"},
		"media by http":       {hsmBody(`"elementName":"invoice_ready","type":"document","mediaUrl":"http://a.ec/f.pdf"` + ab), 400, "INVALID_MEDIA_URL"},
		"media of other type": {hsmBody(`"elementName":"invoice_ready","type":"document","mediaUrl":"https://a.ec/f.png"` + ab), 400, "UNSUPPORTED_MEDIA_TYPE"},
		"card by http":        {hsmBody(`"elementName":"order_ready","cards":[{"mediaUrl":"http://a.ec/f.png"}]` + ab), 400, "INVALID_MEDIA_URL"},
		"code too long":       {hsmBody(`"elementName":"otp","parameters":["1234567890123456"]`), 400, "15 characters"},
		"url in code":         {hsmBody(`"elementName":"otp","parameters":["www.a.ec"]`), 400, "no URL"},
		"no destinations":     {`{"elementName":"order_ready"` + ab + `}`, 422, "destinations is required"},
		"empty destinations":  {`{"destinations":[],"elementName":"order_ready"` + ab + `}`, 422, "1 to 1000"},
		"destination twice":   {`{"destinations":["593991234567","593991234567"],"elementName":"order_ready"` + ab + `}`, 422, "differ"},
		"destination as text": {`{"destinations":"593991234567","elementName":"order_ready"` + ab + `}`, 422, "must be an array"},
		"destination with +":  {`{"destinations":["593991234567","+593987654321"],"elementName":"order_ready"` + ab + `}`, 422, "destinations[1]"},
		"value as number":     {hsmBody(`"elementName":"order_ready","parameters":["a",2]`), 422, "parameters[1] must be a string"},
		"name in upper case":  {hsmBody(`"elementName":"Order_ready"` + ab), 422, "elementName"},
		"both spellings":      {hsmBody(`"elementName":"order_ready","filename":"a","fileName":"b"` + ab), 422, "fileName must not come"},
		"dashboard's extras":  {hsmBody(`"elementName":"order_ready","origin":"OPERATOR_VIEW"` + ab), 422, "origin is not a known"},
		"type file":           {hsmBody(`"elementName":"invoice_ready","type":"file"` + ab), 422, "type must be one of"},
		"four buttons":        {hsmBody(`"elementName":"order_ready","buttonPayloads":[{},{},{},{}]` + ab), 422, "1 to 3"},
		"not an object":       {`[]`, 400, "notification_could_not_be_send"},
	} {
		t.Run(name, func(t *testing.T) {
			s := New(cfg)
			got := do(s, "POST", hsmPath, tc.body)
			if got.status != tc.status || !strings.Contains(got.body, tc.says) {
				t.Errorf("got %d %s, want %d with %s", got.status, got.body, tc.status, tc.says)
			}
			if n := len(s.Sends(0)); n != 0 {
				t.Errorf("accepted %d sends in spite of that", n)
			}
		})
	}
}

func TestMissingTemplateIsDialectD(t *testing.T) {
	got := do(New(world()), "POST", hsmPath, hsmBody(`"elementName":"none","language":"es","parameters":["Lucia"]`))
	want := `{"_metadata":{"body":{"botId":"demo","botName":"demo","code":"es","destinations":[{"destination":"593991234567"}],` +
		`"elementName":"none","parameters":["Lucia"],"type":"text"},"error":{}},"message":["Template does not exist"],"status":"failed"}`
	if got.body != want {
		t.Errorf("got %s\nwant %s", got.body, want)
	}
}

func TestOneCallWithTwoDestinationsIsTwoSends(t *testing.T) {
	s := New(world())
	two := strings.Replace(ready, `["593991234567"]`, `["593991234567","593987654321"]`, 1)
	var sent []struct{ ID, Destination string }
	if err := json.Unmarshal([]byte(do(s, "POST", hsmPath, two).body), &sent); err != nil {
		t.Fatal(err)
	}
	sends := s.Sends(0)
	if len(sent) != 2 || len(sends) != 2 || sent[0].ID == sent[1].ID || sends[1].ID != sent[1].ID ||
		sends[1].Recipient != sent[1].Destination || sent[1].Destination != "593987654321" {
		t.Fatalf("answered %+v, kept %+v", sent, sends)
	}
	do(s, "POST", hsmPath, ready) // the first destination once more
	r := s.Report()
	want := []Doubled{{sends[0].Fingerprint, 2}}
	if r.Arrived != 2 || r.Accepted != 3 || r.Duplicates != 1 || !cmp.Equal(r.Doubled, want) {
		t.Errorf("report %+v, want 2 arrived, 3 accepted, 1 duplicate", r)
	}
}

func TestTemplateLists(t *testing.T) {
	for path, want := range map[string]string{
		"/v1/bots/demo/templates":                                    "order_ready invoice_ready order_photo draft_promo",
		"/v1/bots/demo/templates?status=PENDING":                     "draft_promo",
		"/v1/bots/demo/templates?status=APPROVED&category=MARKETING": "",
		"/v1/whatsapp/demo/hsm?status=APPROVED&isVisible=1":          "order_ready invoice_ready order_photo",
		"/v1/whatsapp/demo/hsm?isVisible=0":                          "",
	} {
		got := do(New(world()), "GET", path, "")
		var items []struct{ ElementName string }
		var err error
		if strings.HasPrefix(path, "/v1/bots") {
			var page struct{ Data *json.RawMessage }
			if err = json.Unmarshal([]byte(got.body), &page); err == nil {
				err = json.Unmarshal(*page.Data, &items)
			}
		} else {
			err = json.Unmarshal([]byte(got.body), &items)
		}
		names := []string{}
		for _, it := range items {
			names = append(names, it.ElementName)
		}
		if list := strings.Join(names, " "); err != nil || list != want {
			t.Errorf("%s: got %q (%v) from %s, want %q", path, list, err, got.body, want)
		}
	}
	for _, path := range []string{"/v1/bots/demo/templates?state=APPROVED", "/v1/bots/demo/templates?status=approved", "/v1/whatsapp/demo/hsm?isVisible=yes"} {
		if got := do(New(world()), "GET", path, ""); got.status != http.StatusUnprocessableEntity || !strings.Contains(got.body, "validationError") {
			t.Errorf("%s: got %d %s, want a validation error", path, got.status, got.body)
		}
	}
}
