package contract

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"buf.build/go/protovalidate"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// ruleCase is a message and what it is refused for: "field rule", one for each violation; nothing when it is valid.
type ruleCase struct {
	name    string
	message protoreflect.Name
	json    string
	want    []string
}

// send is a request whose message is given.
func send(name, content string, want ...string) ruleCase {
	return ruleCase{name, "SendMessageRequest", `{"bot_id": "demo", "user_id": "593991234567", "message": ` + content + `}`, want}
}

// template is a request whose template has more members than the required ones.
func template(name, members string, want ...string) ruleCase {
	return ruleCase{name, "SendNotificationRequest",
		`{"bot_id": "demo", "notification": {"element_name": "order_ready", "destinations": ["593991234567"]` + members + `}}`, want}
}

// options is a request whose options are given.
func options(name, members string, want ...string) ruleCase {
	return ruleCase{name, "SendMessageRequest",
		`{"bot_id": "demo", "user_id": "593991234567", "message": {"text": {"text": "Hola"}}, ` + members + `}`, want}
}

func letters(n int) string { return strings.Repeat("ñ", n) }

// list is n JSON values with a comma between them; %d in the value is its number.
func list(n int, value string) string {
	values := make([]string, n)
	for i := range values {
		values[i] = strings.ReplaceAll(value, "%d", fmt.Sprint(i))
	}
	return "[" + strings.Join(values, ",") + "]"
}

