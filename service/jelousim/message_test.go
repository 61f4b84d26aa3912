package jelousim

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const mediaURL = "https://cdn.example.ec/f/991"

// bodies that Jelou's documentation allows, without userId.
var allowed = map[string]string{
	"text":           `"type":"text","text":"Hola"`,
	"longest text":   `"type":"text","text":"` + strings.Repeat("ñ", 4096) + `"`,
	"same bot":       `"type":"text","text":"Hola","botId":"demo"`,
	"flat list":      `"type":"text","text":"Elija","title":"Sucursales","buttonText":{"type":"text","text":"Ver"},"options":[{"id":"uio","title":"Quito","description":"Norte"},{"id":"gye","title":"Guayaquil"}]`,
	"nested list":    `"type":"text","text":"Elija","buttons":{"title":"Sucursales","options":[{"title":"Quito","payload":"uio"},{"title":"Guayaquil","payload":"gye"}]}`,
	"quick replies":  `"type":"quick_reply","text":"Sigue?","title":"Pedido","quick_replies":[{"title":"Si"},{"title":"No"},{"title":"Mas tarde"}]`,
	"image":          `"type":"image","mediaUrl":"` + mediaURL + `.jpg","text":"Foto"`,
	"video":          `"type":"video","mediaUrl":"` + mediaURL + `.mp4"`,
	"audio":          `"type":"audio","mediaUrl":"` + mediaURL + `.ogg"`,
	"file":           `"type":"file","mediaUrl":"` + mediaURL + `.pdf","filename":"factura.pdf","text":"Su factura"`,
	"sticker":        `"type":"sticker","mediaUrl":"` + mediaURL + `.webp"`,
	"no ending":      `"type":"image","mediaUrl":"https://cdn.example.ec/image?id=3"`,
	"location":       `"type":"location","coordinates":{"lat":0,"long":-78.47}`,
	"location asked": `"type":"location_request","text":"Donde?"`,
	"contacts":       `"type":"contacts","contacts":[{"name":{"formatted_name":"Ana P","first_name":"Ana"},"phones":[{"phone":"+593991234567","type":"CELL","wa_id":"593991234567"}],"emails":[{"email":"a@b.ec","type":"WORK"}],"addresses":[{"city":"Quito","country_code":"EC"}]}]`,
	"cta_url":        `"type":"cta_url","title":"Pedido","text":"Vea","caption":"Gracias","parameters":{"display_text":"Abrir","url":"https://example.ec"}`,
	"voice_call":     `"type":"voice_call","header":"Ayuda","text":"Llame","parameters":{"display_text":"Llamar"}`,
	"carousel":       `"type":"CAROUSEL","text":"Vea","parameters":{"cards":[` + cardJSON(0) + `,` + cardJSON(1) + `]}`,
	"older flow":     `"type":"flow","text":"Llene","parameters":{"flow_id":"77","flow_cta":"Abrir","flow_name":"alta","flow_action_payload":{"screen":"UNO"},"mode":"draft","flow_action":"navigate","flow_message_version":"3"}`,
	"extra type":     `"type":"hologram","depth":3`,
}

func cardJSON(i int) string {
	return fmt.Sprintf(`{"card_index":%d,"type":"cta_url","header":{"type":"image","image":{"link":"%s.png"}},"body":{"text":"Uno"},"action":{"name":"cta_url","parameters":{"display_text":"Ver","url":"https://example.ec"}}}`, i, mediaURL)
}

