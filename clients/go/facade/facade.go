// Package facade connects to jelou-facade: with a request_id on every send, so that retries are safe, with the published retries
// and deadlines, and with errors that read as the API means them.
package facade

import (
	"context"
	"time"

	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/jelou-facade/jelou-facade/clients"
	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// Dial makes a connection for the generated clients. The options are gRPC's own and have to say how the connection is secured.
func Dial(target string, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.NewClient(target, append([]grpc.DialOption{
		grpc.WithDefaultServiceConfig(clients.ServiceConfig),
		grpc.WithChainUnaryInterceptor(unaryRequestID),
		grpc.WithChainStreamInterceptor(streamRequestID),
	}, options...)...)
}

// unaryRequestID stands outside of gRPC's retries: all attempts of a call have one id.
func unaryRequestID(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	setRequestID(request)
	return invoke(ctx, method, request, reply, conn, options...)
}

func streamRequestID(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, options ...grpc.CallOption) (grpc.ClientStream, error) {
	stream, err := open(ctx, desc, conn, method, options...)
	return identifying{stream}, err
}

type identifying struct{ grpc.ClientStream }

func (s identifying) SendMsg(m any) error {
	setRequestID(m)
	return s.ClientStream.SendMsg(m)
}

// setRequestID gives what has none an id of its own. Dry runs take none.
func setRequestID(request any) {
	switch r := request.(type) {
	case *facadev1.SendMessageRequest:
		if !r.ValidateOnly {
			setIfEmpty(&r.RequestId)
		}
	case *facadev1.SendNotificationRequest:
		if !r.ValidateOnly {
			setIfEmpty(&r.RequestId)
		}
	case *facadev1.CreateBatchRequest:
		if r.Spec != nil && !r.ValidateOnly {
			setIfEmpty(&r.Spec.RequestId)
		}
	case *facadev1.ReplayBatchRequest:
		setIfEmpty(&r.RequestId)
	case *facadev1.StreamBatchRequest:
		if spec := r.GetOpen().GetSpec(); spec != nil {
			setIfEmpty(&spec.RequestId)
		}
	}
}

func setIfEmpty(id *string) {
	if *id == "" {
		*id = uuid.NewString()
	}
}

// Failure is what an error of the API says beside its gRPC code.
type Failure struct {
	Code                  string                                  // the gRPC code's name, such as NOT_FOUND
	*errdetails.ErrorInfo                                         // reason, domain, metadata; never nil
	Fields                []*errdetails.BadRequest_FieldViolation // what is wrong with the request
	// RetryDelay is how long to wait before the call is repeated with the same request_id. Zero: a retry does not help.
	RetryDelay time.Duration
}

// Explain reads the details of an error. An error of another origin has an empty reason.
func Explain(err error) Failure {
	st := status.Convert(err)
	f := Failure{Code: code.Code(st.Code()).String(), ErrorInfo: &errdetails.ErrorInfo{}}
	for _, detail := range st.Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			f.ErrorInfo = d
		case *errdetails.BadRequest:
			f.Fields = d.FieldViolations
		case *errdetails.RetryInfo:
			f.RetryDelay = d.RetryDelay.AsDuration()
		}
	}
	return f
}
