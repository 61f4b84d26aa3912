// Sends a message, a notification and a batch, and does what a program should when something goes wrong; on connect-node.
//
//   go run ./cmd/jelou-facade serve --sandbox
//   node clients/typescript/dist/example.js 127.0.0.1:50051
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { create } from "@bufbuild/protobuf";
import { createClient, type Client } from "@connectrpc/connect";
import { explain, facadeTransport } from "./connect.js";
import { bot, item, items, lucia, Place, sealed, text, unknown, Upload } from "./example-data.js";
import { Batch_State } from "./gen/jelou/facade/v1/batch_pb.js";
import { BatchService, StreamBatchRequestSchema } from "./gen/jelou/facade/v1/batch_service_pb.js";
import { MessageService, SendMessageRequestSchema } from "./gen/jelou/facade/v1/message_service_pb.js";
import { NotificationService } from "./gen/jelou/facade/v1/notification_service_pb.js";
import { Send_State, SendOptions_Mode } from "./gen/jelou/facade/v1/send_pb.js";

const transport = facadeTransport({ baseUrl: `http://${process.argv[2]}` });

/** Gives the send an id of the caller's own, so that it can be repeated even after a crash. */
async function sendSafely(sender: Client<typeof MessageService>) {
  const request = { botId: bot, userId: lucia, message: text("Su pedido 8841 salió de bodega."), requestId: "order-8841" };
  const { send } = await sender.sendMessage(request);
  console.log(`message: ${Send_State[send!.state]}`);
  const again = await sender.sendMessage(request);
  if (again.send!.sendId === send!.sendId) console.log("the same request_id again: the same send");
}

async function notify(notifier: Client<typeof NotificationService>) {
  const notification = { elementName: "order_ready", language: "es", destinations: [lucia], parameters: ["Lucía", "991"] };
  const { send } = await notifier.sendNotification({ botId: bot, notification });
  console.log(`notification: ${Send_State[send!.state]}, ${send!.notifications.length} recipient`);
}

/** Decides by the reason: the 24-hour window of this user is closed, so only a notification can reach him. */
async function readError(sender: Client<typeof MessageService>) {
  try {
    await sender.sendMessage({ botId: bot, userId: unknown, message: text("¿Cómo le fue con su compra?") });
  } catch (error) {
    const failure = explain(error);
    if (failure.reason !== "SESSION_WINDOW_CLOSED") throw error;
    console.log(`refused: ${failure.code} ${failure.reason} by ${failure.domain}`);
  }
}

/** Has one second for a send behind twenty others. The server says at once that it is too little, and when to come back. */
async function sendPatiently(sender: Client<typeof MessageService>) {
  for (let i = 0; i < 20; i++) {
    await sender.sendMessage({ botId: bot, userId: lucia, message: text(`Antes ${i}`), mode: SendOptions_Mode.QUEUE });
  }
  const request = create(SendMessageRequestSchema, {
    botId: bot, userId: lucia, message: text("Su turno es el siguiente."), requestId: randomUUID(), // one for all attempts
  });
  for (let attempt = 1; ; attempt++) {
    try {
      const { send } = await sender.sendMessage(request, { timeoutMs: 1000 });
      console.log(`after the wait: ${Send_State[send!.state]}`);
      return;
    } catch (error) {
      const failure = explain(error);
      if (failure.retryDelayMs === undefined) throw error;
      if (attempt === 1) console.log(`too late: ${failure.code} ${failure.reason}, retry after a wait`);
      await sleep(failure.retryDelayMs);
    }
  }
}

/** Leaves once five items are stored and two have results, as a crash would. */
async function uploadHalf(batches: Client<typeof BatchService>): Promise<Place> {
  const leave = new AbortController();
  const upload = new Upload();
  upload.put(create(StreamBatchRequestSchema, { request: { case: "open", value: { batch: { case: "spec", value: { botId: bot, displayName: "Envíos gratis" } } } } }));
  for (let n = 1; n <= 5; n++) upload.put(item(n));
  const place = new Place();
  let stored = 0, results = 0;
  for await (const { event } of batches.streamBatch(upload, { signal: leave.signal })) {
    if (event.case === "opened") place.batchId = event.value.batchId;
    if (event.case === "ack") stored = event.value.throughSequence;
    if (event.case === "result") results += place.take(event.value);
    if (stored >= 5 && results >= 2) break;
  }
  upload.end();
  leave.abort();
  return place;
}

/** Uploads and reads results at the same time, loses the stream on the way, and goes on where it was. */
async function streamBatch(batches: Client<typeof BatchService>) {
  const place = await uploadHalf(batches);
  console.log("batch: left after item 5");
  const upload = new Upload();
  upload.put(create(StreamBatchRequestSchema, { request: { case: "open", value: { batch: { case: "batchId", value: place.batchId }, afterCursor: place.cursor } } }));
  for await (const { event } of batches.streamBatch(upload)) {
    switch (event.case) {
      case "opened":
        console.log(`batch: reopened at item ${event.value.nextSequence}`);
        for (let n = event.value.nextSequence; n <= items; n++) upload.put(item(n));
        upload.put(sealed);
        upload.end();
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

const sender = createClient(MessageService, transport);
await sendSafely(sender);
await notify(createClient(NotificationService, transport));
await readError(sender);
await sendPatiently(sender);
await streamBatch(createClient(BatchService, transport));
process.exit(); // the connection would stay open for a while