var ruleCases = []ruleCase{
	send("shortest text", `{"text": {"text": "1"}}`),
	send("longest text counts characters", `{"text": {"text": "`+letters(4096)+`"}}`),
	send("text too long", `{"text": {"text": "`+letters(4097)+`"}}`, "message.text.text string.max_len"),
	send("empty text", `{"text": {}}`, "message.text.text text.blank"),
	send("blank text", `{"text": {"text": " \n\t"}}`, "message.text.text text.blank"),
	send("text of other blanks", `{"text": {"text": "\u00a0\u2003\u200b"}}`, "message.text.text text.blank"),
	send("text of an emoji", `{"text": {"text": "👍"}}`),
	send("no content", `{}`, "message.content required"),

	send("longest list", `{"list": {"text": "Elija", "options": `+list(10, `{"id": "%d", "title": "`+letters(24)+`"}`)+`}}`),
	send("list without options", `{"list": {"text": "Elija"}}`, "message.list.options repeated.min_items"),
	send("list too long", `{"list": {"text": "Elija", "options": `+list(11, `{"id": "%d", "title": "t"}`)+`}}`, "message.list.options repeated.max_items"),
	send("option without id", `{"list": {"text": "Elija", "options": [{"title": "t"}]}}`, "message.list.options[0].id string.min_len"),
	send("same id twice", `{"list": {"text": "Elija", "options": [{"id": "a", "title": "t"}, {"id": "a", "title": "u"}]}}`, "message.list.options options.unique"),

	send("three replies", `{"quick_replies": {"text": "¿Sí?", "replies": `+list(3, `{"title": "%d"}`)+`}}`),
	send("fourth reply", `{"quick_replies": {"text": "¿Sí?", "replies": `+list(4, `{"title": "%d"}`)+`}}`, "message.quick_replies.replies repeated.max_items"),
	send("same title twice", `{"quick_replies": {"text": "¿Sí?", "replies": [{"title": "a"}, {"title": "a"}]}}`, "message.quick_replies.replies replies.unique"),

	send("media URL", `{"image": {"media_url": "https://cdn.example.ec/a.jpg"}}`),
	send("media URL without TLS", `{"image": {"media_url": "http://cdn.example.ec/a.jpg"}}`, "message.image.media_url media_url"),
	send("media URL that is none", `{"sticker": {"media_url": "https://a b"}}`, "message.sticker.media_url media_url"),

	send("equator and Greenwich", `{"location": {"latitude": 0, "longitude": 0}}`),
	send("poles", `{"location": {"latitude": -90, "longitude": 180}}`),
	send("no longitude", `{"location": {"latitude": 0}}`, "message.location.longitude required"),
	send("past the pole", `{"location": {"latitude": 90.1, "longitude": 0}}`, "message.location.latitude double.gte_lte"),
	send("no number", `{"location": {"latitude": "NaN", "longitude": 0}}`, "message.location.latitude double.gte_lte"),

	send("contact", `{"contacts": {"contacts": [{"name": {"formatted_name": "A"}, "phones": [{"phone": "+593991234567"}],
		"emails": [{"email": "a@example.ec"}], "addresses": [{"country_code": "EC"}, {}]}]}}`),
	send("contact without name", `{"contacts": {"contacts": [{}]}}`, "message.contacts.contacts[0].name required"),
	send("contact with a local number", `{"contacts": {"contacts": [{"name": {"formatted_name": "A"}, "phones": [{"phone": "0991234567"}]}]}}`,
		"message.contacts.contacts[0].phones[0].phone phone.e164"),
	send("contact with a bad address", `{"contacts": {"contacts": [{"name": {"formatted_name": "A"}, "emails": [{"email": "a"}]}]}}`,
		"message.contacts.contacts[0].emails[0].email string.email"),
	send("contact with a country's name", `{"contacts": {"contacts": [{"name": {"formatted_name": "A"}, "addresses": [{"country_code": "ECU"}]}]}}`,
		"message.contacts.contacts[0].addresses[0].country_code country_code"),

	send("one card", `{"carousel": {"text": "Hay", "cards": [{"image_url": "https://a.ec/i", "text": "t", "display_text": "d", "url": "https://a.ec"}]}}`,
		"message.carousel.cards repeated.min_items"),
	send("raw", `{"raw": {"type": "text", "text": "Hola"}}`),
	send("raw without type", `{"raw": {"text": "Hola"}}`, "message.raw raw.type"),
	send("raw with userId", `{"raw": {"type": "text", "userId": "1"}}`, "message.raw raw.reserved"),

	{"bot id with a plus", "GetCapacityRequest", `{"bot_id": "+593900000000"}`, nil},
	{"bot id with NUL", "GetCapacityRequest", `{"bot_id": "a\u0000"}`, []string{"bot_id bot_id"}},
	{"no bot id", "GetCapacityRequest", `{}`, []string{"bot_id bot_id"}},
	{"id", "GetSendRequest", `{"send_id": "s-1.A_b"}`, nil},
	{"id with a line break", "GetSendRequest", `{"send_id": "a\n"}`, []string{"send_id id"}},
	{"longest id", "GetSendRequest", `{"send_id": "` + strings.Repeat("a", 128) + `"}`, nil},
	{"id too long", "GetSendRequest", `{"send_id": "` + strings.Repeat("a", 129) + `"}`, []string{"send_id id"}},
	{"page size", "ListSendsRequest", `{"page_size": 1000}`, nil},
	{"page size too large", "ListSendsRequest", `{"page_size": 1001}`, []string{"page_size int32.gte_lte"}},
	{"negative page size", "ListSendsRequest", `{"page_size": -1}`, []string{"page_size int32.gte_lte"}},
	{"reason", "ListSendsRequest", `{"error_reasons": ["OUTCOME_UNKNOWN"]}`, nil},
	{"reason in small letters", "ListSendsRequest", `{"error_reasons": ["unknown"]}`, []string{"error_reasons[0] reason"}},
	{"negative sequence", "StreamBatchRequest.Seal", `{"item_count": -1}`, []string{"item_count int32.gte"}},

	{"recipients", "TemplateMessage", `{"element_name": "a", "destinations": ["593991234567", "+593991234567", "593991234567@c.us", "EC.8h3Kq0Zt"]}`, nil},
	{"recipient with spaces", "TemplateMessage", `{"element_name": "a", "destinations": ["+593 99 123 4567"]}`, []string{"destinations[0] recipient"}},
	{"recipients that are none", "TemplateMessage", `{"element_name": "a", "destinations": ["1234", "1234567890123456", "EC.8h3Kq0Zt@c.us"]}`,
		[]string{"destinations[0] recipient", "destinations[1] recipient", "destinations[2] recipient"}},
	{"recipient too long", "TemplateMessage", `{"element_name": "a", "destinations": ["` + strings.Repeat("a", 129) + `"]}`, []string{"destinations[0] string.max_len"}},
	{"template name in capitals", "TemplateMessage", `{"element_name": "A", "destinations": ["593991234567"]}`, []string{"element_name element_name"}},
	template("language", `, "language": "pt_BR"`),
	template("language's name", `, "language": "español"`, "notification.language language"),
	template("picture", `, "type": "IMAGE", "media_url": "https://a.ec/i"`),
	template("picture without URL", `, "type": "IMAGE"`, "notification media_url.required"),
	template("unknown type", `, "type": 9, "media_url": "https://a.ec/i"`, "notification.type enum.defined_only"),
	template("media URL with a user", `, "media_url": "https://user:secret@a.ec/i"`, "notification.media_url media_url"),
	template("media URL without host", `, "media_url": "https:///i"`, "notification.media_url media_url"),
	template("media URL without TLS", `, "media_url": "http://a.ec/i"`, "notification.media_url media_url"),

	options("options", `"request_id": "order-8841", "options": {"lane": "URGENT", "labels": {"app": "tienda"}}`),
	options("request id with a space", `"request_id": "order 8841"`, "request_id request_id"),
	options("unknown lane", `"options": {"lane": 9}`, "options.lane enum.defined_only"),
	options("label's key with a space", `"options": {"labels": {"a b": "x"}}`, `options.labels["a b"] label.key`),
	options("label with a line break", `"options": {"labels": {"a": "x\ny"}}`, `options.labels["a"] label.value`),
	options("too many labels", `"options": {"labels": {`+strings.Trim(list(17, `"k%d": ""`), "[]")+`}}`, "options.labels map.max_pairs"),

	{"message in a batch", "BatchItem", `{"user_id": "593991234567", "message": {"text": {"text": "Hola"}}}`, nil},
	{"message without user", "BatchItem", `{"message": {"text": {"text": "Hola"}}}`, []string{" user_id.required"}},
	{"notification with user", "BatchItem", `{"user_id": "593991234567", "notification": {"element_name": "a", "destinations": ["593991234567"]}}`, []string{" user_id.required"}},
	{"bad item of a stream", "StreamBatchRequest", `{"item": {}}`, nil}, // it costs itself, not the stream
	{"bad item of a batch", "CreateBatchRequest", `{"spec": {"bot_id": "demo"}, "items": [{"user_id": "593991234567", "message": {"text": {}}}]}`,
		[]string{"items[0].message.text.text text.blank"}},
	{"resolve", "ResolveSendRequest", `{"send_id": "s", "state": "SENT"}`, nil},
	{"resolve to nothing", "ResolveSendRequest", `{"send_id": "s"}`, []string{"state resolve.state"}},
	{"replay", "ReplayBatchRequest", `{"batch_id": "b", "states": ["FAILED", "UNKNOWN", "EXPIRED"]}`, nil},
	{"replay of what was sent", "ReplayBatchRequest", `{"batch_id": "b", "states": ["SENT"]}`, []string{"states[0] replay.state"}},
}

