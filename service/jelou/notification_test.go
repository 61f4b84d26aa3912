package jelou

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

const record = `{"id":"n-1","internalId":"x","destination":"+593991234567","elementName":"order_ready","campaignId":null,
	"sentStatus":"DELIVERED_USER","wasRead":false,"origin":"API","createdAt":"2026-01-15T13:05:09.412Z","sentDate":1768482310020,"error":null}`

func wantRecord() *facadev1.Notification {
	return &facadev1.Notification{
		NotificationId: "n-1", Destination: "593991234567", ElementName: "order_ready",
		Status: facadev1.Notification_DELIVERED_USER, Origin: facadev1.Notification_API,
		CreateTime: timestamppb.New(time.Date(2026, 1, 15, 13, 5, 9, 412e6, time.UTC)),
		SendTime:   timestamppb.New(time.Date(2026, 1, 15, 13, 5, 10, 20e6, time.UTC)),
	}
}

func TestDecodeRecord(t *testing.T) {
	for name, body := range map[string]string{
		"flat": record, "array": `[` + record + `]`, "data": `{"data":` + record + `,"status":1}`, "results": `{"results":[` + record + `],"pagination":{}}`,
		"among others": `{"results":[{"id":"n-0"},` + record + `]}`,
	} {
		got, e := decodeRecord(&request{op: readOne, id: "n-1"}, answer{status: 200, body: []byte(body)})
		if e != nil {
			t.Errorf("%s: %v", name, e)
			continue
		}
		if diff := cmp.Diff(wantRecord(), got, protocmp.Transform()); diff != "" {
			t.Error(name, diff)
		}
	}
}

func TestDecodeRecordErrors(t *testing.T) {
	for name, c := range map[string]struct {
		status  int
		body    string
		outcome Outcome
		reason  facadev1.ErrorReason
	}{
		"404":            {404, ``, Refused, facadev1.ErrorReason_RESOURCE_NOT_FOUND},
		"404 of the bot": {404, `{"error":{"code":"E1019","key":"BOT_NOT_FOUND"},"status":0}`, Refused, facadev1.ErrorReason_BOT_NOT_FOUND},
		"not in list":    {200, `{"results":[]}`, Refused, facadev1.ErrorReason_RESOURCE_NOT_FOUND},
		"another one":    {200, `{"results":[{"id":"n-2"}]}`, Refused, facadev1.ErrorReason_RESOURCE_NOT_FOUND},
		"500":            {500, `{"error":{"code":"E0000"}}`, Unknown, facadev1.ErrorReason_UPSTREAM_UNREACHABLE},
		"page":           {200, `<html>`, Unknown, facadev1.ErrorReason_UPSTREAM_UNREACHABLE},
		"truncated":      {200, `{"id":"n-1"`, Unknown, facadev1.ErrorReason_UPSTREAM_UNREACHABLE},
		"302":            {302, ``, Unknown, facadev1.ErrorReason_UPSTREAM_UNREACHABLE},
		"429":            {429, ``, Throttled, facadev1.ErrorReason_UPSTREAM_RATE_LIMITED},
		"401":            {401, `{"message":"Authentication failed"}`, Unauthorized, facadev1.ErrorReason_JELOU_UNAUTHORIZED},
		"failed in 200":  {200, `{"message":["no"],"status":"failed"}`, Refused, facadev1.ErrorReason_UPSTREAM_REFUSED},
	} {
		n, e := decodeRecord(&request{op: readOne, id: "n-1"}, answer{status: c.status, body: []byte(c.body)})
		if e == nil || e.Outcome != c.outcome || e.Reason != c.reason {
			t.Errorf("%s: %v %+v", name, n, e)
		}
	}
}

