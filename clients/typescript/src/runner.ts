// Carries out the calls of clients/run: node dist/runner.js connect-node | grpc-js.
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { clone, createRegistry, fromJson, toJson, type DescMethod, type JsonValue, type Message } from "@bufbuild/protobuf";
import { reflect } from "@bufbuild/protobuf/reflect";
import type { Transport } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import * as grpc from "@grpc/grpc-js";
import * as connect from "./connect.js";
import * as grpcjs from "./grpcjs.js";
import type { Failure } from "./sends.js";
import { file_google_rpc_error_details } from "./gen/google/rpc/error_details_pb.js";
import { file_jelou_facade_v1_batch_service } from "./gen/jelou/facade/v1/batch_service_pb.js";
import { file_jelou_facade_v1_capacity_service } from "./gen/jelou/facade/v1/capacity_service_pb.js";
import { file_jelou_facade_v1_message_service } from "./gen/jelou/facade/v1/message_service_pb.js";
import { file_jelou_facade_v1_notification_service } from "./gen/jelou/facade/v1/notification_service_pb.js";
import { file_jelou_facade_v1_send_service } from "./gen/jelou/facade/v1/send_service_pb.js";

interface Tls { ca: string; cert?: string; key?: string }

interface Command {
  id: number;
  address: string;
  tls?: Tls;
  rpc: string;
  requests: JsonValue[];
  keep_open?: boolean;
  cancel_after?: Record<string, number>;
  timeout_ms?: number;
  metadata?: Record<string, string>;
  bare?: boolean;
  repeat?: number;
  concurrency?: number;
}

/** Calls of one client library. */
interface Caller {
  unary(command: Command, method: DescMethod, request: Message): Promise<Message>;
  stream(command: Command, method: DescMethod, requests: AsyncIterable<Message>, signal: AbortSignal): AsyncIterable<Message>;
  explain(error: any): Failure;
}

const registry = createRegistry(
  file_google_rpc_error_details, file_jelou_facade_v1_batch_service, file_jelou_facade_v1_capacity_service,
  file_jelou_facade_v1_message_service, file_jelou_facade_v1_notification_service, file_jelou_facade_v1_send_service,
);

/** One value for each key, made when it is first asked for. */
function memo<T>(make: (command: Command, service: DescMethod["parent"]) => T) {
  const made = new Map<string, T>();
  return (command: Command, method: DescMethod): T => {
    const key = JSON.stringify([command.address, command.tls, command.bare, method.parent.typeName]);
    if (!made.has(key)) made.set(key, make(command, method.parent));
    return made.get(key)!;
  };
}

const pem = (name?: string) => (name ? readFileSync(name) : undefined);

const transportOf = memo((command): Transport => {
  const { tls } = command;
  const make = command.bare ? createGrpcTransport : connect.facadeTransport;
  return make({
    baseUrl: `${tls ? "https" : "http"}://${command.address}`,
    nodeOptions: tls && { ca: pem(tls.ca), cert: pem(tls.cert), key: pem(tls.key) },
  });
});

const clientOf = memo((command, service): any => {
  const { tls } = command;
  const credentials = tls ? grpc.credentials.createSsl(pem(tls.ca), pem(tls.key) ?? null, pem(tls.cert) ?? null) : grpc.credentials.createInsecure();
  return grpcjs.facadeClient(service, command.address, credentials, command.bare ? {} : undefined);
});

function metadataOf(command: Command): grpc.Metadata {
  const metadata = new grpc.Metadata();
  for (const [name, value] of Object.entries(command.metadata ?? {})) metadata.set(name, value);
  return metadata;
}

const optionsOf = (command: Command): grpc.CallOptions => (command.timeout_ms ? { deadline: Date.now() + command.timeout_ms } : {});