// company is a configuration with one company that has more members than the required ones.
func company(name, members string, want ...string) ruleCase {
	return ruleCase{name, "Config",
		`{"companies": [{"id": "sandbox", "client_id_file": "id", "client_secret_file": "secret", "bots": ["demo"]` + members + `}]}`, want}
}

var configCases = []ruleCase{
	company("smallest", ``),
	{"no company", "Config", `{}`, []string{"companies repeated.min_items"}},
	{"same company twice", "Config", `{"companies": ` + list(2, `{"id": "a", "client_id_file": "i", "client_secret_file": "s", "bots": ["%d"]}`) + `}`,
		[]string{"companies companies.unique"}},
	{"company's id in capitals", "Company", `{"id": "A", "client_id_file": "i", "client_secret_file": "s", "bots": ["b"]}`, []string{"id company.id"}},
	{"same bot twice", "Company", `{"id": "a", "client_id_file": "i", "client_secret_file": "s", "bots": ["b", "b"]}`, []string{"bots repeated.unique"}},
	{"floor of one", "Company", `{"id": "a", "client_id_file": "i", "client_secret_file": "s", "bots": ["b"], "lower_lane_floor": 1}`, []string{"lower_lane_floor lower_lane_floor"}},
	company("addresses", `, "base_url": "http://127.0.0.1:8090", "proxy_url": "http://proxy:3128", "notification_path": "/v1/external/bots"`),
	company("address with a query", `, "base_url": "https://api.jelou.ai?a=b"`, "companies[0].base_url base_url"),
	company("proxy without scheme", `, "proxy_url": "proxy:3128"`, "companies[0].proxy_url proxy_url"),
	company("another path", `, "notification_path": "/v2"`, "companies[0].notification_path notification_path"),
	company("times", `, "attempt_timeout": "60s", "allowance": {"requests": 5, "window": "0.1s"}, "recipient_interval": "0s"`),
	company("timeout too short", `, "attempt_timeout": "0.9s"`, "companies[0].attempt_timeout duration.gte_lte"),
	company("window too long", `, "allowance": {"window": "61s"}`, "companies[0].allowance.window duration.gte_lte"),
	{"admin", "Admin", `{"address": "[::1]:9464"}`, nil},
	{"admin on purpose", "Admin", `{"address": ":9464", "open_to_network": true}`, nil},
	{"admin open to the network", "Admin", `{"address": "0.0.0.0:9464"}`, []string{" admin.open_to_network"}},
	{"telemetry", "Telemetry", `{"otlp_endpoint": "http://127.0.0.1:4317", "sample_ratio": 1}`, nil},
	{"telemetry without scheme", "Telemetry", `{"otlp_endpoint": "127.0.0.1:4317"}`, []string{"otlp_endpoint otlp_endpoint"}},
	{"listen", "Listen", `{"grpc": "127.0.0.1:0", "http": "[::1]:8080"}`, nil},
	{"listen without port", "Listen", `{"grpc": "127.0.0.1"}`, []string{"grpc address"}},
	{"plaintext and TLS", "Listen", `{"plaintext_behind_proxy": true, "tls": {"cert_file": "a", "key_file": "b"}}`, []string{" listen.plaintext"}},
	{"short grace", "Listen", `{"max_connection_age": "3600s", "max_connection_age_grace": "899s"}`, []string{" listen.grace"}},
	{"caller", "Caller", `{"name": "orders", "keys": [{"sha256": "` + strings.Repeat("0a", 32) + `"}], "tokens": [{"subject": "s"}],
		"certificates": ["uri:spiffe://a/b", "dns:a.b", "cn:c"], "companies": ["*"], "lanes": ["URGENT", "BULK"]}`, nil},
	{"caller without anything", "Caller", `{}`, []string{" caller.credential", "name caller.name", "companies repeated.min_items"}},
	{"caller who may what there is not", "Caller", `{"name": "a", "certificates": ["spiffe://a/b"], "companies": ["a"], "lanes": [0]}`,
		[]string{"certificates[0] certificate", "lanes lanes"}},
	{"admin of a bot", "Caller", `{"name": "a", "certificates": ["cn:a"], "companies": ["a"], "bots": ["b"], "admin": true}`, []string{" caller.admin_bots"}},
	{"key in place of its hash", "Caller.Key", `{"sha256": "jelou-facade_abc"}`, []string{"sha256 sha256"}},
	{"same caller twice", "Config", `{"companies": [{"id": "a", "client_id_file": "i", "client_secret_file": "s", "bots": ["b"]}],
		"callers": ` + list(2, `{"name": "a", "certificates": ["cn:%d"], "companies": ["a"]}`) + `}`, []string{"callers callers.unique"}},
	{"same issuer twice", "Authentication", `{"issuers": ` + list(2, `{"issuer": "i", "audiences": ["a"], "jwks_file": "%d"}`) + `}`, []string{"issuers issuers.unique"}},
	{"issuer", "TokenIssuer", `{"issuer": "i", "audiences": ["a"], "jwks_url": "http://[::1]:80/keys"}`, nil},
	{"issuer without keys", "TokenIssuer", `{"issuer": "i", "audiences": ["a"]}`, []string{" issuer.keys"}},
	{"issuer's keys without TLS", "TokenIssuer", `{"issuer": "i", "audiences": ["a"], "jwks_url": "http://i.ec/keys"}`, []string{"jwks_url jwks_url"}},
	{"ledger", "Ledger", `{"url": "postgres://u@h/d", "retention": "86400s"}`, nil},
	{"ledger twice", "Ledger", `{"path": "a.db", "url": "postgres://u@h/d"}`, []string{" ledger.one"}},
	{"ledger in another database", "Ledger", `{"url": "mysql://u@h/d"}`, []string{"url url"}},
	{"retention too short", "Ledger", `{"retention": "86399s"}`, []string{"retention duration.gte"}},
}

