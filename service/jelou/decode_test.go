package jelou

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

const (
	textItem = `{"user_id": "593991234567", "message": {"text": {"text": "Estimada Lucia, su clave es 4821"}}}`
	listItem = `{"user_id": "593991234567", "message": {"list": {"text": "Elija", "options": [{"id": "a", "title": "Quito"}]}}}`
	flowItem = `{"user_id": "EC.8h3Kq0Zt", "message": {"flow": {"text": "t", "flow_name": "f", "flow_cta": "c", "screen": "s"}}}`
	twoItem  = `{"notification": {"element_name": "order_ready", "destinations": ["+593991234567", "593987654321"], "parameters": ["Lucia"]}}`
	oneItem  = `{"notification": {"element_name": "order_ready", "destinations": ["593991234567"]}}`
)

func mustEncode(t testing.TB, item string) *request {
	t.Helper()
	r, refused := encode("demo", mustItem(t, item))
	if refused != nil {
		t.Fatal(refused)
	}
	return r
}

func TestDecodeErrors(t *testing.T) {
	const windowClosed, noTemplate = `{"code":"message_could_not_be_send","description":"The 24 hour window of the user is closed"}`, `{"message":["Template does not exist"],"status":"failed","_metadata":{"error":{},"body":{"destinations":[{"destination":"593991234567"}],"parameters":["Lucia","991"],"elementName":"x","code":"es"}}}`
	envelope := func(code, key, more string) string {
		return `{"message":["El Bot no se pudo encontrar por el momento."],"statusMessage":"failed","status":0,"error":{"code":"` + code + `","key":"` + key +
			`","description":"lookup failed","developerMessages":{"es":"inexistente","en":"unknown thing"},"clientMessages":{"en":"Not available"}}` + more + `}`
	}
	for name, c := range map[string]struct {
		item    string
		status  int
		body    string
		outcome Outcome
		reason  facadev1.ErrorReason
		code    string
	}{
		"A bot":              {textItem, 404, `{"code":"bot_not_found","description":"d"}`, Refused, facadev1.ErrorReason_BOT_NOT_FOUND, "bot_not_found"},
		"A forbidden":        {textItem, 403, `{"code":"forbidden_bot","description":"d"}`, Refused, facadev1.ErrorReason_FORBIDDEN_BOT, "forbidden_bot"},
		"A message":          {textItem, 400, `{"code":"message_could_not_be_send","description":"d"}`, Refused, facadev1.ErrorReason_MESSAGE_COULD_NOT_BE_SEND, "message_could_not_be_send"},
		"A window":           {textItem, 400, windowClosed, Refused, facadev1.ErrorReason_SESSION_WINDOW_CLOSED, "message_could_not_be_send"},
		"A window, Spanish":  {textItem, 400, `{"message":"Han pasado mas de 24 horas desde el ultimo mensaje"}`, Refused, facadev1.ErrorReason_SESSION_WINDOW_CLOSED, ""},
		"A window, 131047":   {flowItem, 400, `{"message":["131047: Re-engagement message"],"status":"failed"}`, Refused, facadev1.ErrorReason_SESSION_WINDOW_CLOSED, ""},
		"A notification":     {twoItem, 400, `{"code":"notification_could_not_be_send","description":"parameters do not match the template"}`, Refused, facadev1.ErrorReason_NOTIFICATION_COULD_NOT_BE_SEND, "notification_could_not_be_send"},
		"A template":         {twoItem, 400, `{"code":"notification_could_not_be_send","description":"The template is not approved"}`, Refused, facadev1.ErrorReason_TEMPLATE_NOT_FOUND, "notification_could_not_be_send"},
		"window of a bot":    {textItem, 403, `{"code":"forbidden_bot","description":"no 24 hour window"}`, Refused, facadev1.ErrorReason_FORBIDDEN_BOT, "forbidden_bot"},
		"A unauthorized":     {textItem, 401, `{"code":"unauthorized","description":"d"}`, Unauthorized, facadev1.ErrorReason_JELOU_UNAUTHORIZED, "unauthorized"},
		"A entity":           {textItem, 422, `{"code":"unprocessable_entity","description":"d"}`, Refused, facadev1.ErrorReason_UNPROCESSABLE_ENTITY, "unprocessable_entity"},
		"A no company":       {textItem, 500, `{"code":"internal_server_error","description":"The token has no company"}`, Misconfigured, facadev1.ErrorReason_JELOU_INTERNAL, "internal_server_error"},
		"A no company, es":   {twoItem, 500, `{"code":"internal_server_error","description":"El token no tiene una compañía"}`, Misconfigured, facadev1.ErrorReason_JELOU_INTERNAL, "internal_server_error"},
		"A belongs to none":  {textItem, 500, `{"code":"internal_server_error","description":"token does not belong to any company"}`, Misconfigured, facadev1.ErrorReason_JELOU_INTERNAL, "internal_server_error"},
		"A other 500":        {textItem, 500, `{"code":"internal_server_error","description":"could not load the settings of the company"}`, Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN, "internal_server_error"},
		"company elsewhere":  {textItem, 500, `{"code":"E0000","description":"oops"}`, Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN, "E0000"},
		"B bot":              {textItem, 404, envelope("E1019", "BOT_NOT_FOUND", ""), Refused, facadev1.ErrorReason_BOT_NOT_FOUND, "BOT_NOT_FOUND"},
		"B bot, only code":   {textItem, 404, `{"error":{"code":"E1019"},"status":"0"}`, Refused, facadev1.ErrorReason_BOT_NOT_FOUND, "E1019"},
		"B field":            {textItem, 422, envelope("E0422", "VALIDATOR_ERROR", `,"validationError":{"text":[{"en":"too long"}]}`), Refused, facadev1.ErrorReason_UNPROCESSABLE_ENTITY, "VALIDATOR_ERROR"},
		"B fault":            {textItem, 500, envelope("E0000", "UNKNOWN_ERROR", ""), Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN, "UNKNOWN_ERROR"},
		"B fault as 401":     {textItem, 401, envelope("E0000", "UNKNOWN_ERROR", ""), Unauthorized, facadev1.ErrorReason_JELOU_UNAUTHORIZED, "UNKNOWN_ERROR"},
		"B in 200":           {textItem, 200, envelope("", "USER_IN_MANUAL_STATE", ""), Refused, facadev1.ErrorReason_UPSTREAM_REFUSED, "USER_IN_MANUAL_STATE"},
		"B known in 200":     {textItem, 200, envelope("E1019", "BOT_NOT_FOUND", ""), Refused, facadev1.ErrorReason_BOT_NOT_FOUND, "BOT_NOT_FOUND"},
		"B fault in 200":     {textItem, 200, envelope("E0000", "UNKNOWN_ERROR", ""), Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN, "UNKNOWN_ERROR"},
		"B E0000 in 200":     {textItem, 200, envelope("E0000", "USER_IN_MANUAL_STATE", ""), Refused, facadev1.ErrorReason_UPSTREAM_REFUSED, "USER_IN_MANUAL_STATE"},
		"B no company":       {textItem, 500, `{"error":{"code":"E0000","key":"NO_COMPANY"},"message":["The token has no company"],"status":0}`, Misconfigured, facadev1.ErrorReason_JELOU_INTERNAL, "NO_COMPANY"},
		"not assigned":       {textItem, 200, `{"statusMessage":"failed","error":{"status":"NOT_ASSIGNED"}}`, Refused, facadev1.ErrorReason_UPSTREAM_REFUSED, "NOT_ASSIGNED"},
		"C":                  {textItem, 401, `{"message":"Authentication failed"}`, Unauthorized, facadev1.ErrorReason_JELOU_UNAUTHORIZED, ""},
		"C as 403":           {textItem, 403, `{"message":"Authentication failed"}`, Unauthorized, facadev1.ErrorReason_JELOU_UNAUTHORIZED, ""},
		"D 400":              {twoItem, 400, noTemplate, Refused, facadev1.ErrorReason_TEMPLATE_NOT_FOUND, ""},
		"D 404":              {twoItem, 404, noTemplate, Refused, facadev1.ErrorReason_TEMPLATE_NOT_FOUND, ""},
		"D 200":              {twoItem, 200, noTemplate, Refused, facadev1.ErrorReason_TEMPLATE_NOT_FOUND, ""},
		"D, Spanish":         {twoItem, 400, `{"message":["No se encontró la plantilla"],"status":"failed"}`, Refused, facadev1.ErrorReason_TEMPLATE_NOT_FOUND, ""},
		"E":                  {textItem, 200, `{"message":["no"],"status":"failed"}`, Refused, facadev1.ErrorReason_UPSTREAM_REFUSED, ""},
		"E in an array":      {textItem, 200, `[{"message":["no"],"status":"failed"}]`, Refused, facadev1.ErrorReason_UPSTREAM_REFUSED, ""},
		"A in 200":           {textItem, 200, `{"code":"forbidden_bot","description":"d"}`, Refused, facadev1.ErrorReason_FORBIDDEN_BOT, "forbidden_bot"},
		"success false":      {textItem, 200, `{"success":false,"messageId":"m"}`, Refused, facadev1.ErrorReason_UPSTREAM_REFUSED, ""},
		"success 0":          {textItem, 200, `{"success":"0"}`, Refused, facadev1.ErrorReason_UPSTREAM_REFUSED, ""},
		"both":               {textItem, 200, `{"success":true,"status":0,"messageId":"m"}`, Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN, ""},
		"F":                  {textItem, 403, `{"error":"Forbidden","message":"not yours"}`, Refused, facadev1.ErrorReason_UPSTREAM_REFUSED, ""},
		"F in 200":           {textItem, 200, `{"error":"Forbidden","message":"not yours"}`, Refused, facadev1.ErrorReason_UPSTREAM_REFUSED, ""},
		"503 in 200":         {textItem, 200, `{"statusCode":503,"message":"later"}`, Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN, ""},
		"429 in 200":         {textItem, 200, `{"statusCode":429,"message":"later"}`, Throttled, facadev1.ErrorReason_UPSTREAM_RATE_LIMITED, ""},
		"G":                  {textItem, 400, `{"error":"Validation failed","details":[{"path":"text","message":"too long","code":"x"}]}`, Refused, facadev1.ErrorReason_UPSTREAM_REFUSED, ""},
		"H code":             {textItem, 400, `{"code":"INVALID_MEDIA_URL","description":"d"}`, Refused, facadev1.ErrorReason_INVALID_MEDIA_URL, "INVALID_MEDIA_URL"},
		"H key":              {textItem, 422, envelope("E1", "MEDIA_TOO_LARGE", ""), Refused, facadev1.ErrorReason_MEDIA_TOO_LARGE, "MEDIA_TOO_LARGE"},
		"H text":             {textItem, 400, `{"message":["refused: UNSUPPORTED_MEDIA_TYPE"]}`, Refused, facadev1.ErrorReason_UNSUPPORTED_MEDIA_TYPE, ""},
		"H plain":            {textItem, 400, `MEDIA_TOO_LARGE`, Refused, facadev1.ErrorReason_MEDIA_TOO_LARGE, ""},
		"H echoed":           {twoItem, 400, `{"message":["no"],"_metadata":{"body":{"x":"MEDIA_TOO_LARGE"}}}`, Refused, facadev1.ErrorReason_UPSTREAM_REFUSED, ""},
		"I 502":              {textItem, 502, `<html>Bad Gateway</html>`, Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN, ""},
		"I 200":              {textItem, 200, `<html>Welcome</html>`, Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN, ""},
		"I 403":              {textItem, 403, `<html>blocked for 24 hours</html>`, Refused, facadev1.ErrorReason_UPSTREAM_REFUSED, ""},
		"truncated":          {textItem, 200, `{"success":true,"messageId":"m`, Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN, ""},
		"two values":         {textItem, 200, `{"success":true,"messageId":"m"}{}`, Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN, ""},
		"empty":              {textItem, 200, ``, Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN, ""},
		"204":                {flowItem, 204, ``, Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN, ""},
		"says nothing":       {textItem, 200, `{}`, Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN, ""},
		"null":               {textItem, 200, `null`, Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN, ""},
		"a number":           {textItem, 200, `1`, Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN, ""},
		"no ids":             {twoItem, 200, `[]`, Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN, ""},
		"ids of others":      {twoItem, 200, `[{"id":"n","destination":"1"}]`, Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN, ""},
		"all refused in 200": {twoItem, 200, `[{"destination":"593991234567","error":"no"},{"destination":"593987654321","error":{"code":"x"}}]`, Refused, facadev1.ErrorReason_UPSTREAM_REFUSED, ""},
		"429":                {textItem, 429, ``, Throttled, facadev1.ErrorReason_UPSTREAM_RATE_LIMITED, ""},
		"429 page":           {textItem, 429, `<html>`, Throttled, facadev1.ErrorReason_UPSTREAM_RATE_LIMITED, ""},
		"408":                {textItem, 408, ``, Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN, ""},
		"499":                {textItem, 499, ``, Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN, ""},
		"502 with a code":    {textItem, 502, `{"code":"bot_not_found","description":"d"}`, Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN, "bot_not_found"},
		"400":                {textItem, 400, ``, Refused, facadev1.ErrorReason_UPSTREAM_REFUSED, ""},
		"413":                {textItem, 413, ``, Refused, facadev1.ErrorReason_UPSTREAM_REFUSED, ""},
		"301":                {textItem, 301, ``, Refused, facadev1.ErrorReason_UPSTREAM_REFUSED, ""},
		"307":                {textItem, 307, ``, Refused, facadev1.ErrorReason_UPSTREAM_REFUSED, ""},
		"308":                {textItem, 308, ``, Refused, facadev1.ErrorReason_UPSTREAM_REFUSED, ""},
		"302":                {textItem, 302, ``, Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN, ""},
		"303":                {textItem, 303, ``, Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN, ""},
		"101":                {textItem, 101, ``, Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN, ""},
		"999":                {textItem, 999, ``, Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN, ""},
		"code with a phone":  {textItem, 400, `{"code":"user_593991234567","description":"d"}`, Refused, facadev1.ErrorReason_UPSTREAM_REFUSED, ""},
		"status is a text":   {textItem, 200, `{"status":"Failed","message":"no"}`, Refused, facadev1.ErrorReason_UPSTREAM_REFUSED, ""},
	} {
		t.Run(name, func(t *testing.T) {
			result, e := decodeSend(mustEncode(t, c.item), answer{status: c.status, body: []byte(c.body)})
			if e == nil {
				t.Fatalf("accepted: %+v", result)
			}
			if e.Outcome != c.outcome || e.Reason != c.reason || e.Code != c.code || e.Status != c.status || !e.Sent {
				t.Errorf("%v %v code %q status %d sent %v, want %v %v %q", e.Outcome, e.Reason, e.Code, e.Status, e.Sent, c.outcome, c.reason, c.code)
			}
			checkPrivate(t, e)
		})
	}
}

