package jelou

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// The two generations of the notification reads.
const (
	olderNotifications = "/v1/bots"          // https://docs.jelou.ai/whatsapp/hsm/messages
	newerNotifications = "/v1/external/bots" // https://docs.jelou.ai/en/api/campanas/notificaciones
)

// maxPage is the most that Jelou lists at once.
const maxPage = 50

// ListQuery filters and pages Jelou's records; empty fields filter nothing.
type ListQuery struct {
	// Page from 1; zero means 1.
	Page int
	// Limit is the page's size, 1 to 50; zero means 10.
	Limit int
	// ElementName is the template's technical name.
	ElementName string
	// CampaignID is Jelou's id of the campaign.
	CampaignID string
	// From and To bound the creation.
	From, To time.Time
}

// Page is one page of records.
type Page struct {
	// Notifications are Jelou's records, in its order, which is undocumented.
	Notifications []*facadev1.Notification
	// Next is the number of the following page, 0 on the last one.
	Next int
	// Total is how many records there are in all pages, as Jelou counts.
	Total int
}

// GetNotification reads Jelou's record of one notification. It is one request of the company's allowance.
func (c *Client) GetNotification(ctx context.Context, botID, id string) (*facadev1.Notification, Timing, error) {
	r, refused := c.encodeGet(botID, id)
	if refused != nil {
		return nil, refused.Timing, refused
	}
	a, timing, failed := c.do(ctx, r)
	if failed != nil {
		return nil, timing, failed
	}
	n, failed := decodeRecord(r, a)
	if failed != nil {
		failed.Timing = timing
		return nil, timing, failed
	}
	return n, timing, nil
}

// encodeGet reads by id where that is documented. The newer generation dropped it in favour of the filter messageId.
func (c *Client) encodeGet(botID, id string) (*request, *Error) {
	bot, err := segment("bot_id", botID)
	if err != nil {
		return nil, err
	}
	last, err := segment("notification_id", id)
	if err != nil {
		return nil, err
	}
	path := c.notificationPath + "/" + bot + "/notifications"
	if c.notificationPath == newerNotifications {
		return &request{op: readOne, method: http.MethodGet, path: path, query: url.Values{"messageId": {id}}, id: id}, nil
	}
	return &request{op: readOne, method: http.MethodGet, path: path + "/" + last, id: id}, nil
}

// ListNotifications reads a page of Jelou's records. It is one request of the company's allowance.
func (c *Client) ListNotifications(ctx context.Context, botID string, q ListQuery) (*Page, Timing, error) {
	r, refused := encodeList(botID, q)
	if refused != nil {
		return nil, refused.Timing, refused
	}
	a, timing, failed := c.do(ctx, r)
	if failed != nil {
		return nil, timing, failed
	}
	page, failed := decodePage(r, a, q)
	if failed != nil {
		failed.Timing = timing
		return nil, timing, failed
	}
	return page, timing, nil
}

func encodeList(botID string, q ListQuery) (*request, *Error) {
	bot, err := segment("bot_id", botID)
	if err != nil {
		return nil, err
	}
	query := url.Values{"page": {strconv.Itoa(q.page())}, "limit": {strconv.Itoa(q.limit())}}
	for name, value := range map[string]string{
		"elementName": q.ElementName, "campaignId": q.CampaignID, "from": date(q.From), "to": date(q.To),
	} {
		if value != "" {
			query.Set(name, value)
		}
	}
	return &request{op: readList, method: http.MethodGet, path: newerNotifications + "/" + bot + "/notifications", query: query}, nil
}

func (q ListQuery) page() int { return max(q.Page, 1) }

func (q ListQuery) limit() int {
	if q.Limit <= 0 {
		return 10
	}
	return min(q.Limit, maxPage)
}

func date(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05.000Z")
}

func decodeRecord(r *request, a answer) (*facadev1.Notification, *Error) {
	value, failed := decode(r, a)
	if failed != nil {
		return nil, failed
	}
	if object, ok := value.(map[string]any); ok && isRecord(object) {
		return newNotification(object), nil
	}
	records, ok := elements(value)
	if !ok {
		return nil, lost(r, a, errUnreadable)
	}
	for _, object := range records {
		if text(object["id"]) == r.id {
			return newNotification(object), nil
		}
	}
	return nil, &Error{
		Outcome: Refused, Reason: facadev1.ErrorReason_RESOURCE_NOT_FOUND, Sent: true, Status: a.status,
		Message: messages[facadev1.ErrorReason_RESOURCE_NOT_FOUND],
	}
}

