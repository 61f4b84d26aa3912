// The same as example.ts on grpc-js: node clients/typescript/dist/example-grpcjs.js 127.0.0.1:50051
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { create } from "@bufbuild/protobuf";
import { credentials, type CallOptions, type ClientDuplexStream, type ServiceError } from "@grpc/grpc-js";
import { explain, facadeClient } from "./grpcjs.js";
import { bot, item, items, lucia, Place, sealed, text, unknown } from "./example-data.js";
import { Batch_State } from "./gen/jelou/facade/v1/batch_pb.js";
import { BatchService, StreamBatchRequestSchema, type StreamBatchRequest, type StreamBatchResponse } from "./gen/jelou/facade/v1/batch_service_pb.js";
import { MessageService, SendMessageRequestSchema, type SendMessageRequest, type SendMessageResponse } from "./gen/jelou/facade/v1/message_service_pb.js";
import { NotificationService, SendNotificationRequestSchema, type SendNotificationRequest, type SendNotificationResponse } from "./gen/jelou/facade/v1/notification_service_pb.js";
import { Send_State, SendOptions_Mode } from "./gen/jelou/facade/v1/send_pb.js";

type Stream = ClientDuplexStream<StreamBatchRequest, StreamBatchResponse>;

const clientOf = (service: typeof MessageService | typeof NotificationService | typeof BatchService) =>
  facadeClient(service, process.argv[2], credentials.createInsecure());
const [messages, notifications, batches] = [clientOf(MessageService), clientOf(NotificationService), clientOf(BatchService)];
const sendMessage: (request: SendMessageRequest, options?: CallOptions) => Promise<SendMessageResponse> = promisify(messages.sendMessage).bind(messages);
const sendNotification: (request: SendNotificationRequest) => Promise<SendNotificationResponse> = promisify(notifications.sendNotification).bind(notifications);

const message = (userId: string, body: string, more: { requestId?: string; mode?: SendOptions_Mode } = {}) =>
  create(SendMessageRequestSchema, { botId: bot, userId, message: text(body), ...more });

/** Gives the send an id of the caller's own, so that it can be repeated even after a crash. */
async function sendSafely() {
  const request = message(lucia, "Su pedido 8841 salió de bodega.", { requestId: "order-8841" });
  const { send } = await sendMessage(request);
  console.log(`message: ${Send_State[send!.state]}`);
  if ((await sendMessage(request)).send!.sendId === send!.sendId) console.log("the same request_id again: the same send");
}

async function notify() {
  const notification = { elementName: "order_ready", language: "es", destinations: [lucia], parameters: ["Lucía", "991"] };
  const { send } = await sendNotification(create(SendNotificationRequestSchema, { botId: bot, notification }));
  console.log(`notification: ${Send_State[send!.state]}, ${send!.notifications.length} recipient`);
}

/** Decides by the reason: the 24-hour window of this user is closed, so only a notification can reach him. */
async function readError() {
  try {
    await sendMessage(message(unknown, "¿Cómo le fue con su compra?"));
  } catch (error) {
    const failure = explain(error as ServiceError);
    if (failure.reason !== "SESSION_WINDOW_CLOSED") throw error;
    console.log(`refused: ${failure.code} ${failure.reason} by ${failure.domain}`);
  }
}

/** Has one second for a send behind twenty others. The server says at once that it is too little, and when to come back. */
async function sendPatiently() {
  for (let i = 0; i < 20; i++) await sendMessage(message(lucia, `Antes ${i}`, { mode: SendOptions_Mode.QUEUE }));
  const request = message(lucia, "Su turno es el siguiente.", { requestId: randomUUID() }); // one for all attempts
  for (let attempt = 1; ; attempt++) {
    try {
      const { send } = await sendMessage(request, { deadline: Date.now() + 1000 });
      console.log(`after the wait: ${Send_State[send!.state]}`);
      return;
    } catch (error) {
      const failure = explain(error as ServiceError);
      if (failure.retryDelayMs === undefined) throw error;
      if (attempt === 1) console.log(`too late: ${failure.code} ${failure.reason}, retry after a wait`);
      await sleep(failure.retryDelayMs);
    }
  }
}

/** Leaves once five items are stored and two have results, as a crash would. */
async function uploadHalf(): Promise<Place> {
  const stream: Stream = batches.streamBatch();
  stream.write(create(StreamBatchRequestSchema, { request: { case: "open", value: { batch: { case: "spec", value: { botId: bot, displayName: "Envíos gratis" } } } } }));
  for (let n = 1; n <= 5; n++) stream.write(item(n));
  const place = new Place();
  let stored = 0, results = 0;
  for await (const { event } of stream as AsyncIterable<StreamBatchResponse>) {
    if (event.case === "opened") place.batchId = event.value.batchId;
    if (event.case === "ack") stored = event.value.throughSequence;
    if (event.case === "result") results += place.take(event.value);
    if (stored >= 5 && results >= 2) break;
  }
  stream.on("error", () => {}); // CANCELLED, by ourselves
  stream.cancel();
  return place;
}

/** Uploads and reads results at the same time, loses the stream on the way, and goes on where it was. */
async function streamBatch() {
  const place = await uploadHalf();
  console.log("batch: left after item 5");
  const stream: Stream = batches.streamBatch();
  stream.write(create(StreamBatchRequestSchema, { request: { case: "open", value: { batch: { case: "batchId", value: place.batchId }, afterCursor: place.cursor } } }));
  for await (const { event } of stream as AsyncIterable<StreamBatchResponse>) {
    switch (event.case) {
      case "opened":
        console.log(`batch: reopened at item ${event.value.nextSequence}`);
        for (let n = event.value.nextSequence; n <= items; n++) stream.write(item(n));
        stream.write(sealed);
        stream.end();
        break;
      case "progress":
        console.error(`${event.value.batch!.counts!.sent} of ${event.value.batch!.counts!.accepted} sent`);
        break;
      case "result":
        place.take(event.value);
        break;
      case "end": {
        const { state, counts } = event.value.batch!;
        for (const failed of place.failed) console.log(failed);
        console.log(`batch: ${Batch_State[state]}, ${counts!.accepted} accepted, ${counts!.sent} sent, ${counts!.failed} failed`);
      }
    }
  }
}

await sendSafely();
await notify();
await readError();
await sendPatiently();
await streamBatch();
process.exit(); // the connections would stay open for a while