func TestMessagesThatAreAccepted(t *testing.T) {
	cfg := world()
	cfg.ExtraTypes = []string{"hologram"}
	for name, fields := range allowed {
		t.Run(name, func(t *testing.T) {
			s := New(cfg)
			got := do(s, "POST", sendPath, `{"userId":"593991234567",`+fields+`}`)
			if got.status != 200 || !strings.Contains(got.body, `"messageId":"msg_`) {
				t.Errorf("got %d %s", got.status, got.body)
			}
			inBody := strings.Replace(fields, `,"botId":"demo"`, "", 1)
			if got = do(s, "POST", "/v1/whatsapp/messages", `{"userId":"593991234567","botId":"demo",`+inBody+`}`); got.status != 200 {
				t.Errorf("with the bot in the body: got %d %s", got.status, got.body)
			}
			if sends := s.Sends(0); len(sends) != 2 || sends[0].Fingerprint != sends[1].Fingerprint {
				t.Errorf("sends %+v, want two of the same content", sends)
			}
		})
	}
}

func TestMessagesThatAreRefused(t *testing.T) {
	long := func(n int) string { return strings.Repeat("x", n) }
	for name, tc := range map[string]struct{ body, says string }{
		"not JSON":              {`{"type":`, "one JSON object"},
		"two values":            {hello + hello, "one JSON object"},
		"array":                 {`[` + hello + `]`, "one JSON object"},
		"empty":                 {``, "one JSON object"},
		"a member twice":        {`{"type":"text","userId":"593991234567","text":"a","text":"b"}`, "twice"},
		"not UTF-8":             {"{\"type\":\"text\",\"userId\":\"593991234567\",\"text\":\"\xff\"}", "UTF-8"},
		"too deep":              {strings.Repeat("[", 40) + strings.Repeat("]", 40), "nested"},
		"no type":               {`{"userId":"593991234567","text":"a"}`, "type is not a message type"},
		"type in another case":  {message(`"type":"TEXT","text":"a"`), "type is not"},
		"carousel lower case":   {message(strings.Replace(allowed["carousel"], "CAROUSEL", "carousel", 1)), "type is not"},
		"document":              {message(`"type":"document","mediaUrl":"` + mediaURL + `"`), "type is not"},
		"withdrawn template":    {message(`"type":"template","templateId":"1"`), "type is not"},
		"unlisted type":         {message(allowed["extra type"]), "type is not"},
		"unknown field":         {message(`"type":"text","text":"a","preview":true`), "preview is not a known field"},
		"no user":               {`{"type":"text","text":"a"}`, "userId is required"},
		"user as number":        {`{"type":"text","userId":593991234567,"text":"a"}`, "userId must be"},
		"user with plus":        {`{"type":"text","userId":"+593991234567","text":"a"}`, "userId must be"},
		"user with suffix":      {`{"type":"text","userId":"593991234567@c.us","text":"a"}`, "userId must be"},
		"short phone":           {`{"type":"text","userId":"5939","text":"a"}`, "userId must be"},
		"other bot":             {message(`"type":"text","text":"a","botId":"disabled"`), "botId must be"},
		"no text":               {message(`"type":"text"`), "text is required"},
		"text null":             {message(`"type":"text","text":null`), "text must be a string"},
		"text as number":        {message(`"type":"text","text":5`), "text must be a string"},
		"text empty":            {message(`"type":"text","text":""`), "text must not be empty"},
		"text blank":            {message(`"type":"text","text":" \n"`), "text must not be empty"},
		"text with NUL":         {message(`"type":"text","text":"a\u0000"`), "U+0000"},
		"text too long":         {message(`"type":"text","text":"` + long(4097) + `"`), "at most 4096"},
		"list body too long":    {message(`"type":"text","text":"` + long(1025) + `","options":[{"id":"1","title":"a"}]`), "at most 1024"},
		"no options":            {message(`"type":"text","text":"a","options":[]`), "1 to 10"},
		"eleven options":        {message(`"type":"text","text":"a","options":[` + strings.TrimSuffix(strings.Repeat(`{"id":"1","title":"a"},`, 11), ",") + `]`), "1 to 10"},
		"option twice":          {message(`"type":"text","text":"a","options":[{"id":"1","title":"a"},{"id":"1","title":"b"}]`), "differ"},
		"option title too long": {message(`"type":"text","text":"a","options":[{"id":"1","title":"` + long(25) + `"}]`), "options[0].title must have at most 24"},
		"option description":    {message(`"type":"text","text":"a","options":[{"id":"1","title":"a","description":"` + long(73) + `"}]`), "at most 72"},
		"option without id":     {message(`"type":"text","text":"a","options":[{"title":"a"}]`), "options[0].id is required"},
		"button text as string": {message(`"type":"text","text":"a","buttonText":"Ver","options":[{"id":"1","title":"a"}]`), "buttonText must be an object"},
		"both lists":            {message(`"type":"text","text":"a","options":[{"id":"1","title":"a"}],"buttons":{}`), "buttons is not a known field"},
		"four replies":          {message(`"type":"quick_reply","text":"a","quick_replies":[{"title":"1"},{"title":"2"},{"title":"3"},{"title":"4"}]`), "1 to 3"},
		"no replies":            {message(`"type":"quick_reply","text":"a","quick_replies":[]`), "1 to 3"},
		"reply twice":           {message(`"type":"quick_reply","text":"a","quick_replies":[{"title":"1"},{"title":"1"}]`), "differ"},
		"reply too long":        {message(`"type":"quick_reply","text":"a","quick_replies":[{"title":"` + long(21) + `"}]`), "at most 20"},
		"reply with payload":    {message(`"type":"quick_reply","text":"a","quick_replies":[{"title":"1","payload":"p"}]`), "payload is not a known"},
		"reply with emoji":      {message(`"type":"quick_reply","text":"a","quick_replies":[{"title":"Si 👍"}]`), "emoji"},
		"reply with markdown":   {message(`"type":"quick_reply","text":"a","quick_replies":[{"title":"*Si*"}]`), "markdown"},
		"header too long":       {message(`"type":"quick_reply","text":"a","title":"` + long(61) + `","quick_replies":[{"title":"1"}]`), "at most 60"},
		"no media":              {message(`"type":"image"`), "mediaUrl is required"},
		"media as object":       {message(`"type":"image","mediaUrl":{}`), "mediaUrl must be a string"},
		"caption too long":      {message(`"type":"image","mediaUrl":"` + mediaURL + `","text":"` + long(1025) + `"`), "at most 1024"},
		"file name too long":    {message(`"type":"file","mediaUrl":"` + mediaURL + `","filename":"` + long(48) + `"`), "at most 47"},
		"caption on audio":      {message(`"type":"audio","mediaUrl":"` + mediaURL + `","text":"a"`), "text is not a known"},
		"lng":                   {message(`"type":"location","coordinates":{"lat":0,"lng":0}`), "coordinates.long is required"},
		"latitude as string":    {message(`"type":"location","coordinates":{"lat":"0","long":0}`), "coordinates.lat must be a number"},
		"latitude 91":           {message(`"type":"location","coordinates":{"lat":91,"long":0}`), "from -90 to 90"},
		"contact without name":  {message(`"type":"contacts","contacts":[{}]`), "contacts[0].name is required"},
		"contact's phone":       {message(`"type":"contacts","contacts":[{"name":{"formatted_name":"A"},"phones":[{"phone":"09 99"}]}]`), "E.164"},
		"contact's e-mail":      {message(`"type":"contacts","contacts":[{"name":{"formatted_name":"A"},"emails":[{"email":"a"}]}]`), "e-mail"},
		"cta without label":     {message(`"type":"cta_url","text":"a","parameters":{"url":"https://example.ec"}`), "display_text is required"},
		"cta by http":           {message(`"type":"cta_url","text":"a","parameters":{"display_text":"a","url":"http://example.ec"}`), "https URL"},
		"one card":              {message(`"type":"CAROUSEL","text":"a","parameters":{"cards":[` + cardJSON(0) + `]}`), "2 to 10"},
		"cards from 1":          {message(`"type":"CAROUSEL","text":"a","parameters":{"cards":[` + cardJSON(1) + `,` + cardJSON(2) + `]}`), "count from 0"},
		"flow without screen":   {message(`"type":"flow","text":"a","parameters":{"flow_id":"1","flow_cta":"a","flow_action_payload":{}}`), "screen is required"},
	} {
		t.Run(name, func(t *testing.T) {
			s := New(world())
			got := do(s, "POST", sendPath, tc.body)
			if got.status != 422 && got.status != 400 || !strings.Contains(got.body, tc.says) {
				t.Errorf("got %d %s, want %q", got.status, got.body, tc.says)
			}
			if n := len(s.Sends(0)); n != 0 {
				t.Errorf("accepted %d sends in spite of that", n)
			}
		})
	}
}

