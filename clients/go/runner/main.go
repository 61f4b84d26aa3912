// Command runner carries out the calls of clients/run with the Go client.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/jelou-facade/jelou-facade/clients/exchange"
	"github.com/jelou-facade/jelou-facade/clients/go/facade"

	_ "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1" // registers the services
)

func main() {
	r := &runner{conns: map[string]*grpc.ClientConn{}}
	if err := exchange.Serve(os.Stdin, os.Stdout, r.carryOut); err != nil {
		fmt.Fprintln(os.Stderr, "runner:", err)
		os.Exit(1)
	}
}

type runner struct {
	mu    sync.Mutex
	conns map[string]*grpc.ClientConn
}

func (r *runner) carryOut(c exchange.Command, reply func(exchange.Reply)) {
	conn, err := r.dial(c)
	if err == nil && c.Repeat > 0 {
		var seconds float64
		if seconds, err = measure(c, conn); err == nil {
			reply(exchange.Reply{Seconds: seconds})
			return
		}
	}
	if err == nil {
		err = call(c, conn, func(m proto.Message) {
			if data, err := (protojson.MarshalOptions{UseProtoNames: true}).Marshal(m); err == nil {
				reply(exchange.Reply{Message: data})
			}
		})
	}
	reply(exchange.Reply{Status: statusOf(err)})
}

// dial returns the connection of a command; commands with the same address and security share one.
func (r *runner) dial(c exchange.Command) (*grpc.ClientConn, error) {
	key, _ := json.Marshal([]any{c.Address, c.TLS, c.Bare})
	r.mu.Lock()
	defer r.mu.Unlock()
	if conn := r.conns[string(key)]; conn != nil {
		return conn, nil
	}
	security, err := transport(c.TLS)
	if err != nil {
		return nil, err
	}
	connect := facade.Dial
	if c.Bare {
		connect = grpc.NewClient
	}
	conn, err := connect(c.Address, grpc.WithTransportCredentials(security))
	r.conns[string(key)] = conn
	return conn, err
}

func transport(t *exchange.TLS) (credentials.TransportCredentials, error) {
	if t == nil {
		return insecure.NewCredentials(), nil
	}
	pem, err := os.ReadFile(t.CA)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	config.RootCAs.AppendCertsFromPEM(pem)
	if t.Cert != "" {
		own, err := tls.LoadX509KeyPair(t.Cert, t.Key)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{own}
	}
	return credentials.NewTLS(config), nil
}

// call makes one call of any kind and hands its messages over.
func call(c exchange.Command, conn *grpc.ClientConn, received func(proto.Message)) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if c.TimeoutMS > 0 {
		ctx, cancel = context.WithTimeout(ctx, time.Duration(c.TimeoutMS)*time.Millisecond)
		defer cancel()
	}
	for name, value := range c.Metadata {
		ctx = metadata.AppendToOutgoingContext(ctx, name, value)
	}
	method, requests, err := parse(c)
	if err != nil {
		return err
	}
	if !method.IsStreamingServer() {
		answer := newMessage(method.Output())
		if err := conn.Invoke(ctx, "/"+c.RPC, requests[0], answer); err != nil {
			return err
		}
		received(answer)
		return nil
	}
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: method.IsStreamingClient()}, "/"+c.RPC)
	if err != nil {
		return err
	}
	for _, request := range requests {
		if stream.SendMsg(request) != nil {
			break // the stream has ended: RecvMsg says why
		}
	}
	if !c.KeepOpen {
		if err := stream.CloseSend(); err != nil {
			return err
		}
	}
	return receive(c, stream, method.Output(), cancel, received)
}

func receive(c exchange.Command, stream grpc.ClientStream, kind protoreflect.MessageDescriptor, cancel func(), received func(proto.Message)) error {
	seen := map[string]int{}
	for {
		message := newMessage(kind)
		if err := stream.RecvMsg(message); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		received(message)
		message.ProtoReflect().Range(func(field protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
			seen[string(field.Name())]++
			return true
		})
		if enough(c.CancelAfter, seen) {
			cancel()
		}
	}
}

func enough(wanted, seen map[string]int) bool {
	for kind, n := range wanted {
		if seen[kind] < n {
			return false
		}
	}
	return len(wanted) > 0
}

func parse(c exchange.Command) (protoreflect.MethodDescriptor, []proto.Message, error) {
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(strings.ReplaceAll(c.RPC, "/", ".")))
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", c.RPC, err)
	}
	method := found.(protoreflect.MethodDescriptor)
	var requests []proto.Message
	for _, text := range c.Requests {
		request := newMessage(method.Input())
		if err := protojson.Unmarshal(text, request); err != nil {
			return nil, nil, err
		}
		requests = append(requests, request)
	}
	return method, requests, nil
}

func newMessage(d protoreflect.MessageDescriptor) proto.Message {
	kind, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		panic(err) // the generated code registers all
	}
	return kind.New().Interface()
}

// measure repeats a unary call and returns how long all took.
func measure(c exchange.Command, conn *grpc.ClientConn) (float64, error) {
	method, requests, err := parse(c)
	if err != nil {
		return 0, err
	}
	var running sync.WaitGroup
	failed := make(chan error, c.Concurrency)
	start := time.Now()
	for range c.Concurrency {
		running.Go(func() {
			for i := range c.Repeat / c.Concurrency {
				if err := conn.Invoke(context.Background(), "/"+c.RPC, proto.Clone(requests[i%len(requests)]), newMessage(method.Output())); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	running.Wait()
	select {
	case err := <-failed:
		return 0, err
	default:
		return time.Since(start).Seconds(), nil
	}
}

func statusOf(err error) *exchange.Status {
	failure := facade.Explain(err)
	s := &exchange.Status{
		Code: failure.Code, Message: status.Convert(err).Message(), Reason: failure.Reason, Domain: failure.Domain, Metadata: failure.Metadata,
	}
	for _, v := range failure.Fields {
		s.Fields = append(s.Fields, v.Field)
	}
	if failure.RetryDelay > 0 {
		ms := failure.RetryDelay.Milliseconds()
		s.RetryDelayMS = &ms
	}
	return s
}
