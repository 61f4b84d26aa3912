// The client on grpc-js, whose service config has the retries and deadlines, with the messages of protobuf-es.
import { fromBinary, toBinary, type DescService, type Message } from "@bufbuild/protobuf";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import * as grpc from "@grpc/grpc-js";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import { StatusSchema } from "./gen/google/rpc/status_pb.js";
import { failure, identified, serviceConfig, type Failure } from "./sends.js";

/** Options of a client: the service config, and an id for every send that has none. */
export const facadeOptions: grpc.ClientOptions = {
  "grpc.service_config": serviceConfig,
  interceptors: [
    (options, next) => new grpc.InterceptingCall(next(options), { sendMessage: (message, send) => send(identified(message)) }),
  ],
};

/** The definition of a service for grpc-js; messages are protobuf-es's. */
export function definition(service: DescService): grpc.ServiceDefinition {
  return Object.fromEntries(service.methods.map((method) => [method.localName, {
    path: `/${service.typeName}/${method.name}`,
    requestStream: method.methodKind === "bidi_streaming" || method.methodKind === "client_streaming",
    responseStream: method.methodKind === "bidi_streaming" || method.methodKind === "server_streaming",
    requestSerialize: (message: Message) => Buffer.from(toBinary(method.input, message)),
    requestDeserialize: (bytes: Buffer) => fromBinary(method.input, bytes),
    responseSerialize: (message: Message) => Buffer.from(toBinary(method.output, message)),
    responseDeserialize: (bytes: Buffer) => fromBinary(method.output, bytes),
  }]));
}

/** A client of a service: client.sendMessage(request, callback), client.streamBatch(). */
export function facadeClient(service: DescService, target: string, credentials: grpc.ChannelCredentials, options = facadeOptions): any {
  const Client = grpc.makeGenericClientConstructor(definition(service), service.typeName);
  return new Client(target, credentials, options);
}

/** Reads the details of an error. */
export function explain(error: grpc.ServiceError): Failure {
  const bytes = error.metadata?.get("grpc-status-details-bin")[0];
  const details = bytes ? fromBinary(StatusSchema, bytes as Buffer).details : [];
  const find = <T>(unpack: (any: (typeof details)[number]) => T | undefined) => details.map(unpack).find((d) => d !== undefined);
  return failure(grpc.status[error.code] ?? "UNKNOWN", error.details,
    find((d) => anyUnpack(d, ErrorInfoSchema)), find((d) => anyUnpack(d, RetryInfoSchema)), find((d) => anyUnpack(d, BadRequestSchema)));
}
