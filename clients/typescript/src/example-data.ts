// What both examples send.
import { create } from "@bufbuild/protobuf";
import type { BatchResult } from "./gen/jelou/facade/v1/batch_service_pb.js";
import { StreamBatchRequestSchema, type StreamBatchRequest } from "./gen/jelou/facade/v1/batch_service_pb.js";
import { MessageSchema, type Message } from "./gen/jelou/facade/v1/message_pb.js";
import { Send_State } from "./gen/jelou/facade/v1/send_pb.js";

export const bot = "demo";
export const lucia = "593991234567"; // wrote to the bot today
export const unknown = "593990000001"; // never did
export const items = 8;

export function text(body: string): Message {
  return create(MessageSchema, { content: { case: "text", value: { text: body } } });
}

/** The n-th item from 1; the fourth is blank and costs itself only. */
export function item(n: number): StreamBatchRequest {
  const body = n === 4 ? " " : `Esta semana los envíos son gratis (${n}).`;
  return create(StreamBatchRequestSchema, { request: { case: "item", value: { sequence: n, userId: lucia, content: { case: "message", value: text(body) } } } });
}

export const sealed = create(StreamBatchRequestSchema, { request: { case: "seal", value: { itemCount: items } } });

/** All that is needed to go on after a cut: a program that may crash stores batchId and cursor. */
export class Place {
  batchId = "";
  cursor = "";
  failed: string[] = [];

  /** Takes one result. */
  take(result: BatchResult): 1 {
    const send = result.send!;
    this.cursor = result.cursor;
    if (send.state !== Send_State.SENT) this.failed.push(`item ${send.sequence}: ${Send_State[send.state]} ${send.errorReason}`);
    return 1;
  }
}

/** The requests of a stream, while they are made. */
export class Upload implements AsyncIterable<StreamBatchRequest> {
  #requests: StreamBatchRequest[] = [];
  #ended = false;
  #wake = () => {};

  put(request: StreamBatchRequest) {
    this.#requests.push(request);
    this.#wake();
  }

  end() {
    this.#ended = true;
    this.#wake();
  }

  async *[Symbol.asyncIterator]() {
    for (;;) {
      while (this.#requests.length > 0) yield this.#requests.shift()!;
      if (this.#ended) return;
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }
}