func message(fields string) string { return `{"userId":"593991234567",` + fields + `}` }

func TestMediaTokens(t *testing.T) {
	for target, token := range map[string]string{
		"http://cdn.example.ec/a.jpg":                         "INVALID_MEDIA_URL",
		"ftp://cdn.example.ec/a.jpg":                          "INVALID_MEDIA_URL",
		"https:///a.jpg":                                      "INVALID_MEDIA_URL",
		"https://user:pass@cdn.example.ec/a":                  "INVALID_MEDIA_URL",
		"https://localhost/a.jpg":                             "INVALID_MEDIA_URL",
		"https://10.0.0.1/a.jpg":                              "INVALID_MEDIA_URL",
		"https://[::1]/a.jpg":                                 "INVALID_MEDIA_URL",
		"no url":                                              "INVALID_MEDIA_URL",
		"https://cdn.example.ec/a.PDF":                        "UNSUPPORTED_MEDIA_TYPE",
		"https://cdn.example.ec/" + strings.Repeat("a", 2048): "INVALID_MEDIA_URL",
	} {
		got := do(New(world()), "POST", sendPath, message(`"type":"image","mediaUrl":"`+target+`"`))
		if got.status != 400 || !strings.Contains(got.body, `"code":"`+token+`"`) {
			t.Errorf("%.40s: got %d %s, want %s", target, got.status, got.body, token)
		}
	}
}

