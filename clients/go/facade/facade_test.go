package facade

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

func TestRequestID(t *testing.T) {
	spec := func(id string) *facadev1.BatchSpec { return &facadev1.BatchSpec{RequestId: id} }
	open := func(s *facadev1.BatchSpec) *facadev1.StreamBatchRequest {
		return &facadev1.StreamBatchRequest{Request: &facadev1.StreamBatchRequest_Open_{Open: &facadev1.StreamBatchRequest_Open{Batch: &facadev1.StreamBatchRequest_Open_Spec{Spec: s}}}}
	}
	for _, test := range []struct {
		name    string
		request any
		id      func(any) string
		want    string // "*": one was made
	}{
		{"message", &facadev1.SendMessageRequest{}, func(r any) string { return r.(*facadev1.SendMessageRequest).RequestId }, "*"},
		{"message with an id", &facadev1.SendMessageRequest{RequestId: "own"}, func(r any) string { return r.(*facadev1.SendMessageRequest).RequestId }, "own"},
		{"dry run", &facadev1.SendMessageRequest{ValidateOnly: true}, func(r any) string { return r.(*facadev1.SendMessageRequest).RequestId }, ""},
		{"notification", &facadev1.SendNotificationRequest{}, func(r any) string { return r.(*facadev1.SendNotificationRequest).RequestId }, "*"},
		{"batch", &facadev1.CreateBatchRequest{Spec: spec("")}, func(r any) string { return r.(*facadev1.CreateBatchRequest).Spec.RequestId }, "*"},
		{"stream", open(spec("")), func(r any) string { return r.(*facadev1.StreamBatchRequest).GetOpen().GetSpec().RequestId }, "*"},
		{"replay", &facadev1.ReplayBatchRequest{}, func(r any) string { return r.(*facadev1.ReplayBatchRequest).RequestId }, "*"},
		{"filter of a list", &facadev1.ListSendsRequest{}, func(r any) string { return r.(*facadev1.ListSendsRequest).RequestId }, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			setRequestID(test.request)
			if got := test.id(test.request); got != test.want && (test.want != "*" || len(got) != 36) {
				t.Errorf("request_id %q, want %q", got, test.want)
			}
		})
	}
}

func TestExplain(t *testing.T) {
	st, err := status.New(codes.ResourceExhausted, "too many wait").WithDetails(
		&errdetails.ErrorInfo{Reason: "QUEUE_FULL", Domain: "jelou-facade"}, &errdetails.RetryInfo{RetryDelay: durationpb.New(1500 * time.Millisecond)})
	if err != nil {
		t.Fatal(err)
	}
	f := Explain(st.Err())
	if diff := cmp.Diff([]any{"RESOURCE_EXHAUSTED", "QUEUE_FULL", "jelou-facade", 1500 * time.Millisecond}, []any{f.Code, f.Reason, f.Domain, f.RetryDelay}); diff != "" {
		t.Error(diff)
	}
	if f := Explain(errors.New("of another origin")); f.Reason != "" || f.Code != "UNKNOWN" || f.RetryDelay != 0 {
		t.Errorf("%v", f)
	}
}