const callers: Record<string, Caller> = {
  "connect-node": {
    async unary(command, method, request) {
      const response = await transportOf(command, method).unary(method as any, undefined, command.timeout_ms, command.metadata, request);
      return response.message as Message;
    },
    async *stream(command, method, requests, signal) {
      const response = await transportOf(command, method).stream(method as any, signal, command.timeout_ms, command.metadata, requests);
      yield* response.message as AsyncIterable<Message>;
    },
    explain: connect.explain,
  },
  "grpc-js": {
    unary(command, method, request) {
      const client = clientOf(command, method);
      return new Promise((resolve, reject) => {
        client[method.localName](request, metadataOf(command), optionsOf(command), (error: unknown, answer: Message) => (error ? reject(error) : resolve(answer)));
      });
    },
    async *stream(command, method, requests, signal) {
      const client = clientOf(command, method);
      if (method.methodKind === "bidi_streaming") {
        const call = client[method.localName](metadataOf(command), optionsOf(command));
        signal.addEventListener("abort", () => call.cancel());
        upload(call, requests);
        yield* call;
        return;
      }
      for await (const request of requests) {
        const call = client[method.localName](request, metadataOf(command), optionsOf(command));
        signal.addEventListener("abort", () => call.cancel());
        yield* call;
      }
    },
    explain: grpcjs.explain,
  },
};

async function upload(call: any, requests: AsyncIterable<Message>): Promise<void> {
  for await (const request of requests) call.write(request);
  call.end();
}

function methodOf(rpc: string): DescMethod {
  const [service, name] = rpc.split("/");
  const method = registry.getService(service)?.methods.find((m) => m.name === name);
  if (!method) throw new Error(`no RPC is called ${rpc}`);
  return method;
}

async function carryOut(caller: Caller, command: Command): Promise<void> {
  const reply = (what: object) => process.stdout.write(JSON.stringify({ id: command.id, ...what }) + "\n");
  try {
    const method = methodOf(command.rpc);
    const requests = command.requests.map((r) => fromJson(method.input, r, { registry }));
    const received = (m: Message) => reply({ message: toJson(method.output, m, { registry, useProtoFieldName: true }) });
    if (command.repeat) {
      reply({ seconds: await measure(caller, command, method, requests) });
      return;
    }
    if (method.methodKind === "unary") {
      received(await caller.unary(command, method, requests[0]));
    } else {
      await stream(caller, command, method, requests, received);
    }
    reply({ status: { code: "OK" } });
  } catch (error) {
    const { retryDelayMs, ...status } = caller.explain(error);
    reply({ status: { ...status, retry_delay_ms: retryDelayMs } });
  }
}

async function stream(caller: Caller, command: Command, method: DescMethod, requests: Message[], received: (m: Message) => void): Promise<void> {
  const left = new AbortController();
  const cancelled = new AbortController();
  async function* all() {
    yield* requests;
    if (command.keep_open) await new Promise((resolve) => left.signal.addEventListener("abort", resolve));
  }
  try {
    const seen: Record<string, number> = {};
    for await (const message of caller.stream(command, method, all(), cancelled.signal)) {
      received(message);
      const fields = reflect(method.output, message);
      for (const field of fields.fields) if (fields.isSet(field)) seen[field.name] = (seen[field.name] ?? 0) + 1;
      const wanted = Object.entries(command.cancel_after ?? {});
      if (wanted.length > 0 && wanted.every(([kind, n]) => (seen[kind] ?? 0) >= n)) cancelled.abort();
    }
  } finally {
    left.abort();
  }
}

async function measure(caller: Caller, command: Command, method: DescMethod, requests: Message[]): Promise<number> {
  const start = performance.now();
  await Promise.all(Array.from({ length: command.concurrency! }, async () => {
    for (let i = 0; i < command.repeat! / command.concurrency!; i++) await caller.unary(command, method, clone(method.input, requests[i % requests.length]));
  }));
  return (performance.now() - start) / 1000;
}

const caller = callers[process.argv[2]];
createInterface({ input: process.stdin }).on("line", (line) => void carryOut(caller, JSON.parse(line))).on("close", () => setTimeout(() => process.exit(), 100));
