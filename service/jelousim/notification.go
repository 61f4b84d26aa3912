package jelousim

import (
	"cmp"
	"regexp"
	"slices"
	"strconv"
	"time"
)

// The states of a send, as the notification reads name them.
const (
	Created          = "CREATED"
	DeliveredChannel = "DELIVERED_CHANNEL"
	DeliveredUser    = "DELIVERED_USER"
	Read             = "READ"
	Reply            = "REPLY"
	Failed           = "FAILED"
)

// progress is how far a send has come at some moment; a zero time has not come yet.
type progress struct {
	status              string
	channel, user, read time.Time
	failure             string
}

// progress is computed from the time that went by: nothing runs between two reads.
func (s *Server) progress(send *Send, now time.Time) progress {
	d, p := s.cfg.Delivery, progress{status: Created}
	reached := func(after Duration, status string) (at time.Time) {
		if at = send.At.Add(time.Duration(after)); now.Before(at) {
			return time.Time{}
		}
		p.status = status
		return at
	}
	if send.failure != "" {
		if !reached(d.Channel, Failed).IsZero() {
			p.failure = send.failure
		}
		return p
	}
	p.channel = reached(d.Channel, DeliveredChannel)
	p.user = reached(d.User, DeliveredUser)
	if !d.NeverRead {
		p.read = reached(d.Read, Read)
	}
	if last := s.inbound[conversation{send.Bot, send.Recipient}]; !p.user.IsZero() && last.After(p.user) {
		p.status = Reply
	}
	return p
}

var (
	atMost50   = matching(regexp.MustCompile(`^([1-9]|[1-4][0-9]|50)$`), "1 to 50")
	pageNumber = matching(regexp.MustCompile(`^[1-9][0-9]{0,5}$`), "a page number from 1")

	// externalQuery is the current page's; https://docs.jelou.ai/en/api/campanas/notificaciones
	externalQuery = map[string]rule{
		"messageId": words(slug), "campaignId": words(slug), "elementName": matching(elementName, "a template's technical name"),
		"from": moment, "to": moment, "limit": atMost50, "page": pageNumber,
	}
	// olderQuery is the older page's, https://docs.jelou.ai/whatsapp/hsm/messages, and the filters of Jelou's own
	// dashboard. Its download=true, a spreadsheet, is not imitated.
	olderQuery = map[string]rule{
		"campaignId": words(slug), "elementName": matching(elementName, "a template's technical name"),
		"from": moment, "to": moment, "limit": atMost50, "page": pageNumber, "download": oneOf("false"),
		"status":      oneOf(DeliveredUser, DeliveredChannel, Failed),
		"destination": user, "origin": oneOf("API", "BULK"),
	}
)

// moment is YYYY-MM-DD or RFC 3339.
func moment(v any, at string, out *violations) {
	if text, ok := v.(string); !ok || parseMoment(text, false).IsZero() {
		out.add(at, "must be YYYY-MM-DD or RFC 3339")
	}
}

// parseMoment is zero for what is no moment. A day that ends a span means its last instant.
func parseMoment(text string, end bool) time.Time {
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t
	}
	t, err := time.Parse(time.DateOnly, text)
	if err == nil && end {
		t = t.Add(day - 1)
	}
	return t
}

// externalNotifications serves GET /v1/external/bots/{botId}/notifications.
func (s *Server) externalNotifications(c *call) answer {
	return s.listNotifications(c, externalQuery, externalRow)
}

// notifications serves GET /v1/bots/{botId}/notifications.
func (s *Server) notifications(c *call) answer {
	return s.listNotifications(c, olderQuery, olderRow)
}

// externalNotification serves GET /v1/external/bots/{botId}/notifications/{notificationId}, where configured.
func (s *Server) externalNotification(c *call) answer {
	if !s.cfg.ExternalByID {
		return s.refuse(c, noRoute)
	}
	return s.oneNotification(c, externalRow)
}

// notification serves GET /v1/bots/{botId}/notifications/{notificationId}.
func (s *Server) notification(c *call) answer { return s.oneNotification(c, olderRow) }

type row func(*Send, progress) map[string]any

func (s *Server) oneNotification(c *call, show row) answer {
	if _, wrong := c.query(nil); len(wrong) > 0 {
		return s.refuse(c, wrongFields(wrong))
	}
	send := s.sends.at(s.byID[c.request.PathValue("notificationId")])
	if send == nil || send.Bot != c.botID || send.Endpoint != HSM || send.ID != c.request.PathValue("notificationId") {
		return s.refuse(c, notificationNotFound)
	}
	return answer{value: show(send, s.progress(send, time.Now()))}
}

