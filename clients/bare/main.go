// Command bare is a server that answers every SendMessage, over gRPC and REST, with the one answer in a file, and does nothing else:
// clients/run measures beside it what jelou-facade costs a client.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: bare ANSWER.json")
		os.Exit(2)
	}
	if err := serve(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "bare:", err)
		os.Exit(1)
	}
}

// server answers SendMessage.
type server struct {
	facadev1.UnimplementedMessageServiceServer
	answer facadev1.SendMessageResponse
	text   []byte
}

func (s *server) SendMessage(context.Context, *facadev1.SendMessageRequest) (*facadev1.SendMessageResponse, error) {
	return &s.answer, nil
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return // the client has left
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(s.text) // fails only when the client has left
}

// serve serves until the process is ended, and says where.
func serve(name string) error {
	s := &server{}
	var err error
	if s.text, err = os.ReadFile(name); err != nil {
		return err
	}
	if err := protojson.Unmarshal(s.text, &s.answer); err != nil {
		return err
	}
	overGRPC := grpc.NewServer()
	facadev1.RegisterMessageServiceServer(overGRPC, s)
	overREST := &http.Server{Handler: s, ReadHeaderTimeout: time.Minute}
	ended := make(chan error, 2)
	for _, side := range []struct {
		name  string
		serve func(net.Listener) error
	}{{"gRPC ", overGRPC.Serve}, {"REST http://", overREST.Serve}} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		go func() { ended <- side.serve(l) }()
		fmt.Println(side.name + l.Addr().String())
	}
	return <-ended
}