// checkPrivate looks for what the items of these tests hold.
func checkPrivate(t *testing.T, e *Error) {
	t.Helper()
	if e.Message == "" || strings.ContainsFunc(e.Message, func(r rune) bool { return r < ' ' }) {
		t.Errorf("message %q", e.Message)
	}
	all := fmt.Sprintf("%s %v %s %v", e.Message, e.Fields, e.Code, e.Unwrap())
	for _, canary := range []string{"593991234567", "Lucia", "4821", "8h3Kq0Zt", "593987654321"} {
		if strings.Contains(all, canary) {
			t.Errorf("%q in %s", canary, all)
		}
	}
}

func TestDecodeAccepted(t *testing.T) {
	sent := func(ids ...string) []*facadev1.Send_SentNotification {
		var list []*facadev1.Send_SentNotification
		for i, destination := range []string{"593991234567", "593987654321"}[:len(ids)] {
			list = append(list, &facadev1.Send_SentNotification{NotificationId: ids[i], Destination: destination})
		}
		return list
	}
	for name, c := range map[string]struct {
		item, body string
		id         string
		sent       []*facadev1.Send_SentNotification
		warnings   int
	}{
		"message":              {textItem, `{"success": true, "messageId": "msg_7f21"}`, "msg_7f21", nil, 0},
		"a number as id":       {textItem, `{"success": "true", "messageId": 12345678901234567890}`, "12345678901234567890", nil, 0},
		"only the id":          {textItem, `{"messageId": "m", "error": null}`, "m", nil, 0},
		"envelope":             {textItem, `{"message":["ok"],"statusMessage":"success","status":1,"data":{"messageId":"m"}}`, "m", nil, 0},
		"array of one":         {textItem, `[{"success": true, "messageId": "m"}]`, "m", nil, 0},
		"without id":           {textItem, `{"success": true}`, "", nil, 1},
		"status as text":       {textItem, `{"status": "success", "messageId": "m"}`, "m", nil, 0},
		"flow":                 {flowItem, `{}`, "", nil, 0},
		"notification":         {twoItem, `[{"id":"a","destination":"593991234567"},{"id":"b","destination":"593987654321"}]`, "", sent("a", "b"), 0},
		"by destination":       {twoItem, `[{"id":"b","destination":593987654321},{"id":1,"destination":"+593991234567"}]`, "", sent("1", "b"), 0},
		"one missing":          {twoItem, `[{"id":"b","destination":"593987654321"}]`, "", sent("", "b"), 1},
		"one refused":          {twoItem, `[{"id":"b","destination":"593987654321"},{"destination":"593991234567","error":"no"}]`, "", sent("", "b"), 1},
		"object":               {oneItem, `{"id":"a","destination":"593991234567"}`, "", sent("a"), 0},
		"without destination":  {oneItem, `[{"id":"a"}]`, "", sent("a"), 0},
		"wrapped":              {oneItem, `{"data":[{"id":"a","destination":"593991234567"}],"status":1}`, "", sent("a"), 0},
		"success without ids":  {twoItem, `{"message":["ok"],"status":"success"}`, "", sent("", ""), 1},
		"twice one":            {oneItem, `[{"id":"a","destination":"593991234567"},{"id":"b","destination":"593991234567"}]`, "", sent("a"), 0},
		"spaces and new lines": {textItem, " \n{\"success\":true,\"messageId\":\"m\"}\n ", "m", nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			result, e := decodeSend(mustEncode(t, c.item), answer{status: 200, body: []byte(c.body)})
			if e != nil {
				t.Fatal(e.Outcome, e)
			}
			if result.MessageID != c.id || len(result.Warnings) != c.warnings {
				t.Errorf("%+v", result)
			}
			if diff := cmp.Diff(c.sent, result.Notifications, cmp.Comparer(func(a, b *facadev1.Send_SentNotification) bool {
				return a.GetNotificationId() == b.GetNotificationId() && a.GetDestination() == b.GetDestination()
			})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDecodeBrokenBody(t *testing.T) {
	r := mustEncode(t, textItem)
	for status, want := range map[int]Outcome{200: Unknown, 400: Refused, 401: Unauthorized, 429: Throttled, 500: Unknown} {
		for _, err := range []error{io.ErrUnexpectedEOF, errTooLarge} {
			if _, e := decodeSend(r, answer{status: status, body: []byte(`{"success":true,"messageId":"m"}`), err: err}); e == nil || e.Outcome != want {
				t.Errorf("%d %v: %v, want %v", status, err, e, want)
			}
		}
	}
}

func TestViolations(t *testing.T) {
	for name, c := range map[string]struct {
		item, body string
		want       []FieldViolation
	}{
		"B": {textItem, `{"validationError":{"text":[{"es":"largo","en":"too long"}],"userId":["wrong"],"zzz":"bad"}}`,
			[]FieldViolation{{"message.text.text", "too long"}, {"user_id", "wrong"}, {"message.text", "bad"}}},
		"indexes": {listItem, `{"validationError":{"options[0].title":"a","options.1.description":"b","buttonText.text":"c","options":"d"}}`,
			[]FieldViolation{{"message.list.button_text", "c"}, {"message.list.options", "d"}, {"message.list.options[1].description", "b"}, {"message.list.options[0].title", "a"}}},
		"G": {twoItem, `{"details":[{"path":"parameters.0","message":"too long"},{"path":["destinations",1],"message":"is no phone"},{"path":"elementName","message":""}]}`,
			[]FieldViolation{{"notification.parameters[0]", "too long"}, {"notification.destinations[1]", "is no phone"}, {"notification.element_name", "Jelou refused it"}}},
		"values": {textItem, `{"validationError":{"593991234567":"\"Estimada\" is 593 99 123 4567, clave"}}`,
			[]FieldViolation{{"message.text", "… is … , …"}}},
	} {
		t.Run(name, func(t *testing.T) {
			_, e := decodeSend(mustEncode(t, c.item), answer{status: 422, body: []byte(c.body)})
			if diff := cmp.Diff(c.want, e.Fields); diff != "" {
				t.Error(diff)
			}
			checkPrivate(t, e)
		})
	}
	var many []string
	for i := range 50 {
		many = append(many, fmt.Sprintf(`"f%d":"bad"`, i))
	}
	_, e := decodeSend(mustEncode(t, textItem), answer{status: 422, body: []byte(`{"validationError":{` + strings.Join(many, ",") + `}}`)})
	if len(e.Fields) != maxFields {
		t.Error(len(e.Fields), "fields")
	}
}

func TestFieldPath(t *testing.T) {
	for _, c := range [][3]string{
		{"document", "text", "message.document.caption"},
		{"document", "fileName", "message.document.filename"},
		{"location", "coordinates.long", "message.location.longitude"},
		{"contacts", "contacts[1].phones[2].phone", "message.contacts.contacts[1].phones[2].phone"},
		{"cta_url", "parameters.display_text", "message.cta_url.display_text"},
		{"carousel", "parameters.cards.1.header.image.link", "message.carousel.cards[1].image_url"},
		{"carousel", "parameters.cards.1.action.parameters.url", "message.carousel.cards[1].url"},
		{"flow", "parameters.flow_action_payload.screen", "message.flow.screen"},
		{"raw", "anything", "message.raw"},
		{"notification", "cards[0].params[1]", "notification.cards[0].parameters[1]"},
		{"notification", "ltoParams.expirationTime", "notification.limited_time_offer.expiration_time"},
		{"text", "", "message.text"},
		{"text", "text.593991234567", "message.text.text"},
	} {
		if got := fieldPath(c[0], c[1]); got != c[2] {
			t.Errorf("%s %s: %s, want %s", c[0], c[1], got, c[2])
		}
	}
}

func TestScrub(t *testing.T) {
	own := ownWords(mustEncode(t, textItem))
	for from, want := range map[string]string{
		"Parameter 2 is missing": "Parameter 2 is missing",
		"User +593 99 123-4567 said \"hello there\" at https://x.ec/a?b=c": "User … said … at …",
		"Authorization: Basic c2FuZGJveDpzZWNyZXQ= was refused":            "Authorization: … was refused",
		"no window for 593991234567@c.us":                                  "no window for …",
		"text Estimada LUCIA, too long":                                    "text … too long",
		"code 4821 was bad":                                                "code … was bad",
		"it's not Jelou's fault":                                           "it's not Jelou's fault",
		"bad value 'Maria Paz' here":                                       "bad value … here",
		"a\nb\x00c":                                                        "a b c",
		"593991234567":                                                     "",
		"":                                                                 "",
	} {
		if got := scrub(from, own); got != want {
			t.Errorf("scrub(%q) = %q, want %q", from, got, want)
		}
	}
	// A word with a number is hidden whole, and so is the name of a member that no API has.
	own = ownWords(mustEncode(t, `{"userId": "593991234567", "message": {"raw": {"type": "text", "text": "Paz20461", "Juan 7": 1}}}`))
	if got := scrub("text Paz20461 of Juan is bad", own); got != "text … of … is bad" {
		t.Error(got)
	}
	if got := scrub(strings.Repeat("long ", 200), nil); len([]rune(got)) != maxWords {
		t.Error(len(got))
	}
}

// No word of the caller's content comes back, however Jelou wraps it.
func TestScrubHidesContent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		content := rapid.SliceOfN(rapid.StringMatching(`[a-zA-Zñáé]{3,12}|[0-9]{1,12}`), 1, 8).Draw(t, "content")
		around := rapid.SliceOfN(rapid.SampledFrom([]string{"is", "to", `"`, "'", ":", "(", ",", "/", "@", "=", "«", " "}), 2, 2).Draw(t, "around")
		item := &facadev1.BatchItem{UserId: "1", Content: &facadev1.BatchItem_Message{Message: &facadev1.Message{
			Content: &facadev1.Message_Text{Text: &facadev1.TextContent{Text: strings.Join(content, " ")}}}}}
		r, refused := encode("demo", item)
		if refused != nil {
			t.Fatal(refused)
		}
		said := scrub("a b "+around[0]+strings.ToUpper(strings.Join(content, around[1]))+around[0], ownWords(r))
		for _, w := range content {
			for _, left := range split(said) {
				if left == strings.ToLower(w) {
					t.Fatalf("%q is left in %q", w, said)
				}
			}
		}
	})
}

func TestRetryAfter(t *testing.T) {
	const date = "Mon, 23 Nov 2026 10:00:00 GMT"
	for value, want := range map[string]time.Duration{
		"": 0, "1": time.Second, "0.25": 250 * time.Millisecond, "-1": 0, "NaN": 0, "soon": 0, "+Inf": time.Hour, "86400": time.Hour,
		"Mon, 23 Nov 2026 10:00:07 GMT": 7 * time.Second, "Mon, 23 Nov 2026 09:00:00 GMT": 0, "Mon, 23 Nov 2099 10:00:00 GMT": time.Hour,
	} {
		if got := retryAfter(http.Header{"Retry-After": {value}, "Date": {date}}); got != want {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
	}
}

func TestOutcomeNames(t *testing.T) {
	for o := Refused; o <= Misconfigured; o++ {
		if o.String() == "none" {
			t.Error(int(o))
		}
	}
	if Outcome(99).String() != "none" || Outcome(-1).String() != "none" {
		t.Error("out of range")
	}
}

// FuzzDecode: any answer becomes a result or an error with a reason, and never a result where Jelou said that it failed.
func FuzzDecode(f *testing.F) {
	items := []string{textItem, flowItem, twoItem, oneItem}
	for _, body := range []string{
		`{"success":true,"messageId":"m"}`, `{}`, `[]`, ``, `null`, `<html>`, `{"success":false}`, `{"status":0}`, `{"status":"failed","message":["x"]}`,
		`[{"id":"a","destination":"593991234567"},{"id":"b","destination":"593987654321"}]`, `{"code":"bot_not_found","description":"d"}`,
		`{"error":{"code":"E0422","key":"VALIDATOR_ERROR"},"validationError":{"text":[{"es":"x"}]}}`, `{"error":"x","details":[{"path":[1],"message":"m"}]}`,
		`{"pagination":{"total":"2","totalPages":1},"results":[{"id":"a","sentStatus":"READ","createdAt":1768482309412,"error":{"a":1}}]}`,
		`{"id":"n","destination":"1","elementName":"e","wasRead":true,"createdAt":"2026-01-15T13:05:09.412Z"}`,
	} {
		for _, status := range []int{200, 400, 429, 500, 307} {
			f.Add(uint8(status%5), status, []byte(body), "1")
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, status int, body []byte, wait string) {
		a := answer{status: status, body: body, header: http.Header{"Retry-After": {wait}}}
		result, e := decodeSend(mustEncode(t, items[int(which)%len(items)]), a)
		checkDecoded(t, status, result != nil, e)
		if result != nil && saysFailed(body) {
			t.Errorf("accepted: %s", body)
		}
		record, e := decodeRecord(&request{op: readOne, id: "n"}, a)
		checkDecoded(t, status, record != nil, e)
		page, e := decodePage(&request{op: readList}, a, ListQuery{})
		checkDecoded(t, status, page != nil, e)
	})
}

func checkDecoded(t *testing.T, status int, decoded bool, e *Error) {
	t.Helper()
	switch {
	case decoded != (e == nil):
		t.Fatalf("decoded %v, error %v", decoded, e)
	case decoded && !success(status):
		t.Fatal("success with status", status)
	case e == nil:
	case e.Reason == facadev1.ErrorReason_ERROR_REASON_UNSPECIFIED || e.Outcome == 0 || e.Message == "":
		t.Fatalf("%+v", e)
	case e.RetryAfter < 0 || e.RetryAfter > maxRetryAfter || len([]rune(e.Message)) > 2*maxWords || len(e.Fields) > maxFields:
		t.Fatalf("not bounded: %+v", e)
	}
}

// saysFailed is a second opinion, with encoding/json's own types.
func saysFailed(body []byte) bool {
	var v map[string]any
	if json.Unmarshal(body, &v) != nil {
		return false
	}
	return v["success"] == false || v["status"] == 0.0 || v["status"] == "failed"
}
