package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// hostileWait is how long an answer is waited for.
const hostileWait = 3 * time.Second

// rawCodec sends and receives bytes as they are.
type rawCodec struct{}

// Name is encoding.Codec's.
func (rawCodec) Name() string { return "proto" }

// Marshal is encoding.Codec's.
func (rawCodec) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

// Unmarshal is encoding.Codec's.
func (rawCodec) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = bytes.Clone(data)
	return nil
}

// methods are all of the API.
var methods = func() (all []protoreflect.MethodDescriptor) {
	services := facadev1.File_jelou_facade_v1_message_service_proto.Package()
	protoregistry.GlobalFiles.RangeFilesByPackage(services, func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			for k := range f.Services().Get(i).Methods().Len() {
				all = append(all, f.Services().Get(i).Methods().Get(k))
			}
		}
		return true
	})
	return all
}()

func anyMethod(rng *rand.Rand) protoreflect.MethodDescriptor { return methods[rng.IntN(len(methods))] }

// randomFields is a message whose fields have anything in them, down to a depth.
func (a *attack) randomFields(d protoreflect.MessageDescriptor, rng *rand.Rand, depth int) protoreflect.Message {
	m := dynamicpb.NewMessage(d)
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		if f.Name() == "bot_id" && rng.IntN(2) == 0 {
			m.Set(f, protoreflect.ValueOfString(a.tenant.bot()))
			continue
		}
		if rng.IntN(3) == 0 || f.Message() != nil && depth == 0 {
			continue
		}
		switch {
		case f.IsMap():
			for range rng.IntN(4) {
				if f.MapValue().Kind() == protoreflect.StringKind && f.MapKey().Kind() == protoreflect.StringKind {
					m.Mutable(f).Map().Set(protoreflect.ValueOfString(utf8Of(nasty(rng))).MapKey(), protoreflect.ValueOfString(utf8Of(nasty(rng))))
				}
			}
		case f.IsList():
			for range rng.IntN(5) {
				m.Mutable(f).List().Append(a.randomValue(f, rng, depth))
			}
		default:
			m.Set(f, a.randomValue(f, rng, depth))
		}
	}
	return m
}

func utf8Of(text string) string { return strings.ToValidUTF8(text, "?") }

func (a *attack) randomValue(f protoreflect.FieldDescriptor, rng *rand.Rand, depth int) protoreflect.Value {
	number := []int64{0, 1, -1, 7, 1 << 31, -1 << 31, 1<<63 - 1, -1 << 63, rng.Int64()}[rng.IntN(9)]
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(rng.IntN(2) == 0)
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(utf8Of(nasty(rng)))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(nasty(rng)))
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(rng.IntN(12) - 1))
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return protoreflect.ValueOfMessage(a.randomFields(f.Message(), rng, depth-1))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(float64(number) / 3)
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32(float32(number) / 3)
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(int32(number))
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(uint32(number))
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(uint64(number))
	default:
		return protoreflect.ValueOfInt64(number)
	}
}

// someMessage is random fields as they go over the wire.
func (a *attack) someMessage(m protoreflect.MethodDescriptor, rng *rand.Rand) []byte {
	data, err := proto.Marshal(a.randomFields(m.Input(), rng, 4).Interface())
	if err != nil {
		return nil // it has a text that is no UTF-8: none is empty
	}
	return data
}

func randomMessage(ctx context.Context, a *attack, kind string, rng *rand.Rand) {
	m := anyMethod(rng)
	a.invoke(ctx, kind, m, a.someMessage(m, rng))
}

func mutatedMessage(ctx context.Context, a *attack, kind string, rng *rand.Rand) {
	m := anyMethod(rng)
	a.invoke(ctx, kind, m, mutate(a.someMessage(m, rng), rng))
}