func decodePage(r *request, a answer, q ListQuery) (*Page, *Error) {
	value, failed := decode(r, a)
	if failed != nil {
		return nil, failed
	}
	records, ok := elements(value)
	if !ok {
		return nil, lost(r, a, errUnreadable)
	}
	page := &Page{}
	for _, object := range records {
		page.Notifications = append(page.Notifications, newNotification(object))
	}
	object, _ := value.(map[string]any)
	pagination, _ := object["pagination"].(map[string]any)
	total, counted := number(pagination["total"])
	pages, paged := number(pagination["totalPages"])
	page.Total = len(records)
	if counted {
		page.Total = total
	}
	switch {
	case paged && q.page() < pages, !paged && counted && q.page()*q.limit() < total:
		page.Next = q.page() + 1
	case !paged && !counted && len(records) >= q.limit():
		page.Next = q.page() + 1 // nothing is said about pages, and this one is full
	}
	return page, nil
}

// elements are the records of a list, however it is wrapped: results, data, a bare array, or one object.
func elements(value any) ([]map[string]any, bool) {
	if object, ok := value.(map[string]any); ok {
		for _, name := range []string{"results", "data", "notifications"} {
			if inner, ok := object[name]; ok {
				return elements(inner)
			}
		}
		return []map[string]any{object}, object["id"] != nil
	}
	array, ok := value.([]any)
	ok = ok || value == nil
	records := []map[string]any{}
	for _, element := range array {
		if object, ok := element.(map[string]any); ok {
			records = append(records, object)
		}
	}
	return records, ok && (len(records) > 0 || len(array) == 0)
}

// number reads a count, as a number or a text.
func number(v any) (int, bool) {
	n, err := strconv.ParseInt(text(v), 10, 32)
	return int(n), err == nil && n >= 0
}

// statuses are Jelou's words for how far a notification came: of the records, of the statistics, and of the events.
var statuses = map[string]facadev1.Notification_Status{
	"CREATED":           facadev1.Notification_CREATED,
	"DELIVERED_CHANNEL": facadev1.Notification_DELIVERED_CHANNEL,
	"DELIVERED_USER":    facadev1.Notification_DELIVERED_USER,
	"READ":              facadev1.Notification_READ,
	"USER_READ":         facadev1.Notification_READ,
	"REPLY":             facadev1.Notification_REPLY,
	"USER_REPLIED":      facadev1.Notification_REPLY,
	"FAILED":            facadev1.Notification_FAILED,
}

// origins are Jelou's words for where a notification was sent from.
var origins = map[string]facadev1.Notification_Origin{
	"API":           facadev1.Notification_API,
	"BULK":          facadev1.Notification_BULK,
	"OPERATOR_VIEW": facadev1.Notification_OPERATOR_VIEW,
}

// newNotification reads a record of either generation. Unknown words become unspecified, unknown times nil.
func newNotification(v map[string]any) *facadev1.Notification {
	n := &facadev1.Notification{
		NotificationId:      bounded(text(v["id"])),
		Destination:         bounded(Normalize(text(v["destination"]))),
		ElementName:         bounded(text(v["elementName"])),
		CampaignId:          bounded(text(v["campaignId"])),
		Status:              statuses[strings.ToUpper(first(text(v["sentStatus"]), text(v["status"])))],
		Origin:              origins[strings.ToUpper(text(v["origin"]))],
		ErrorMessage:        bounded(errorWords(v["error"])),
		CreateTime:          timestamp(v["createdAt"]),
		SendTime:            timestamp(v["sentDate"]),
		DeliveryChannelTime: timestamp(v["deliveryChannelAt"]),
		DeliveryUserTime:    timestamp(v["deliveryUserAt"]),
		ReadTime:            timestamp(v["readAt"]),
	}
	// In older data the status stays DELIVERED_USER, and reading is a mark of its own.
	if read, _, _ := verdict(v["wasRead"]); (read || n.ReadTime != nil) && n.Status < facadev1.Notification_READ {
		n.Status = facadev1.Notification_READ
	}
	return n
}

// errorWords reads a record's error, whose shape is undocumented.
func errorWords(v any) string {
	if m, ok := v.(map[string]any); ok {
		return first(text(m["description"]), translated(m["clientMessages"]), translated(m["developerMessages"]), words(m["message"]), text(m["key"]), text(m["code"]))
	}
	return words(v)
}

// bounded cuts what the API promises to bound, and makes it fit for a proto's string.
func bounded(s string) string {
	runes := []rune(strings.ToValidUTF8(s, ""))
	return string(runes[:min(len(runes), 1024)])
}

// timestamp reads RFC 3339 or, as Jelou's events have it, epoch milliseconds.
func timestamp(v any) *timestamppb.Timestamp {
	var t time.Time
	switch v := v.(type) {
	case string:
		parsed, err := time.Parse(time.RFC3339Nano, v)
		if err != nil {
			return nil
		}
		t = parsed
	case json.Number:
		millis, err := v.Int64()
		if err != nil || millis <= 0 {
			return nil
		}
		t = time.UnixMilli(millis)
	default:
		return nil
	}
	stamp := timestamppb.New(t.Truncate(time.Millisecond))
	if stamp.CheckValid() != nil {
		return nil
	}
	return stamp
}