func (s *Server) listNotifications(c *call, allowed map[string]rule, show row) answer {
	query, wrong := c.query(allowed)
	if len(wrong) > 0 {
		return s.refuse(c, wrongFields(wrong))
	}
	now, rows, count := time.Now(), []any{}, map[string]int{}
	limit, _ := strconv.Atoi(cmp.Or(query["limit"], "10"))
	page, _ := strconv.Atoi(cmp.Or(query["page"], "1"))
	offset := (page - 1) * limit
	for send := range s.sends.newestFirst() {
		if send.Bot != c.botID || send.Endpoint != HSM {
			continue
		}
		p := s.progress(send, now)
		if !chosen(query, send, p) {
			continue
		}
		if i := count["TOTAL_HSM"]; i >= offset && i < offset+limit {
			rows = append(rows, show(send, p))
		}
		tally(count, p)
	}
	total := count["TOTAL_HSM"]
	return answer{value: map[string]any{
		"pagination": map[string]any{
			"total": total, "totalPages": (total + limit - 1) / limit, "limit": limit, "page": page, "offset": offset,
		},
		"_metadata": map[string]any{"stats": stats(count), "performance": performance(count)},
		"results":   rows,
	}}
}

func chosen(query map[string]string, send *Send, p progress) bool {
	created := send.At.Truncate(time.Millisecond) // as the client reads it
	for name, value := range query {
		ok := true
		switch name {
		case "messageId":
			ok = send.ID == value
		case "campaignId":
			ok = send.campaign == value
		case "elementName":
			ok = send.Kind == value
		case "destination":
			ok = send.Recipient == value
		case "status":
			ok = older(p.status) == value
		case "origin":
			ok = value == "API"
		case "from":
			ok = !created.Before(parseMoment(value, false))
		case "to":
			ok = !created.After(parseMoment(value, true))
		}
		if !ok {
			return false
		}
	}
	return true
}

// tally counts a notification in its state.
func tally(count map[string]int, p progress) {
	count["TOTAL_HSM"]++
	count[older(p.status)]++
	if older(p.status) == DeliveredUser {
		count["TOTAL_DELIVERED"]++
	}
	switch p.status {
	case Read:
		count["USER_READ"]++
	case Reply:
		count["USER_REPLIED"]++
	}
}

func stats(count map[string]int) map[string]any {
	shown := map[string]any{}
	for _, key := range []string{"TOTAL_HSM", "TOTAL_DELIVERED", DeliveredChannel, DeliveredUser, "USER_READ", "USER_REPLIED", Failed} {
		shown[key] = count[key]
	}
	return shown
}

func performance(count map[string]int) map[string]any {
	total := max(count["TOTAL_HSM"], 1)
	return map[string]any{DeliveredUser: 100 * count[DeliveredUser] / total, Failed: 100 * count[Failed] / total}
}

// older is the state in the older reads: there sentStatus ends at DELIVERED_USER, and wasRead tells the rest.
func older(status string) string {
	if slices.Contains([]string{Read, Reply}, status) {
		return DeliveredUser
	}
	return status
}

// olderRow has the members of the older by-id page.
func olderRow(send *Send, p progress) map[string]any {
	r := commonRow(send, p)
	r["internalId"] = send.Fingerprint.String()
	r["sentStatus"] = older(p.status)
	r["wasRead"] = !p.read.IsZero()
	r["sentDate"] = wireTime(p.channel)
	return r
}

// externalRow has the members of the current page's rows, as far as that page could be read.
func externalRow(send *Send, p progress) map[string]any {
	r := commonRow(send, p)
	r["deliveryChannelAt"], r["deliveryUserAt"], r["readAt"] = wireTime(p.channel), wireTime(p.user), wireTime(p.read)
	return r
}

func commonRow(send *Send, p progress) map[string]any {
	r := map[string]any{
		"id": send.ID, "destination": send.Recipient, "elementName": send.Kind, "sentStatus": p.status,
		"campaignId": nil, "origin": "API", "createdAt": wireTime(send.At), "error": nil,
	}
	if send.campaign != "" {
		r["campaignId"] = send.campaign
	}
	if p.failure != "" {
		r["error"] = map[string]any{"message": p.failure} // its shape is undocumented
	}
	return r
}

// wireTime is Jelou's form of a time: RFC 3339 in UTC with milliseconds; null for one that has not come.
func wireTime(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UTC().Format("2006-01-02T15:04:05.000Z")
}