func randomBytes(ctx context.Context, a *attack, kind string, rng *rand.Rand) {
	data := make([]byte, rng.IntN(4000))
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	if rng.IntN(4) == 0 { // groups in groups, or messages in messages
		data = bytes.Repeat([]byte{0x1b}, rng.IntN(200_000))
	}
	a.invoke(ctx, kind, anyMethod(rng), data)
}

func largeMessage(ctx context.Context, a *attack, kind string, rng *rand.Rand) {
	size := []int{3 << 20, 5 << 20, 9 << 20}[rng.IntN(3)]
	request := &facadev1.SendMessageRequest{BotId: a.tenant.bot(), UserId: "593991234567", Message: text(strings.Repeat("a", size))}
	data, err := proto.Marshal(request)
	if err == nil {
		a.call(ctx, kind, facadev1.MessageService_SendMessage_FullMethodName, data, size > 8<<20)
	}
}

func unknownMethod(ctx context.Context, a *attack, kind string, rng *rand.Rand) {
	names := []string{"/", "/x/y", "/jelou.facade.v1.MessageService/Drop", "/jelou.facade.v1.MessageService/", "//", "/" + strings.Repeat("a", 3000) + "/b", "/grpc.reflection.v1.ServerReflection/Nothing"}
	name := names[rng.IntN(len(names))]
	a.call(ctx, kind, name, nil, name == "/") // which gRPC takes for no name at all
}

func metadataFlood(ctx context.Context, a *attack, kind string, rng *rand.Rand) {
	md := metadata.MD{}
	for range 1 + rng.IntN(100) {
		md.Append("x-"+strings.Repeat("h", rng.IntN(30)), strings.Repeat("v", rng.IntN(1000)))
	}
	if rng.IntN(4) == 0 {
		md.Append("authorization", "Bearer "+strings.Repeat("k", rng.IntN(5000)))
	}
	own, _ := metadata.FromOutgoingContext(ctx)
	md.Append("idempotency-key", utf8Of(strings.Map(printable, nasty(rng))))
	m := anyMethod(rng)
	a.call(metadata.NewOutgoingContext(ctx, metadata.Join(own, md)), kind, fullName(m), a.someMessage(m, rng), true)
}

// printable keeps what a header may have.
func printable(r rune) rune {
	if r < ' ' || r > '~' {
		return -1
	}
	return r
}

func leaves(ctx context.Context, a *attack, kind string, rng *rand.Rand) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(rng.IntN(3000))*time.Microsecond)
	defer cancel()
	m := anyMethod(rng)
	a.invoke(ctx, kind, m, a.someMessage(m, rng))
}

func fullName(m protoreflect.MethodDescriptor) string {
	return "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
}

// invoke calls a method, of whatever kind it is.
func (a *attack) invoke(ctx context.Context, kind string, m protoreflect.MethodDescriptor, data []byte) {
	if m.IsStreamingClient() || m.IsStreamingServer() {
		a.stream(ctx, kind, m, data)
		return
	}
	a.call(ctx, kind, fullName(m), data, false)
}

// call makes a unary call. gRPC itself may refuse where there is no method, or it does not read on.
func (a *attack) call(ctx context.Context, kind, method string, data []byte, mayRefuse bool) {
	ctx, cancel := context.WithTimeout(ctx, hostileWait)
	defer cancel()
	var answer []byte
	err := a.conn.Invoke(ctx, method, &data, &answer, grpc.ForceCodec(rawCodec{}))
	a.judge(ctx, kind, err, mayRefuse)
}

// stream sends messages on a stream and reads until it ends, or for a moment.
func (a *attack) stream(ctx context.Context, kind string, m protoreflect.MethodDescriptor, messages ...[]byte) {
	ctx, cancel := context.WithTimeout(ctx, hostileWait/3)
	defer cancel()
	stream, err := a.conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, fullName(m), grpc.ForceCodec(rawCodec{}))
	for _, data := range messages {
		if err == nil && stream.SendMsg(&data) != nil {
			break // it has ended; RecvMsg says why
		}
	}
	if err == nil {
		err = stream.CloseSend()
	}
	for err == nil {
		var answer []byte
		err = stream.RecvMsg(&answer)
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	a.judge(ctx, kind, err, false)
}