func TestRefusalsDoNotRepeatValues(t *testing.T) {
	s := New(world())
	for _, body := range []string{
		`{"type":"text","userId":"+593999888777","text":"a"}`,
		message(`"type":"image","mediaUrl":"http://canary.example/x"`),
		message(`"type":"location_request","text":{"canary":1}`),
	} {
		if got := do(s, "POST", sendPath, body); strings.Contains(got.body, "593999888777") || strings.Contains(got.body, "canary") {
			t.Errorf("repeats what was sent: %s", got.body)
		}
	}
}

func TestBotInTheBody(t *testing.T) {
	for body, status := range map[string]int{
		`{"botId":"demo","type":"text","userId":"593991234567","text":"a"}`:     200,
		`{"type":"text","userId":"593991234567","text":"a"}`:                    422,
		`{"botId":7,"type":"text","userId":"593991234567","text":"a"}`:          422,
		`{"botId":"none","type":"text","userId":"593991234567","text":"a"}`:     404,
		`{"botId":"disabled","type":"text","userId":"593991234567","text":"a"}`: 403,
	} {
		if got := do(New(world()), "POST", "/v1/whatsapp/messages", body); got.status != status {
			t.Errorf("%s: got %d %s, want %d", body, got.status, got.body, status)
		}
	}
}