// TestRules gives every kind of rule something to accept and something to refuse.
func TestRules(t *testing.T) {
	validator := newValidator(t)
	refusedBy := map[string]bool{}
	for _, group := range []struct {
		packageName string
		cases       []ruleCase
	}{{"jelou.facade.v1.", ruleCases}, {"jelou.facade.config.v1.", configCases}} {
		for _, test := range group.cases {
			t.Run(test.name, func(t *testing.T) {
				kind, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(group.packageName + string(test.message)))
				if err != nil {
					t.Fatal(err)
				}
				message := kind.New().Interface()
				if err := protojson.Unmarshal([]byte(test.json), message); err != nil {
					t.Fatal(err)
				}
				got := violations(t, validator.Validate(message))
				if diff := cmp.Diff(test.want, got); diff != "" {
					t.Errorf("violations (-want +got):\n%s", diff)
				}
				for _, violation := range got {
					refusedBy[violation[strings.LastIndex(violation, " ")+1:]] = true
				}
			})
		}
	}
	for _, id := range expressionIDs() {
		if !refusedBy[id] {
			t.Errorf("no case is refused by the rule %s", id)
		}
	}
}

// newValidator compiles the rules of all messages, so that an expression that does not compile is found even if no
// case reaches it.
func newValidator(t *testing.T) protovalidate.Validator {
	t.Helper()
	var messages []protoreflect.MessageDescriptor
	eachMessage(func(message protoreflect.MessageDescriptor) { messages = append(messages, message) })
	validator, err := protovalidate.New(protovalidate.WithMessageDescriptors(messages...), protovalidate.WithDisableLazy())
	if err != nil {
		t.Fatal(err)
	}
	return validator
}