func TestStatuses(t *testing.T) {
	for body, want := range map[string]facadev1.Notification_Status{
		`{"sentStatus":"CREATED"}`:                                 facadev1.Notification_CREATED,
		`{"sentStatus":"DELIVERED_CHANNEL"}`:                       facadev1.Notification_DELIVERED_CHANNEL,
		`{"sentStatus":"delivered_user"}`:                          facadev1.Notification_DELIVERED_USER,
		`{"sentStatus":"DELIVERED_USER","wasRead":true}`:           facadev1.Notification_READ,
		`{"sentStatus":"DELIVERED_USER","wasRead":1}`:              facadev1.Notification_READ,
		`{"sentStatus":"DELIVERED_USER","wasRead":"false"}`:        facadev1.Notification_DELIVERED_USER,
		`{"sentStatus":"DELIVERED_USER","readAt":1768482310020}`:   facadev1.Notification_READ,
		`{"sentStatus":"USER_READ"}`:                               facadev1.Notification_READ,
		`{"sentStatus":"USER_REPLIED","wasRead":true}`:             facadev1.Notification_REPLY,
		`{"sentStatus":"REPLY"}`:                                   facadev1.Notification_REPLY,
		`{"sentStatus":"FAILED","wasRead":true,"error":{"a":"b"}}`: facadev1.Notification_FAILED,
		`{"sentStatus":"EVAPORATED"}`:                              facadev1.Notification_STATUS_UNSPECIFIED,
		`{"sentStatus":7}`:                                         facadev1.Notification_STATUS_UNSPECIFIED,
		`{"destination":"1","elementName":"e","status":"FAILED"}`:  facadev1.Notification_FAILED,
	} {
		got, e := decodeRecord(&request{op: readOne}, answer{status: 200, body: []byte(body)})
		if e != nil || got.Status != want {
			t.Errorf("%s: %v %v, want %v", body, got, e, want)
		}
	}
}

func TestRecordError(t *testing.T) {
	for body, want := range map[string]string{
		`null`: "", `"131026: undeliverable"`: "131026: undeliverable", `{"description":"gone"}`: "gone", `["a","b"]`: "a",
		`{"clientMessages":{"es":"no","en":"unavailable"}}`: "unavailable", `{"code":131026}`: "131026", `{}`: "",
	} {
		got, e := decodeRecord(&request{op: readOne}, answer{status: 200, body: []byte(`{"sentStatus":"FAILED","error":` + body + `}`)})
		if e != nil || got.ErrorMessage != want {
			t.Errorf("%s: %q %v, want %q", body, got.GetErrorMessage(), e, want)
		}
	}
}

func TestDecodePage(t *testing.T) {
	for name, c := range map[string]struct {
		body               string
		q                  ListQuery
		count, next, total int
	}{
		"current":      {`{"pagination":{"total":2,"totalPages":1,"limit":50,"page":1},"_metadata":{"stats":{"FAILED":1}},"results":[` + record + `,` + record + `]}`, ListQuery{Limit: 50}, 2, 0, 2},
		"more":         {`{"pagination":{"total":"21","totalPages":"3"},"results":[` + record + `]}`, ListQuery{Page: 2}, 1, 3, 21},
		"last":         {`{"pagination":{"total":21,"totalPages":3},"results":[` + record + `]}`, ListQuery{Page: 3}, 1, 0, 21},
		"only a total": {`{"pagination":{"total":11},"results":[` + record + `]}`, ListQuery{}, 1, 2, 11},
		"data":         {`{"data":[` + record + `]}`, ListQuery{}, 1, 0, 1},
		"bare, full":   {`[` + record + `]`, ListQuery{Limit: 1}, 1, 2, 1},
		"empty":        {`{"pagination":{"total":0,"totalPages":0},"results":[]}`, ListQuery{}, 0, 0, 0},
		"null":         {`{"results":null}`, ListQuery{}, 0, 0, 0},
	} {
		page, e := decodePage(&request{op: readList}, answer{status: 200, body: []byte(c.body)}, c.q)
		if e != nil || len(page.Notifications) != c.count || page.Next != c.next || page.Total != c.total {
			t.Errorf("%s: %+v %v", name, page, e)
			continue
		}
		for _, n := range page.Notifications {
			if diff := cmp.Diff(wantRecord(), n, protocmp.Transform()); diff != "" {
				t.Error(name, diff)
			}
		}
	}
	for _, body := range []string{`<html>`, `{"unknown":1}`, `7`, `["a"]`} {
		if page, e := decodePage(&request{op: readList}, answer{status: 200, body: []byte(body)}, ListQuery{}); e == nil || e.Outcome != Unknown || e.Reason != facadev1.ErrorReason_UPSTREAM_UNREACHABLE {
			t.Error(body, page, e)
		}
	}
}
