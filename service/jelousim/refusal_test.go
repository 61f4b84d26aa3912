package jelousim

import "testing"

func TestDialects(t *testing.T) {
	body := `{"type":"text","userId":"593991234567"}` // text is missing
	for dialect, want := range map[Dialect]reply{
		"":       {status: 422, body: `{"code":"unprocessable_entity","description":"text is required"}`},
		DialectA: {status: 422, body: `{"code":"unprocessable_entity","description":"text is required"}`},
		DialectB: {status: 422, body: `{"error":{"clientMessages":{"en":"text is required","es":"text is required","pt":"text is required"},"code":"E0422","description":"text is required",` +
			`"developerMessages":{"en":"text is required","es":"text is required","pt":"text is required"},"key":"VALIDATOR_ERROR"},"message":["text is required"],"status":0,"statusMessage":"failed",` +
			`"validationError":{"text":[{"en":"is required","es":"is required","pt":"is required"}]}}`},
		DialectC:     {status: 422, body: `{"message":"text is required"}`},
		DialectD:     {status: 422, body: `{"_metadata":{"body":null,"error":{}},"message":["text is required"],"status":"failed"}`},
		DialectE:     {status: 200, body: `{"message":["text is required"],"status":"failed"}`},
		DialectF:     {status: 422, body: `{"error":"Unprocessable Entity","message":"text is required"}`},
		DialectG:     {status: 422, body: `{"details":[{"code":"invalid","message":"is required","path":"text"}],"error":"Validation failed"}`},
		DialectH:     {status: 422, body: `{"code":"unprocessable_entity","description":"text is required"}`},
		DialectI:     {status: 422, body: "<html><head><title>422 Unprocessable Entity</title></head><body><center><h1>422 Unprocessable Entity</h1></center></body></html>\n"},
		DialectPlain: {status: 422, body: "text is required\n"},
		DialectEmpty: {status: 422},
	} {
		cfg := world()
		if dialect != "" {
			cfg.Dialects = map[string]Dialect{"messages": dialect}
		}
		if got := do(New(cfg), "POST", sendPath, body); got.status != want.status || got.body != want.body {
			t.Errorf("%s: got %d %s\nwant %d %s", dialect, got.status, got.body, want.status, want.body)
		}
	}
}

func TestDialectOfACodeGoesBeforeThatOfAnEndpoint(t *testing.T) {
	cfg := world()
	cfg.Dialects = map[string]Dialect{"messages": DialectF, "bot_not_found": DialectB}
	s := New(cfg)
	if got := do(s, "POST", "/v1/bots/none/messages", hello).body; got[:10] != `{"error":{` {
		t.Errorf("unknown bot: %s", got)
	}
	if got := do(s, "POST", "/v1/bots/disabled/messages", hello).body; got != `{"error":"Forbidden","message":"Bot is not enabled for this company"}` {
		t.Errorf("disabled bot: %s", got)
	}
}
