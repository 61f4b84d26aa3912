package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync/atomic"

	"google.golang.org/genproto/googleapis/rpc/code"
	_ "google.golang.org/genproto/googleapis/rpc/errdetails" // details are read by their @type
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
)

// standIn answers what it is told to every call, over gRPC and REST: errors that a real server cannot be brought to here.
type standIn struct {
	grpc       *grpc.Server
	rest       *http.Server
	grpcAt     string
	restAt     string
	statusGRPC atomic.Pointer[spb.Status]
	statusREST atomic.Pointer[restAnswer]
}

type restAnswer struct {
	http int
	body []byte
}

func newStandIn() (*standIn, error) {
	s := &standIn{}
	s.grpc = grpc.NewServer(grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error {
		return status.ErrorProto(s.statusGRPC.Load())
	}))
	s.rest = &http.Server{ReadHeaderTimeout: startTimeout, Handler: http.HandlerFunc(s.serveREST)}
	for _, side := range []struct {
		at    *string
		serve func(net.Listener) error
	}{{&s.grpcAt, s.grpc.Serve}, {&s.restAt, s.rest.Serve}} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		*side.at = l.Addr().String()
		go func() {
			if err := side.serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
				fmt.Fprintln(os.Stderr, "stand-in:", err)
			}
		}()
	}
	return s, nil
}

func (s *standIn) address(rest bool) string {
	if rest {
		return "http://" + s.restAt
	}
	return s.grpcAt
}

// answer sets what is answered from now on.
func (s *standIn) answer(text json.RawMessage) error {
	var a struct {
		Code    string          `json:"code"`
		HTTP    int             `json:"http"`
		Message string          `json:"message"`
		Details json.RawMessage `json:"details"`
	}
	if err := json.Unmarshal(text, &a); err != nil {
		return err
	}
	number := codes.Code(code.Code_value[a.Code])
	asStatus, err := json.Marshal(map[string]any{"code": number, "message": a.Message, "details": a.Details})
	if err != nil {
		return err
	}
	var st spb.Status
	if err := protojson.Unmarshal(asStatus, &st); err != nil {
		return err
	}
	s.statusGRPC.Store(&st)
	body, err := json.Marshal(map[string]any{"error": map[string]any{"code": a.HTTP, "status": a.Code, "message": a.Message, "details": a.Details}})
	s.statusREST.Store(&restAnswer{http: a.HTTP, body: body})
	return err
}

func (s *standIn) serveREST(w http.ResponseWriter, _ *http.Request) {
	a := s.statusREST.Load()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(a.http)
	_, _ = w.Write(a.body)
}

func (s *standIn) close() {
	s.grpc.Stop()
	_ = s.rest.Close()
}
