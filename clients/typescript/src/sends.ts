// What both clients share: the request_id of every send, the published service config, and the details of errors.
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { isMessage, type Message } from "@bufbuild/protobuf";
import { durationMs } from "@bufbuild/protobuf/wkt";
import { CreateBatchRequestSchema, ReplayBatchRequestSchema, StreamBatchRequestSchema } from "./gen/jelou/facade/v1/batch_service_pb.js";
import { SendMessageRequestSchema } from "./gen/jelou/facade/v1/message_service_pb.js";
import { SendNotificationRequestSchema } from "./gen/jelou/facade/v1/notification_service_pb.js";
import type { BadRequest, ErrorInfo, RetryInfo } from "./gen/google/rpc/error_details_pb.js";

/** The published retries and deadlines, as gRPC's service config. */
export const serviceConfig: string = readFileSync(new URL("../../service_config.json", import.meta.url), "utf8");

/** Gives a send that has none a request_id of its own, so that it is safe to repeat. Dry runs take none. */
export function identified<M extends Message>(request: M): M {
  if (isMessage(request, SendMessageRequestSchema) || isMessage(request, SendNotificationRequestSchema)) {
    if (!request.validateOnly) request.requestId ||= randomUUID();
  } else if (isMessage(request, ReplayBatchRequestSchema)) {
    request.requestId ||= randomUUID();
  } else if (isMessage(request, CreateBatchRequestSchema)) {
    if (request.spec && !request.validateOnly) request.spec.requestId ||= randomUUID();
  } else if (isMessage(request, StreamBatchRequestSchema) && request.request.case === "open") {
    const { batch } = request.request.value;
    if (batch.case === "spec") batch.value.requestId ||= randomUUID();
  }
  return request;
}

/** What an error of the API says beside its gRPC code. An error of another origin has an empty reason. */
export interface Failure {
  code: string;
  message: string;
  reason: string;
  domain: string;
  metadata: Record<string, string>;
  fields: string[];
  /** Milliseconds to wait before the call is repeated; undefined: a retry does not help. */
  retryDelayMs?: number;
}

export function failure(code: string, message: string, info?: ErrorInfo, retry?: RetryInfo, request?: BadRequest): Failure {
  return {
    code, message, reason: info?.reason ?? "", domain: info?.domain ?? "", metadata: info?.metadata ?? {},
    fields: request?.fieldViolations.map((v) => v.field) ?? [],
    retryDelayMs: retry?.retryDelay && durationMs(retry.retryDelay),
  };
}

/** NOT_FOUND for NotFound. */
export const codeName = (name: string): string => name.replace(/(?<=[a-z])(?=[A-Z])/g, "_").toUpperCase().replace("CANCELED", "CANCELLED");