// violations are the fields and rules that an error of the validator names.
func violations(t *testing.T, err error) []string {
	t.Helper()
	if err == nil {
		return nil
	}
	var broken *protovalidate.ValidationError
	if !errors.As(err, &broken) {
		t.Fatal(err)
	}
	var names []string
	for _, violation := range broken.Violations {
		names = append(names, protovalidate.FieldPathString(violation.Proto.GetField())+" "+violation.Proto.GetRuleId())
	}
	return names
}

func eachMessage(visit func(protoreflect.MessageDescriptor)) {
	var nested func(protoreflect.MessageDescriptors)
	nested = func(messages protoreflect.MessageDescriptors) {
		for i := range messages.Len() {
			if message := messages.Get(i); !message.IsMapEntry() {
				visit(message)
				nested(message.Messages())
			}
		}
	}
	for _, file := range apiFiles() {
		nested(file.Messages())
	}
}

// expressionIDs are the ids of all CEL rules.
func expressionIDs() []string {
	var ids []string
	collect := func(rules []*validate.Rule) {
		for _, rule := range rules {
			ids = append(ids, rule.GetId())
		}
	}
	eachMessage(func(message protoreflect.MessageDescriptor) {
		collect(proto.GetExtension(message.Options(), validate.E_Message).(*validate.MessageRules).GetCel())
		for i := range message.Fields().Len() {
			rules := proto.GetExtension(message.Fields().Get(i).Options(), validate.E_Field).(*validate.FieldRules)
			collect(rules.GetCel())
			collect(rules.GetRepeated().GetItems().GetCel())
			collect(rules.GetMap().GetKeys().GetCel())
			collect(rules.GetMap().GetValues().GetCel())
		}
	})
	slices.Sort(ids)
	return slices.Compact(ids)
}
