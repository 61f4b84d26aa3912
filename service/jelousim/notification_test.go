package jelousim

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// sendTemplate gives the notification's id.
func sendTemplate(t *testing.T, s *Server, body string) string {
	t.Helper()
	var sent []struct{ ID string }
	got := do(s, "POST", hsmPath, body)
	if err := json.Unmarshal([]byte(got.body), &sent); err != nil {
		t.Fatalf("%d %s: %v", got.status, got.body, err)
	}
	return sent[0].ID
}

func TestNotificationMovesWithTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := world()
		cfg.Unreachable = []string{"593900000009"}
		cfg.ExternalByID = true
		s := New(cfg)
		id := sendTemplate(t, s, ready)
		failed := sendTemplate(t, s, strings.Replace(ready, "593991234567", "593900000009", 1))
		for _, tc := range []struct {
			after                 time.Duration
			older, external, lost string
			read                  bool
		}{
			{0, Created, Created, Created, false},
			{199 * time.Millisecond, Created, Created, Created, false},
			{time.Millisecond, DeliveredChannel, DeliveredChannel, Failed, false},
			{800 * time.Millisecond, DeliveredUser, DeliveredUser, Failed, false},
			{4 * time.Second, DeliveredUser, Read, Failed, true},
			{time.Hour, DeliveredUser, Reply, Failed, true},
		} {
			time.Sleep(tc.after)
			if tc.after == time.Hour {
				if err := s.Inbound("demo", "593991234567"); err != nil {
					t.Fatal(err)
				}
			}
			want := fmt.Sprintf(`"sentStatus":%q,"wasRead":%t}`, tc.older, tc.read)
			if got := do(s, "GET", "/v1/bots/demo/notifications/"+id, ""); !strings.HasSuffix(got.body, want) {
				t.Errorf("after %v: older read %s, want %s", tc.after, got.body, want)
			}
			want = fmt.Sprintf(`"sentStatus":%q`, tc.external)
			if got := do(s, "GET", "/v1/external/bots/demo/notifications/"+id, ""); !strings.Contains(got.body, want) {
				t.Errorf("after %v: external read %s, want %s", tc.after, got.body, want)
			}
			want = fmt.Sprintf(`"sentStatus":%q`, tc.lost)
			got := do(s, "GET", "/v1/bots/demo/notifications/"+failed, "")
			if !strings.Contains(got.body, want) || (tc.lost == Failed) != strings.Contains(got.body, "131026") {
				t.Errorf("after %v: unreachable %s, want %s", tc.after, got.body, want)
			}
		}
	})
}

func TestNeverRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := world()
		cfg.Delivery.NeverRead = true
		s := New(cfg)
		id := sendTemplate(t, s, ready)
		time.Sleep(time.Hour)
		got := do(s, "GET", "/v1/bots/demo/notifications/"+id, "")
		if !strings.Contains(got.body, `"sentStatus":"DELIVERED_USER","wasRead":false`) {
			t.Errorf("got %s", got.body)
		}
	})
}

func TestNotificationByID(t *testing.T) {
	cfg := world()
	cfg.Companies[0].Bots = append(cfg.Companies[0].Bots, Bot{ID: "second"})
	s := New(cfg)
	id := sendTemplate(t, s, ready)
	do(s, "POST", sendPath, hello)
	message := s.Sends(0)[1].ID
	for path, tc := range map[string]struct {
		status int
		says   string
	}{
		"/v1/bots/demo/notifications/" + id:                         {200, `"id":"` + id + `"`},
		"/v1/bots/second/notifications/" + id:                       {404, "NOTIFICATION_NOT_FOUND"},
		"/v1/bots/demo/notifications/" + message:                    {404, "NOTIFICATION_NOT_FOUND"},
		"/v1/bots/demo/notifications/none":                          {404, "NOTIFICATION_NOT_FOUND"},
		"/v1/bots/demo/notifications/" + id + "?x=1":                {422, "E0422"},
		"/v1/external/bots/demo/notifications/" + id:                {404, "No such route"},
		"/v1/external/bots/demo/notifications?messageId=" + id:      {200, `"total":1,`},
		"/v1/external/bots/demo/notifications?messageId=" + message: {200, `"total":0,`},
		"/v1/bots/demo/notifications?messageId=" + id:               {422, "messageId"},
	} {
		if got := do(s, "GET", path, ""); got.status != tc.status || !strings.Contains(got.body, tc.says) {
			t.Errorf("%s: got %d %s, want %d with %s", path, got.status, got.body, tc.status, tc.says)
		}
	}
}