// judge says what a call's error is.
func (a *attack) judge(ctx context.Context, kind string, err error, mayRefuse bool) {
	s, f := status.Convert(err), failureOf(err)
	switch {
	case err == nil:
		a.count(kind, answeredOK, "")
	case f.reason != "":
		a.count(kind, answeredMapped, f.reason)
	case ctx.Err() != nil || s.Code() == codes.DeadlineExceeded || s.Code() == codes.Canceled:
		a.count(kind, answeredLeft, "")
	case mayRefuse:
		a.count(kind, answeredRefused, "")
	case s.Code() == codes.Unavailable: // gRPC's own, for want of a connection
		a.count(kind, answeredCut, describe("%v", err))
	default:
		a.count(kind, answeredUnmapped, describe("%v", err))
	}
}

// streamBatch is the method that takes a stream.
var streamBatch = facadev1.File_jelou_facade_v1_batch_service_proto.Services().ByName("BatchService").Methods().ByName("StreamBatch")

// randomStream sends the messages of a batch in any order.
func randomStream(ctx context.Context, a *attack, kind string, rng *rand.Rand) {
	var messages [][]byte
	for range 1 + rng.IntN(20) {
		data := a.someMessage(streamBatch, rng)
		if rng.IntN(4) == 0 {
			data = mutate(data, rng)
		}
		messages = append(messages, data)
	}
	a.stream(ctx, kind, streamBatch, messages...)
}

// rapidReset opens streams on a connection of its own and resets each at once.
func rapidReset(ctx context.Context, a *attack, kind string, rng *rand.Rand) {
	what := answeredLeft
	defer func() { a.count(kind, what, "") }()
	c, err := net.Dial("tcp", a.facade.conn.Target())
	if err != nil {
		what = answeredRefused
		return
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	if c.SetDeadline(time.Now().Add(hostileWait)) != nil {
		return
	}
	go func() { _, _ = io.Copy(io.Discard, c) }()
	_, _ = io.WriteString(c, http2.ClientPreface)
	framer := http2.NewFramer(c, c)
	_ = framer.WriteSettings()
	var block bytes.Buffer
	headers := hpack.NewEncoder(&block)
	for i := range 100 + rng.IntN(400) {
		block.Reset()
		for _, h := range []hpack.HeaderField{
			{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: fullName(anyMethod(rng))},
			{Name: ":authority", Value: "x"}, {Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"}, {Name: "x-api-key", Value: a.who.key},
		} {
			_ = headers.WriteField(h) // into memory
		}
		id := uint32(2*i + 1)
		if framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true}) != nil || framer.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
			what = answeredCut // it has had enough
			return
		}
		a.resets.Add(1)
	}
}

// rawBytes writes anything to either port.
func rawBytes(ctx context.Context, a *attack, kind string, rng *rand.Rand) {
	what := answeredRefused
	defer func() { a.count(kind, what, "") }()
	port := a.facade.conn.Target()
	begin := http2.ClientPreface
	if rng.IntN(2) == 0 {
		port = a.rest()
		begin = []string{"GET / HTTP/1.1\r\n", "POST /v1/bots/x/messages HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", "\x16\x03\x01", ""}[rng.IntN(4)]
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", port)
	if err != nil {
		return
	}
	defer c.Close()
	data := make([]byte, rng.IntN(2000))
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	_ = c.SetDeadline(time.Now().Add(hostileWait / 3))
	_, _ = c.Write(append([]byte(begin), data...))
	switch _, err := io.Copy(io.Discard, c); {
	case errors.Is(err, os.ErrDeadlineExceeded):
		what = answeredLeft // it waits for more, as it may
	case err != nil:
		what = answeredCut
	}
}
