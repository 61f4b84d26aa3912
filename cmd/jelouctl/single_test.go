package main

import (
	"encoding/csv"
	"strings"
	"testing"
	"time"

	"github.com/jelou-facade/jelou-facade/service/jelousim"
)

// TestSingle: what single sends, their lists and their errors say to people, to scripts and by exit codes.
func TestSingle(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 100, time.Second, func(c *jelousim.Config) {
		c.Faults = []jelousim.Fault{{Kind: jelousim.FaultHang, Accepted: true, Contains: "lost", Delay: jelousim.Duration(20 * time.Second)}}
	})
	w.write(t, "picture.yaml", "image: {media_url: \"https://example.com/a.png\", caption: Su recibo}\n")
	w.write(t, "typo.yaml", "imagen: {media_url: \"https://example.com/a.png\"}\n")
	to := []string{"--to", "593991234567"}
	send := func(args ...string) []string { return append(append([]string{"send"}, to...), args...) }

	for _, c := range []struct {
		name string
		code int
		args []string
		want []string // in either stream
	}{
		{"sent", 0, send("--text", "Hola"), []string{"SENT", "request_id", "message_id"}},
		{"other content", 0, send("--message", "picture.yaml"), []string{"image", "SENT"}},
		{"only checked", 0, send("--text", "Hola", "--validate-only"), []string{"valid; nothing was sent"}},
		{"queued", 0, send("--text", "Luego", "--queue", "--lane", "bulk", "--request-id", "later"), []string{"send_id"}},
		{"template", 0, append([]string{"notify", "--template", "order_ready", "--language", "es", "--param", "a", "--param", "b"}, to...), []string{"notification_ids", "SENT"}},
		{"blank text", exitInvalid, send("--text", " "), []string{"INVALID_FIELD", "message.text.text", "request_id"}},
		{"unknown member", exitInvalid, send("--message", "typo.yaml"), []string{"unknown field \"imagen\""}},
		{"no such file", exitInvalid, send("--message", "none.yaml"), []string{"none.yaml"}},
		{"window closed", exitRefused, []string{"send", "--to", "593987000000", "--text", "Hola"}, []string{"SESSION_WINDOW_CLOSED", "jelouctl notify", "send_id"}},
		{"no such bot", exitRefused, send("--text", "Hola", "--bot", "other"), []string{"BOT_NOT_FOUND"}},
		{"template not approved", exitRefused, append([]string{"notify", "--template", "draft_promo", "--language", "es"}, to...), []string{"TEMPLATE_NOT_FOUND"}},
		{"no server", exitUnavailable, send("--text", "Hola", "--address", "127.0.0.1:1"), []string{"cannot reach the server", "request_id"}},
		{"no recipient", exitUsage, []string{"send", "--text", "Hola"}, []string{`"to" not set`}},
		{"two contents", exitUsage, send("--text", "Hola", "--message", "picture.yaml"), []string{"text", "message"}},
		{"unknown lane", exitUsage, send("--text", "Hola", "--lane", "fast"), []string{"must be one of urgent, normal, bulk"}},
		{"time without zone", exitUsage, send("--text", "Hola", "--at", "2026-12-01 08:00"), []string{"with its zone"}},
		{"unknown format", exitUsage, send("--text", "Hola", "--output", "xml"), []string{"table, json, ndjson, csv"}},
		{"unknown command", exitUsage, []string{"sned"}, []string{"unknown command"}},
		{"no subcommand", exitUsage, []string{"sends"}, []string{"get, list, resolve"}},
		{"no such send", exitRefused, []string{"sends", "get", "nothing"}, []string{"RESOURCE_NOT_FOUND"}},
		{"no such batch", exitRefused, []string{"batch", "get", "nothing"}, []string{"RESOURCE_NOT_FOUND"}},
		{"released elsewhere", exitUsage, []string{"ledger", "release"}, []string{"jelou-facade ledger release"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := w.ctl(t, c.code, c.args...)
			contains(t, a.out+a.err, c.want...)
			if c.code != 0 && a.out != "" {
				t.Errorf("an error wrote %q to standard output", a.out)
			}
			if strings.Contains(a.err, "593") && !strings.Contains(a.err, "such as 593991234567") {
				t.Errorf("a recipient is in the error: %s", a.err)
			}
		})
	}

	t.Run("the same request_id", func(t *testing.T) {
		args := send("--text", "Una vez", "--request-id", "once", "--output", "json")
		first, second := fields(t, w.ctl(t, 0, args...).out), fields(t, w.ctl(t, 0, args...).out)
		if first["send_id"] != second["send_id"] || first["state"] != "SENT" {
			t.Errorf("%v, then %v", first, second)
		}
		contains(t, w.ctl(t, exitInvalid, send("--text", "Otra cosa", "--request-id", "once")...).err, "REQUEST_ID_REUSED")
		found := w.ctl(t, 0, "sends", "list", "--request-id", "once", "--output", "ndjson").out
		if fields(t, found)["send_id"] != first["send_id"] {
			t.Errorf("listed %s", found)
		}
	})

	t.Run("an unknown outcome is settled", func(t *testing.T) {
		failed := w.ctl(t, exitUnknown, send("--text", "lost", "--request-id", "lost-1", "--output", "json", "--timeout", "15s")...)
		message := fields(t, failed.err)["error"].(map[string]any)
		id := message["facts"].(map[string]any)["send_id"].(string)
		if message["exit_code"] != float64(exitUnknown) || message["status"] != "UNKNOWN" {
			t.Errorf("%v", message)
		}
		contains(t, w.ctl(t, 0, "sends", "list", "--state", "unknown").out, id)
		contains(t, w.ctl(t, exitUsage, "sends", "resolve", id, "--as", "pending").err, "must be one of sent, failed")
		contains(t, w.ctl(t, 0, "sends", "resolve", id, "--as", "sent").out, "SENT", "resolved")
		contains(t, w.ctl(t, exitRefused, "sends", "resolve", id, "--as", "failed").err, "NOT_UNKNOWN")
	})

	t.Run("cancelled", func(t *testing.T) {
		at := time.Now().Add(time.Hour).Format(time.RFC3339)
		later := fields(t, w.ctl(t, 0, send("--text", "Mañana", "--at", at, "--output", "json")...).out)
		if later["state"] != "SCHEDULED" {
			t.Errorf("%v", later)
		}
		contains(t, w.ctl(t, 0, "sends", "cancel", later["send_id"].(string)).out, "CANCELLED")
	})

	t.Run("lists", func(t *testing.T) {
		rows, err := csv.NewReader(strings.NewReader(w.ctl(t, 0, "sends", "list", "--state", "sent", "--output", "csv").out)).ReadAll()
		if err != nil || len(rows) < 5 || rows[0][0] != "send_id" {
			t.Errorf("%v %v", rows, err)
		}
		list := fields(t, w.ctl(t, 0, "sends", "list", "--output", "json").out)["sends"].([]any)
		if len(list) < 5 {
			t.Errorf("%v", list)
		}
		contains(t, w.ctl(t, 0, "sends", "list", "--limit", "1").err, "there are more than 1")
		contains(t, w.ctl(t, 0, "sends", "list", "--request-id", "none").out, "no sends")
		if empty := fields(t, w.ctl(t, 0, "batch", "list", "--output", "json").out)["batches"].([]any); len(empty) != 0 {
			t.Errorf("%v", empty)
		}
	})

	t.Run("capacity", func(t *testing.T) {
		contains(t, w.ctl(t, 0, "capacity").out, "allowance   100 requests in 1s", "URGENT", "sending")
		if c := fields(t, w.ctl(t, 0, "capacity", "--once", "--output", "json").out); c["company_id"] != "sandbox" {
			t.Errorf("%v", c)
		}
		live := w.onTerminal(t, "capacity", "--output", "ndjson")
		if !live.until(func(written string) bool { return strings.Contains(written, "\n") }) {
			t.Error(live.written.String())
		}
	})

	t.Run("colour only on a terminal", func(t *testing.T) {
		if a := w.ctl(t, exitRefused, "sends", "get", "nothing"); strings.Contains(a.err, "\x1b") {
			t.Errorf("%q", a.err)
		}
		painted := w.onTerminal(t, "sends", "list", "--state", "sent")
		painted.end(t)
		contains(t, painted.written.String(), "\x1b[32mSENT\x1b[0m")
		command := w.command("sends", "list", "--state", "sent")
		command.Env = append(command.Env, "NO_COLOR=1")
		plain := startTerminal(t, command)
		plain.end(t)
		if strings.Contains(plain.written.String(), "\x1b") {
			t.Errorf("%q", plain.written.String())
		}
	})
}