type page struct {
	Pagination struct{ Total, TotalPages, Limit, Page, Offset int }
	Metadata   struct {
		Stats map[string]int
	} `json:"_metadata"`
	Results []struct{ ID, Destination string }
}

func TestNotificationLists(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(world()) // a bubble begins at 2000-01-01T00:00:00Z
		ids := []string{}
		for i := range 25 {
			body := strings.Replace(ready, "593991234567", fmt.Sprintf("5939000000%02d", i), 1)
			if i%5 == 0 {
				body = strings.Replace(body, "{", `{"campaignId":"c5",`, 1)
			}
			ids = append(ids, sendTemplate(t, s, body))
			time.Sleep(time.Hour)
		}
		do(s, "POST", hsmPath, hsmBody(`"elementName":"order_photo","type":"image","mediaUrl":"`+mediaURL+`","parameters":["a"]`))
		for _, tc := range []struct {
			query         string
			total, onPage int
			first         string
		}{
			{"", 26, 10, ""},
			{"?limit=50", 26, 26, ""},
			{"?limit=10&page=3", 26, 6, ids[5]},
			{"?limit=10&page=4", 26, 0, ""},
			{"?elementName=order_ready&limit=1", 25, 1, ids[24]},
			{"?campaignId=c5", 5, 5, ids[20]},
			{"?from=2000-01-02", 2, 2, ""},
			{"?to=2000-01-01&limit=1", 24, 1, ids[23]},
			{"?from=2000-01-01T03:00:00Z&to=2000-01-01T04:00:00Z", 2, 2, ids[4]},
			{"?from=2000-01-01T03:00:00-05:00&to=2000-01-01T03:00:00-05:00", 1, 1, ids[8]},
		} {
			for _, prefix := range []string{"/v1/external/bots/", "/v1/bots/"} {
				got := do(s, "GET", prefix+"demo/notifications"+tc.query, "")
				var p page
				if err := json.Unmarshal([]byte(got.body), &p); err != nil || got.status != 200 {
					t.Fatalf("%s: %d %s: %v", tc.query, got.status, got.body, err)
				}
				if p.Pagination.Total != tc.total || len(p.Results) != tc.onPage || p.Metadata.Stats["TOTAL_HSM"] != tc.total {
					t.Errorf("%s%s: %+v with %d rows, want %d of %d", prefix, tc.query, p.Pagination, len(p.Results), tc.onPage, tc.total)
				}
				if tc.first != "" && p.Results[0].ID != tc.first {
					t.Errorf("%s%s: begins with %s, want %s", prefix, tc.query, p.Results[0].ID, tc.first)
				}
			}
		}
	})
}

func TestFiltersOfTheOlderList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := world()
		cfg.Unreachable = []string{"593987654321"}
		s := New(cfg)
		sendTemplate(t, s, strings.Replace(ready, `"593991234567"`, `"593991234567","593987654321","EC.8h3Kq0Zt"`, 1))
		time.Sleep(time.Minute)
		for query, total := range map[string]int{
			"status=FAILED": 1, "status=DELIVERED_USER": 2, "status=DELIVERED_CHANNEL": 0,
			"destination=EC.8h3Kq0Zt": 1, "origin=API": 3, "origin=BULK": 0, "download=false": 3,
		} {
			var p page
			got := do(s, "GET", "/v1/bots/demo/notifications?"+query, "")
			if err := json.Unmarshal([]byte(got.body), &p); err != nil || p.Pagination.Total != total {
				t.Errorf("%s: got %d %s, want %d", query, got.status, got.body, total)
			}
			if external := do(s, "GET", "/v1/external/bots/demo/notifications?"+query, ""); external.status != 422 {
				t.Errorf("%s: the external list took it: %d", query, external.status)
			}
		}
		for _, query := range []string{"limit=51", "limit=0", "limit=x", "limit=1&limit=2", "page=0", "from=yesterday", "stats=FAILED", "status=failed", "download=true", "%zz"} {
			if got := do(s, "GET", "/v1/bots/demo/notifications?"+query, ""); got.status != 422 || !strings.Contains(got.body, `"code":"E0422"`) {
				t.Errorf("%s: got %d %s, want E0422", query, got.status, got.body)
			}
		}
		if got := do(s, "GET", "/v1/bots/demo/notifications", "{}"); got.status != 422 {
			t.Errorf("a read with a body: got %d", got.status)
		}
	})
}
