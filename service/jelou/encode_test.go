package jelou

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"buf.build/go/protovalidate"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// golden is one file of testdata/encode: a send as the API takes it, and the request that Jelou must get.
type golden struct {
	Item    json.RawMessage
	Request struct {
		Method, Path string
		Body         any
	}
}

func mustReadGolden(t testing.TB) map[string]golden {
	t.Helper()
	files, err := filepath.Glob("testdata/encode/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	all := map[string]golden{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var g golden
		if err := json.Unmarshal(data, &g); err != nil {
			t.Fatal(file, err)
		}
		all[strings.TrimSuffix(filepath.Base(file), ".json")] = g
	}
	return all
}

func mustItem(t testing.TB, text string) *facadev1.BatchItem {
	t.Helper()
	item := &facadev1.BatchItem{}
	if err := protojson.Unmarshal([]byte(text), item); err != nil {
		t.Fatal(err)
	}
	return item
}

func TestEncodeGolden(t *testing.T) {
	kinds := map[string]bool{}
	for name, g := range mustReadGolden(t) {
		t.Run(name, func(t *testing.T) {
			item := mustItem(t, string(g.Item))
			if err := protovalidate.Validate(item); err != nil {
				t.Fatal("the golden item breaks a rule:", err)
			}
			r, refused := encode("demo", item)
			if refused != nil {
				t.Fatal(refused)
			}
			kinds[r.kind] = true
			var body any
			if err := json.Unmarshal(r.body, &body); err != nil {
				t.Fatal(err)
			}
			if r.method != g.Request.Method || r.path != g.Request.Path {
				t.Errorf("%s %s, want %s %s", r.method, r.path, g.Request.Method, g.Request.Path)
			}
			if diff := cmp.Diff(g.Request.Body, body); diff != "" {
				t.Error("body, -want +got:\n", diff)
			}
		})
	}
	fields := (&facadev1.Message{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		if kind := string(fields.Get(i).Name()); !kinds[kind] {
			t.Error("no golden file for", kind)
		}
	}
}

func TestNormalize(t *testing.T) {
	for from, want := range map[string]string{
		"593991234567": "593991234567", "+593991234567": "593991234567", "593991234567@c.us": "593991234567",
		"+593991234567@c.us": "593991234567", "EC.8h3Kq0Zt": "EC.8h3Kq0Zt", "++1": "+1", "": "",
		"3f0c9a52-9c1e-4c9e-8a53-0d1b5a7a0b61": "3f0c9a52-9c1e-4c9e-8a53-0d1b5a7a0b61", "a@c.us.b": "a@c.us.b",
	} {
		if got := Normalize(from); got != want {
			t.Errorf("Normalize(%q) = %q, want %q", from, got, want)
		}
	}
}

func TestEncodeEscapesIDs(t *testing.T) {
	flow := mustItem(t, `{"user_id": "a:b@c", "message": {"flow": {"text": "t", "flow_name": "f", "flow_cta": "c", "screen": "s"}}}`)
	r, refused := encode("+593900000000", flow)
	if refused != nil {
		t.Fatal(refused)
	}
	if want := "/v1/bots/%2B593900000000/users/a:b@c/flow_message"; r.path != want {
		t.Errorf("path %s, want %s", r.path, want)
	}
	for _, bot := range []string{"", ".", ".."} {
		if _, refused := encode(bot, flow); refused == nil || refused.Reason != facadev1.ErrorReason_INVALID_FIELD || refused.Sent {
			t.Errorf("bot %q: %v", bot, refused)
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	message := func(user string, m *facadev1.Message) *facadev1.BatchItem {
		return &facadev1.BatchItem{UserId: user, Content: &facadev1.BatchItem_Message{Message: m}}
	}
	nowhere := &facadev1.Message{Content: &facadev1.Message_Location{Location: &facadev1.LocationContent{Latitude: proto.Float64(math.NaN())}}}
	for name, c := range map[string]struct {
		item  *facadev1.BatchItem
		field string
	}{
		"nothing":    {&facadev1.BatchItem{}, "content"},
		"no kind":    {message("1", nil), "message"},
		"no user":    {message("+", nowhere), "user_id"},
		"not a JSON": {message("1", nowhere), "message.location"},
	} {
		_, refused := encode("demo", c.item)
		if refused == nil || refused.Outcome != Refused || refused.Sent || len(refused.Fields) != 1 || refused.Fields[0].Field != c.field {
			t.Errorf("%s: %+v", name, refused)
		}
	}
}

func TestWarnings(t *testing.T) {
	replies := `{"user_id": "1", "message": {"quick_replies": {"text": "t", "title": "` + strings.Repeat("á", 21) + `", "replies": [{"title": "Si"}, {"title": "*No*"}, {"title": "👍"}]}}}`
	if got := Warnings(mustItem(t, replies)); len(got) != 3 {
		t.Error(got)
	}
	if got := Warnings(mustItem(t, strings.Replace(replies, "áá", "á", 1))); len(got) != 2 {
		t.Error("20 characters are as documented:", got)
	}
	if got := Warnings(mustItem(t, `{"user_id": "1", "message": {"contacts": {"contacts": [{"name": {"formatted_name": "Lucia"}}]}}}`)); len(got) != 1 {
		t.Error(got)
	}
	for name, g := range mustReadGolden(t) {
		if got := Warnings(mustItem(t, string(g.Item))); len(got) != 0 {
			t.Error(name, got)
		}
	}
}

// FuzzEncode: every item that keeps the API's rules becomes one JSON object.
func FuzzEncode(f *testing.F) {
	for _, g := range mustReadGolden(f) {
		data, err := proto.Marshal(mustItem(f, string(g.Item)))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, "demo")
	}
	f.Fuzz(func(t *testing.T, data []byte, bot string) {
		item := &facadev1.BatchItem{}
		if proto.Unmarshal(data, item) != nil || protovalidate.Validate(item) != nil {
			return
		}
		r, refused := encode(bot, item)
		if refused != nil {
			if refused.Reason != facadev1.ErrorReason_INVALID_FIELD || refused.Sent {
				t.Fatalf("%+v", refused)
			}
			return
		}
		var body map[string]any
		if err := json.Unmarshal(r.body, &body); err != nil || !utf8.Valid(r.body) {
			t.Fatalf("%v: %s", err, r.body)
		}
		if r.op == sendMessage && body["userId"] != Normalize(item.UserId) {
			t.Fatalf("userId in %s", r.body)
		}
		Warnings(item)
	})
}
