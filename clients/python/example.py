"""Sends a message, a notification and a batch, and does what a program should when something goes wrong.

    go run ./cmd/jelou-facade serve --sandbox
    clients/python/.venv/bin/python clients/python/example.py 127.0.0.1:50051
"""

import pathlib
import queue
import sys
import time
import uuid

sys.path.insert(0, str(pathlib.Path(__file__).parent / "gen"))

import grpc
from jelou.facade.v1 import (batch_pb2, batch_service_pb2 as batches, batch_service_pb2_grpc, message_pb2,
                             message_service_pb2 as messages, message_service_pb2_grpc, notification_pb2,
                             notification_service_pb2 as notifications, notification_service_pb2_grpc, send_pb2)

import jelou_facade

BOT = "demo"
LUCIA = "593991234567"  # wrote to the bot today
UNKNOWN = "593990000001"  # never did
ITEMS = 8


def main(target):
    with jelou_facade.connect(target) as channel:
        sender = message_service_pb2_grpc.MessageServiceStub(channel)
        send_safely(sender)
        notify(notification_service_pb2_grpc.NotificationServiceStub(channel))
        read_error(sender)
        send_patiently(sender)
        stream_batch(batch_service_pb2_grpc.BatchServiceStub(channel))


def state(send):
    return send_pb2.Send.State.Name(send.state)


def text(body):
    return message_pb2.Message(text=message_pb2.TextContent(text=body))


def send_safely(sender):
    """Gives the send an id of the caller's own, so that it can be repeated even after a crash."""
    request = messages.SendMessageRequest(
        bot_id=BOT, user_id=LUCIA, message=text("Su pedido 8841 salió de bodega."), request_id="order-8841")
    first = sender.SendMessage(request).send
    print("message:", state(first))
    if sender.SendMessage(request).send.send_id == first.send_id:
        print("the same request_id again: the same send")


def notify(notifier):
    template = notification_pb2.TemplateMessage(
        element_name="order_ready", language="es", destinations=[LUCIA], parameters=["Lucía", "991"])
    send = notifier.SendNotification(notifications.SendNotificationRequest(bot_id=BOT, notification=template)).send
    print(f"notification: {state(send)}, {len(send.notifications)} recipient")


def read_error(sender):
    """Decides by the reason: the 24-hour window of this user is closed, so only a notification can reach him."""
    try:
        sender.SendMessage(messages.SendMessageRequest(bot_id=BOT, user_id=UNKNOWN, message=text("¿Cómo le fue con su compra?")))
    except grpc.RpcError as error:
        failure = jelou_facade.explain(error)
        if failure.reason != "SESSION_WINDOW_CLOSED":
            raise
        print(f"refused: {failure.code} {failure.reason} by {failure.domain}")


def send_patiently(sender):
    """Has one second for a send behind twenty others. The server says at once that it is too little, and when to come back."""
    for i in range(20):
        sender.SendMessage(messages.SendMessageRequest(
            bot_id=BOT, user_id=LUCIA, message=text(f"Antes {i}"), mode=send_pb2.SendOptions.QUEUE))
    request = messages.SendMessageRequest(
        bot_id=BOT, user_id=LUCIA, message=text("Su turno es el siguiente."), request_id=str(uuid.uuid4()))  # one for all attempts
    told = False
    while True:
        try:
            print("after the wait:", state(sender.SendMessage(request, timeout=1).send))
            return
        except grpc.RpcError as error:
            failure = jelou_facade.explain(error)
            if failure.retry_delay is None:
                raise
            if not told:
                print(f"too late: {failure.code} {failure.reason}, retry after a wait")
                told = True
            time.sleep(failure.retry_delay)


def item(n):
    """The n-th item from 1; the fourth is blank and costs itself only."""
    body = " " if n == 4 else f"Esta semana los envíos son gratis ({n})."
    return batches.StreamBatchRequest(item=batch_pb2.BatchItem(sequence=n, user_id=LUCIA, message=text(body)))


class Upload:
    """The requests of a stream: what is put in is sent, None ends it. Leaving it open is no fault."""

    def __init__(self):
        self._queue = queue.SimpleQueue()
        self.put = self._queue.put

    def __iter__(self):
        return iter(self._queue.get, None)


def stream_batch(service):
    """Uploads and reads results at the same time, loses the stream on the way, and goes on where it was."""
    place = upload_half(service)
    print("batch: left after item 5")
    upload = Upload()
    upload.put(batches.StreamBatchRequest(open={"batch_id": place.batch_id, "after_cursor": place.cursor}))
    for event in service.StreamBatch(upload):
        kind = event.WhichOneof("event")
        if kind == "opened":
            print("batch: reopened at item", event.opened.next_sequence)
            for n in range(event.opened.next_sequence, ITEMS + 1):
                upload.put(item(n))
            upload.put(batches.StreamBatchRequest(seal={"item_count": ITEMS}))
            upload.put(None)
        elif kind == "progress":
            counts = event.progress.batch.counts
            print(f"{counts.sent} of {counts.accepted} sent", file=sys.stderr)
        elif kind == "result":
            place.take(event.result)
        elif kind == "end":
            for failed in place.failed:
                print(failed)
            counts = event.end.batch.counts
            print(f"batch: {batch_pb2.Batch.State.Name(event.end.batch.state)}, {counts.accepted} accepted, "
                  f"{counts.sent} sent, {counts.failed} failed")


class Place:
    """All that is needed to go on after a cut: a program that may crash stores batch_id and cursor."""

    def __init__(self):
        self.batch_id, self.cursor, self.failed = "", "", []

    def take(self, result):
        self.cursor = result.cursor
        if result.send.state != send_pb2.Send.SENT:
            self.failed.append(f"item {result.send.sequence}: {state(result.send)} {result.send.error_reason}")


def upload_half(service):
    """Leaves once five items are stored and two have results, as a crash would."""
    place, upload = Place(), Upload()
    upload.put(batches.StreamBatchRequest(open={"spec": {"bot_id": BOT, "display_name": "Envíos gratis"}}))
    for n in range(1, 6):
        upload.put(item(n))
    stream, stored, results = service.StreamBatch(upload), 0, 0
    for event in stream:
        kind = event.WhichOneof("event")
        if kind == "opened":
            place.batch_id = event.opened.batch_id
        elif kind == "ack":
            stored = event.ack.through_sequence
        elif kind == "result":
            place.take(event.result)
            results += 1
        if stored >= 5 and results >= 2:
            break
    stream.cancel()
    upload.put(None)
    return place


if __name__ == "__main__":
    main(*sys.argv[1:])
