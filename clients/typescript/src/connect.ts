// The client on connect-node, with its retries and deadlines: Connect reads no service config by itself.
import { setTimeout as sleep } from "node:timers/promises";
import { create, type DescMessage, type DescMethod, type MessageInitShape } from "@bufbuild/protobuf";
import { Code, ConnectError, type StreamResponse, type Transport } from "@connectrpc/connect";
import { createGrpcTransport, type GrpcTransportOptions } from "@connectrpc/connect-node";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import { codeName, failure, identified, serviceConfig, type Failure } from "./sends.js";

interface MethodConfig {
  name: { service: string; method: string }[];
  timeout: string;
  retryPolicy?: { maxAttempts: number; initialBackoff: string; maxBackoff: string; backoffMultiplier: number };
}

const methodConfigs: MethodConfig[] = JSON.parse(serviceConfig).methodConfig;
const milliseconds = (duration: string) => parseFloat(duration) * 1000;

function configOf(method: DescMethod): MethodConfig | undefined {
  return methodConfigs.find((c) => c.name.some((n) => n.service === method.parent.typeName && n.method === method.name));
}

/** A transport for createClient: sets request_ids, repeats what is safe to repeat, and gives every unary call a deadline. */
export function facadeTransport(options: GrpcTransportOptions): Transport {
  const inner = createGrpcTransport(options);
  return {
    async unary(method, signal, timeoutMs, header, input, contextValues) {
      const config = configOf(method);
      const deadline = Date.now() + (timeoutMs ?? milliseconds(config?.timeout ?? "30s"));
      const message = identified(create(method.input, input));
      for (let attempt = 1; ; attempt++) {
        try {
          return await inner.unary(method, signal, deadline - Date.now(), header, message as typeof input, contextValues);
        } catch (reason) {
          const error = honest(reason, signal);
          const wait = backoff(config, attempt);
          if (error.code !== Code.Unavailable || wait === undefined || Date.now() + wait >= deadline) throw error;
          await sleep(wait, undefined, { signal });
        }
      }
    },
    async stream(method, signal, timeoutMs, header, input, contextValues) {
      try {
        const response = await inner.stream(method, signal, timeoutMs, header, identifiedAll(method.input, input), contextValues);
        return { ...response, message: honestly(response.message, signal) } as StreamResponse<typeof method.input, typeof method.output>;
      } catch (reason) {
        throw honest(reason, signal);
      }
    },
  };
}

/** How long to wait after an attempt, with jitter; undefined: it was the last. */
function backoff(config: MethodConfig | undefined, attempt: number): number | undefined {
  const policy = config?.retryPolicy;
  if (!policy || attempt >= policy.maxAttempts) return undefined;
  const longest = Math.min(milliseconds(policy.initialBackoff) * policy.backoffMultiplier ** (attempt - 1), milliseconds(policy.maxBackoff));
  return longest * (0.8 + 0.4 * Math.random());
}

/**
 * A broken connection is ABORTED, INTERNAL or CANCELLED (where nobody cancelled) for connect-node, UNAVAILABLE for every other gRPC client.
 * What the server said has details.
 */
function honest(reason: unknown, signal: AbortSignal | undefined): ConnectError {
  const error = ConnectError.from(reason);
  const failed = (error.code === Code.Aborted || error.code === Code.Internal) && error.cause !== undefined;
  const broken = error.details.length === 0 && (failed || (error.code === Code.Canceled && !signal?.aborted));
  return broken ? new ConnectError(error.rawMessage, Code.Unavailable, error.metadata, undefined, error.cause) : error;
}

async function* honestly<T>(messages: AsyncIterable<T>, signal: AbortSignal | undefined): AsyncIterable<T> {
  try {
    yield* messages;
  } catch (reason) {
    throw honest(reason, signal);
  }
}

async function* identifiedAll<I extends DescMessage>(schema: I, input: AsyncIterable<MessageInitShape<I>>): AsyncIterable<MessageInitShape<I>> {
  for await (const message of input) yield identified(create(schema, message)) as MessageInitShape<I>;
}

/** Reads the details of an error. */
export function explain(reason: unknown): Failure {
  const error = ConnectError.from(reason);
  return failure(codeName(Code[error.code]), error.rawMessage,
    error.findDetails(ErrorInfoSchema)[0], error.findDetails(RetryInfoSchema)[0], error.findDetails(BadRequestSchema)[0]);
}