func TestFlowMessage(t *testing.T) {
	const body = `{"title":"Alta","text":"Llene","caption":"Gracias","parameters":{"flow_name":"alta","flow_cta":"Abrir","flow_action_payload":{"screen":"UNO"}}}`
	s := New(world())
	if got := do(s, "POST", "/v1/bots/demo/users/593991234567/flow_message", body); got.status != 200 || got.body != "{}" {
		t.Errorf("got %d %s, want an empty object", got.status, got.body)
	}
	for path, tc := range map[string]struct {
		body   string
		status int
	}{
		"/v1/bots/demo/users/+593991234567/flow_message": {body, 422},
		"/v1/bots/demo/users/593900000000/flow_message":  {body, 400},
		"/v1/bots/none/users/593991234567/flow_message":  {body, 404},
		"/v1/bots/demo/users/593991234567/flow_message":  {strings.Replace(body, "flow_cta", "cta", 1), 422},
	} {
		if got := do(s, "POST", path, tc.body); got.status != tc.status {
			t.Errorf("%s: got %d %s, want %d", path, got.status, got.body, tc.status)
		}
	}
	if n := len(s.Sends(0)); n != 1 {
		t.Errorf("%d sends, want 1", n)
	}
}

func TestSessionWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(world())
		send := func(user string) reply {
			return do(s, "POST", sendPath, `{"type":"text","userId":"`+user+`","text":"a"}`)
		}
		check := func(when, user string, status int) {
			t.Helper()
			if got := send(user); got.status != status {
				t.Errorf("%s: got %d %s, want %d", when, got.status, got.body, status)
			}
		}
		check("open at the start", "593991234567", 200)
		check("never wrote", "593900000001", 400)
		if got := send("593900000001"); !strings.Contains(got.body, "message_could_not_be_send") || !strings.Contains(got.body, "24-hour") {
			t.Errorf("closed window: got %s", got.body)
		}
		time.Sleep(12 * time.Hour)
		if err := s.Inbound("demo", "593900000001"); err != nil {
			t.Fatal(err)
		}
		check("wrote", "593900000001", 200)
		time.Sleep(12*time.Hour - time.Nanosecond)
		check("last moment", "593991234567", 200)
		time.Sleep(time.Nanosecond)
		check("after 24 hours", "593991234567", 400)
		check("wrote 12 hours ago", "593900000001", 200)
		if err := s.Inbound("none", "593900000001"); err == nil {
			t.Error("an unknown bot got a message")
		}
		if err := s.Inbound("demo", "+593900000001"); err == nil {
			t.Error("a user with + wrote")
		}
	})
}

func TestOutsideWindowAcceptedAndFailedLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := world()
		cfg.OutsideWindow = OutsideFail
		s := New(cfg)
		if got := do(s, "POST", sendPath, `{"type":"text","userId":"593900000001","text":"a"}`); got.status != 200 {
			t.Fatalf("got %d %s", got.status, got.body)
		}
		if status := s.Sends(0)[0].Status; status != Created {
			t.Errorf("at once: %s", status)
		}
		time.Sleep(time.Second)
		if status := s.Sends(0)[0].Status; status != Failed {
			t.Errorf("later: %s", status)
		}
	})
}

func TestEveryoneOpen(t *testing.T) {
	cfg := world()
	cfg.EveryoneOpen = true
	if got := do(New(cfg), "POST", sendPath, `{"type":"text","userId":"EC.8h3Kq0ZtX","text":"a"}`); got.status != http.StatusOK {
		t.Errorf("got %d %s", got.status, got.body)
	}
}

func TestSendsWithText(t *testing.T) {
	s := New(world())
	do(s, "POST", sendPath, message(`"type":"text","text":"uno"`))
	do(s, "POST", sendPath, message(`"type":"text","text":"dos"`))
	do(s, "POST", sendPath, message(`"type":"image","mediaUrl":"`+mediaURL+`","text":"uno"`))
	do(s, "POST", hsmPath, ready)
	for text, want := range map[string]int{"uno": 2, "dos": 1, "tres": 0, "Lucia 991": 1} {
		if got := s.SendsWithText(text); len(got) != want {
			t.Errorf("%q: %d sends, want %d", text, len(got), want)
		}
	}
	if r := s.Report(); r.Duplicates != 0 {
		t.Errorf("%d duplicates among different contents", r.Duplicates)
	}
}
