package jelou

import (
	"fmt"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// Result is what Jelou said to a send that it accepted. Acceptance is not delivery.
type Result struct {
	// MessageID is Jelou's id of a message; empty for a notification and for a flow.
	MessageID string
	// Notifications has one entry per destination of a notification, in the order of the request. An id is empty where
	// Jelou gave none.
	Notifications []*facadev1.Send_SentNotification
	// Warnings tells what is missing in Jelou's answer.
	Warnings []string
	// Status is Jelou's HTTP status.
	Status int
	// Timing of the attempt.
	Timing Timing
}

// decodeSend reads the answer to a send. A 2xx alone does not make it sent: the body must say so, or else whatever
// stood in between could. What cannot be read is unknown.
func decodeSend(r *request, a answer) (*Result, *Error) {
	value, failed := decode(r, a)
	if failed != nil {
		return nil, failed
	}
	if array, ok := value.([]any); ok && len(array) == 1 && r.op != sendNotification {
		value = array[0]
	}
	object, isObject := value.(map[string]any)
	result := &Result{}
	accepted := isObject && inspectObject(object).succeeded
	switch r.op {
	case sendMessage:
		data, _ := object["data"].(map[string]any)
		result.MessageID = bounded(first(text(object["messageId"]), text(data["messageId"])))
		accepted = accepted || result.MessageID != ""
		if accepted && result.MessageID == "" {
			result.Warnings = append(result.Warnings, "Jelou accepted the message without giving it an id")
		}
	case sendFlow:
		// Documented as an empty object.
		accepted = accepted || isObject
	case sendNotification:
		given := join(r, value, result)
		accepted = accepted || given > 0
		if missing := len(r.destinations) - given; accepted && missing > 0 {
			result.Warnings = append(result.Warnings, fmt.Sprintf("Jelou gave no notification id for %d of %d destinations", missing, len(r.destinations)))
		}
	}
	if !accepted {
		return nil, lost(r, a, errUnreadable)
	}
	return result, nil
}

// join gives every destination its id. Jelou documents no order, so the destination decides and not the position; only
// the answer to a single one need not repeat it. It returns how many got an id.
func join(r *request, value any, result *Result) int {
	ids := map[string]string{}
	records, _ := elements(value)
	for _, record := range records {
		id, destination := bounded(text(record["id"])), Normalize(text(record["destination"]))
		if destination == "" && len(r.destinations) == 1 && len(records) == 1 {
			destination = r.destinations[0]
		}
		if id != "" && ids[destination] == "" {
			ids[destination] = id
		}
	}
	given := 0
	for _, destination := range r.destinations {
		if ids[destination] != "" {
			given++
		}
		result.Notifications = append(result.Notifications, &facadev1.Send_SentNotification{NotificationId: ids[destination], Destination: destination})
	}
	return given
}
