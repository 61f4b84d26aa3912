package service

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	_ "google.golang.org/grpc/encoding/proto" // registers the codec that is wrapped here
)

// maxRequestBytes bounds a request, over gRPC and REST alike.
const maxRequestBytes = 4 << 20

// maxFrameBytes is where gRPC itself stops reading, with an error that has no details; up to there the codec
// below makes one that has.
const maxFrameBytes = 2 * maxRequestBytes

// A request that cannot be decoded carries one of these as unknown bytes to the guard, because gRPC answers
// errors of codecs itself, without details and before any interceptor. They are no valid field numbers (0), so
// no client can send them.
const (
	markTooLarge  = "\x00too large"
	markMalformed = "\x00malformed"
)

// codec is gRPC's proto codec with errors that reach the guard.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2("proto")} }

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	if data.Len() > maxRequestBytes {
		m.ProtoReflect().SetUnknown([]byte(markTooLarge))
		return nil
	}
	if err := c.CodecV2.Unmarshal(data, v); err != nil {
		proto.Reset(m)
		m.ProtoReflect().SetUnknown([]byte(markMalformed))
	}
	return nil
}
