//! Sends a message, a notification and a batch, and does what a program should when something goes wrong.
//!
//!     go run ./cmd/jelou-facade serve --sandbox
//!     cargo run --manifest-path clients/rust/Cargo.toml --example example 127.0.0.1:50051

use std::{error::Error, time::Duration};

use jelou_facade_client::{
    Connection, Failure, connect,
    v1::{
        self, BatchItem, BatchResult, BatchSpec, ErrorReason, SendMessageRequest, SendNotificationRequest, StreamBatchRequest,
        TemplateMessage, TextContent, batch, batch_item,
        batch_service_client::BatchServiceClient,
        message,
        message_service_client::MessageServiceClient,
        notification_service_client::NotificationServiceClient,
        send,
        stream_batch_request::{Open, Request as Part, Seal, open},
        stream_batch_response::Event,
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, transport::Endpoint};
use uuid::Uuid;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const BOT: &str = "demo";
const LUCIA: &str = "593991234567"; // wrote to the bot today
const UNKNOWN: &str = "593990000001"; // never did

#[tokio::main]
async fn main() -> Result<()> {
    let target = std::env::args().nth(1).ok_or("usage: example HOST:PORT")?;
    let connection = connect(Endpoint::from_shared(format!("http://{target}"))?);
    let mut messages = MessageServiceClient::new(connection.clone());
    send_safely(&mut messages).await?;
    notify(NotificationServiceClient::new(connection.clone())).await?;
    read_error(&mut messages).await?;
    send_patiently(&mut messages).await?;
    stream_batch(BatchServiceClient::new(connection)).await
}

fn text(user: &str, text: &str) -> SendMessageRequest {
    SendMessageRequest { bot_id: BOT.into(), user_id: user.into(), message: Some(text_message(text)), ..Default::default() }
}

fn text_message(text: &str) -> v1::Message {
    let content = TextContent { text: text.into() };
    v1::Message { content: Some(message::Content::Text(content)) }
}

/// Gives the send an id of the caller's own, so that it can be repeated even after a crash.
async fn send_safely(messages: &mut MessageServiceClient<Connection>) -> Result<()> {
    let request = SendMessageRequest { request_id: "order-8841".into(), ..text(LUCIA, "Su pedido 8841 salió de bodega.") };
    let first = messages.send_message(request.clone()).await?.into_inner().send.unwrap_or_default();
    println!("message: {}", first.state().as_str_name());
    let again = messages.send_message(request).await?.into_inner().send.unwrap_or_default();
    if again.send_id == first.send_id {
        println!("the same request_id again: the same send");
    }
    Ok(())
}

async fn notify(mut notifications: NotificationServiceClient<Connection>) -> Result<()> {
    let notification = TemplateMessage {
        element_name: "order_ready".into(),
        language: "es".into(),
        destinations: vec![LUCIA.into()],
        parameters: vec!["Lucía".into(), "991".into()],
        ..Default::default()
    };
    let request = SendNotificationRequest { bot_id: BOT.into(), notification: Some(notification), ..Default::default() };
    let send = notifications.send_notification(request).await?.into_inner().send.unwrap_or_default();
    println!("notification: {}, {} recipient", send.state().as_str_name(), send.notifications.len());
    Ok(())
}

/// Decides by the reason: the 24-hour window of this user is closed, so only a notification can reach him.
async fn read_error(messages: &mut MessageServiceClient<Connection>) -> Result<()> {
    let Err(status) = messages.send_message(text(UNKNOWN, "¿Cómo le fue con su compra?")).await else {
        return Err("want a closed window, got an answer".into());
    };
    let failure = Failure::from(&status);
    if failure.reason != ErrorReason::SessionWindowClosed.as_str_name() {
        return Err(status.into());
    }
    println!("refused: {} {} by {}", failure.code, failure.reason, failure.domain);
    Ok(())
}

/// Has one second for a send behind twenty others. The server says at once that it is too little, and when to come back.
async fn send_patiently(messages: &mut MessageServiceClient<Connection>) -> Result<()> {
    for i in 0..20 {
        let mut before = text(LUCIA, &format!("Antes {i}"));
        before.set_mode(v1::send_options::Mode::Queue);
        messages.send_message(before).await?;
    }
    let message = SendMessageRequest {
        request_id: Uuid::new_v4().to_string(), // one for all attempts
        ..text(LUCIA, "Su turno es el siguiente.")
    };
    let mut told = false;
    loop {
        let mut request = Request::new(message.clone());
        request.set_timeout(Duration::from_secs(1));
        let status = match messages.send_message(request).await {
            Ok(answer) => {
                println!("after the wait: {}", answer.into_inner().send.unwrap_or_default().state().as_str_name());
                return Ok(());
            }
            Err(status) => status,
        };
        let failure = Failure::from(&status);
        let Some(delay) = failure.retry_delay else {
            return Err(status.into());
        };
        if !told {
            println!("too late: {} {}, retry after a wait", failure.code, failure.reason);
            told = true;
        }
        tokio::time::sleep(delay).await;
    }
}

const ITEMS: i32 = 8;

/// Makes the n-th item from 1; the fourth is blank and costs itself only.
fn item(n: i32) -> StreamBatchRequest {
    let body = if n == 4 { " ".into() } else { format!("Esta semana los envíos son gratis ({n}).") };
    part(Part::Item(BatchItem {
        sequence: n,
        user_id: LUCIA.into(),
        content: Some(batch_item::Content::Message(text_message(&body))),
        ..Default::default()
    }))
}

fn part(request: Part) -> StreamBatchRequest {
    StreamBatchRequest { request: Some(request) }
}

/// All that is needed to go on after a cut: a program that may crash stores batch and cursor.
#[derive(Default)]
struct Place {
    batch_id: String,
    cursor: String,
    failed: Vec<String>,
}

impl Place {
    fn result(&mut self, result: BatchResult) {
        self.cursor = result.cursor;
        let send = result.send.unwrap_or_default();
        if send.state() != send::State::Sent {
            self.failed.push(format!("item {}: {} {}", send.sequence, send.state().as_str_name(), send.error_reason));
        }
    }
}

/// Uploads and reads results at the same time, loses the stream on the way, and goes on where it was.
async fn stream_batch(mut batches: BatchServiceClient<Connection>) -> Result<()> {
    let mut place = upload_half(&mut batches).await?;
    println!("batch: left after item 5");
    let (upload, requests) = mpsc::channel(16);
    let batch = Some(open::Batch::BatchId(place.batch_id.clone()));
    upload.send(part(Part::Open(Open { batch, after_cursor: place.cursor.clone() }))).await?;
    let mut upload = Some(upload);
    let mut events = batches.stream_batch(ReceiverStream::new(requests)).await?.into_inner();
    while let Some(answer) = events.message().await? {
        match answer.event {
            Some(Event::Opened(opened)) => {
                println!("batch: reopened at item {}", opened.next_sequence);
                let upload = upload.take().ok_or("opened twice")?;
                tokio::spawn(async move {
                    for n in opened.next_sequence..=ITEMS {
                        upload.send(item(n)).await?;
                    }
                    upload.send(part(Part::Seal(Seal { item_count: ITEMS }))).await
                });
            }
            Some(Event::Progress(progress)) => {
                let counts = progress.batch.unwrap_or_default().counts.unwrap_or_default();
                eprintln!("{} of {} sent", counts.sent, counts.accepted);
            }
            Some(Event::Result(result)) => place.result(result),
            Some(Event::End(end)) => finish(&place, &end.batch.unwrap_or_default()),
            _ => {}
        }
    }
    Ok(())
}

fn finish(place: &Place, batch: &v1::Batch) {
    for failed in &place.failed {
        println!("{failed}");
    }
    let counts = batch.counts.unwrap_or_default();
    let state: batch::State = batch.state();
    println!("batch: {}, {} accepted, {} sent, {} failed", state.as_str_name(), counts.accepted, counts.sent, counts.failed);
}

/// Leaves once five items are stored and two have results, as a crash would.
async fn upload_half(batches: &mut BatchServiceClient<Connection>) -> Result<Place> {
    let (upload, requests) = mpsc::channel(16);
    let spec = BatchSpec { bot_id: BOT.into(), display_name: "Envíos gratis".into(), ..Default::default() };
    upload.send(part(Part::Open(Open { batch: Some(open::Batch::Spec(spec)), ..Default::default() }))).await?;
    for n in 1..=5 {
        upload.send(item(n)).await?;
    }
    let mut events = batches.stream_batch(ReceiverStream::new(requests)).await?.into_inner();
    let (mut place, mut stored, mut results) = (Place::default(), 0, 0);
    while stored < 5 || results < 2 {
        match events.message().await?.ok_or("the batch ended early")?.event {
            Some(Event::Opened(opened)) => place.batch_id = opened.batch_id,
            Some(Event::Ack(ack)) => stored = ack.through_sequence,
            Some(Event::Result(result)) => {
                place.result(result);
                results += 1;
            }
            _ => {}
        }
    }
    Ok(place)
}
