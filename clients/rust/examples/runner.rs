//! Carries out the calls of clients/run with the Rust client: one JSON object a line, as clients/exchange has it.

use std::{
    collections::HashMap,
    error::Error,
    fs, io,
    sync::{Arc, LazyLock, Mutex},
    time::{Duration, Instant},
};

use jelou_facade_client::{Codec, Connection, FILE_DESCRIPTOR_SET, Failure, connect, v1};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    sync::mpsc,
    task::JoinSet,
};
use tokio_stream::{Stream, StreamExt};
use tonic::{
    Request, Status,
    body::Body,
    client::{Grpc, GrpcService},
    codec::Codec as Encoding,
    metadata::{AsciiMetadataKey, AsciiMetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tonic_prost::ProstCodec;

static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("the build wrote the descriptors"));

#[derive(Default, Deserialize)]
#[serde(default)]
struct Command {
    id: u64,
    address: String,
    tls: Option<Tls>,
    rpc: String,
    requests: Vec<Box<RawValue>>,
    keep_open: bool,
    cancel_after: HashMap<String, usize>,
    timeout_ms: u64,
    metadata: HashMap<String, String>,
    bare: bool,
    repeat: usize,
    concurrency: usize,
}

#[derive(Deserialize, Serialize)]
struct Tls {
    ca: String,
    #[serde(default)]
    cert: String,
    #[serde(default)]
    key: String,
}

#[derive(Default, Serialize)]
struct Reply {
    id: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Ended>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
}

#[derive(Serialize)]
struct Ended {
    code: &'static str,
    message: String,
    reason: String,
    domain: String,
    metadata: HashMap<String, String>,
    fields: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_delay_ms: Option<u128>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let runner = Arc::new(Runner::default());
    let (replies, mut out) = mpsc::unbounded_channel::<Reply>();
    let writer = tokio::spawn(async move {
        let mut stdout = tokio::io::stdout();
        while let Some(reply) = out.recv().await {
            let mut line = serde_json::to_vec(&reply)?;
            line.push(b'\n');
            stdout.write_all(&line).await?;
            stdout.flush().await?;
        }
        io::Result::Ok(())
    });
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut running = JoinSet::new();
    while let Some(line) = lines.next_line().await? {
        let command: Command = serde_json::from_str(&line)?;
        let (runner, replies) = (runner.clone(), replies.clone());
        running.spawn(async move { runner.carry_out(command, replies).await });
    }
    running.join_all().await;
    drop(replies);
    writer.await??;
    Ok(())
}

#[derive(Default)]
struct Runner {
    channels: Mutex<HashMap<String, (Channel, Connection)>>,
}

/// Where a command's messages go.
#[derive(Clone)]
struct Output {
    id: u64,
    replies: mpsc::UnboundedSender<Reply>,
}

impl Output {
    fn send(&self, reply: Reply) {
        // Fails only when the orchestrator has left.
        let _ = self.replies.send(Reply { id: self.id, ..reply });
    }
}

impl Runner {
    async fn carry_out(&self, command: Command, replies: mpsc::UnboundedSender<Reply>) {
        let output = Output { id: command.id, replies };
        let result = match self.channels(&command) {
            Ok((channel, _)) if command.bare => call::<_, Bare>(channel, &command, &output).await,
            Ok((_, connection)) => call::<_, Published>(connection, &command, &output).await,
            Err(err) => Err(Status::internal(err.to_string())),
        };
        match result {
            Ok(Some(took)) => output.send(Reply { seconds: Some(took.as_secs_f64()), ..Reply::default() }),
            Ok(None) => output.send(Reply { status: Some(ended(&Status::ok(""))), ..Reply::default() }),
            Err(status) => output.send(Reply { status: Some(ended(&status)), ..Reply::default() }),
        }
    }

    /// Commands with the same address and security share a connection.
    fn channels(&self, command: &Command) -> Result<(Channel, Connection), Box<dyn Error + Send + Sync>> {
        let key = serde_json::to_string(&(&command.address, &command.tls))?;
        let mut channels = self.channels.lock().expect("nobody panics with it");
        if let Some(found) = channels.get(&key) {
            return Ok(found.clone());
        }
        let endpoint = endpoint(command)?;
        let made = (endpoint.connect_lazy(), connect(endpoint));
        channels.insert(key, made.clone());
        Ok(made)
    }
}

fn endpoint(command: &Command) -> Result<Endpoint, Box<dyn Error + Send + Sync>> {
    let Some(tls) = &command.tls else {
        return Ok(Endpoint::from_shared(format!("http://{}", command.address))?);
    };
    let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(fs::read(&tls.ca)?));
    if !tls.cert.is_empty() {
        config = config.identity(Identity::from_pem(fs::read(&tls.cert)?, fs::read(&tls.key)?));
    }
    Ok(Endpoint::from_shared(format!("https://{}", command.address))?.tls_config(config)?)
}

/// How messages are encoded: as the client does, or without what it does by itself.
trait Codecs {
    fn codec<T: Message + 'static, U: Message + Default + 'static>() -> impl Encoding<Encode = T, Decode = U> + Send + 'static;
}

struct Published;

impl Codecs for Published {
    fn codec<T: Message + 'static, U: Message + Default + 'static>() -> impl Encoding<Encode = T, Decode = U> + Send + 'static {
        Codec::default()
    }
}

struct Bare;

impl Codecs for Bare {
    fn codec<T: Message + 'static, U: Message + Default + 'static>() -> impl Encoding<Encode = T, Decode = U> + Send + 'static {
        ProstCodec::default()
    }
}

/// Makes a call of any kind. Its messages go to the output; what is returned is how long a repeated one took.
async fn call<S, C>(service: S, command: &Command, output: &Output) -> Result<Option<Duration>, Status>
where
    S: GrpcService<Body, ResponseBody = Body> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    C: Codecs,
{
    macro_rules! rpcs {
        ($($service:literal: $($kind:ident $method:literal $request:ident $answer:ident),+;)+) => {
            match command.rpc.as_str() {
                $($(concat!("jelou.facade.v1.", $service, "/", $method) =>
                    $kind::<S, C, v1::$request, v1::$answer>(service, command, output).await,)+)+
                other => Err(Status::unimplemented(format!("the runner has no {other}"))),
            }
        };
    }
    rpcs! {
        "MessageService": unary "SendMessage" SendMessageRequest SendMessageResponse;
        "NotificationService":
            unary "SendNotification" SendNotificationRequest SendNotificationResponse,
            unary "GetNotification" GetNotificationRequest GetNotificationResponse,
            unary "ListNotifications" ListNotificationsRequest ListNotificationsResponse;
        "SendService":
            unary "GetSend" GetSendRequest GetSendResponse,
            unary "ListSends" ListSendsRequest ListSendsResponse,
            unary "CancelSend" CancelSendRequest CancelSendResponse,
            unary "ResolveSend" ResolveSendRequest ResolveSendResponse;
        "BatchService":
            streaming "StreamBatch" StreamBatchRequest StreamBatchResponse,
            unary "CreateBatch" CreateBatchRequest CreateBatchResponse,
            unary "GetBatch" GetBatchRequest GetBatchResponse,
            unary "ListBatches" ListBatchesRequest ListBatchesResponse,
            streaming "WatchBatch" WatchBatchRequest WatchBatchResponse,
            unary "CancelBatch" CancelBatchRequest CancelBatchResponse,
            unary "PauseBatch" PauseBatchRequest PauseBatchResponse,
            unary "ResumeBatch" ResumeBatchRequest ResumeBatchResponse,
            unary "ReplayBatch" ReplayBatchRequest ReplayBatchResponse;
        "CapacityService":
            unary "GetCapacity" GetCapacityRequest GetCapacityResponse,
            streaming "WatchCapacity" WatchCapacityRequest WatchCapacityResponse;
    }
}

/// Makes a unary call, or repeats it.
async fn unary<S, C, T, U>(service: S, command: &Command, output: &Output) -> Result<Option<Duration>, Status>
where
    S: GrpcService<Body, ResponseBody = Body> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    C: Codecs,
    T: Message + Default + Clone + 'static,
    U: Message + Default + 'static,
{
    let messages = parse::<T>(command)?;
    if command.repeat == 0 {
        let message = messages.into_iter().next().ok_or_else(|| Status::internal("no request"))?;
        let answer = once::<S, C, T, U>(service, request(command, message)?, &command.rpc).await?;
        output.send(Reply { message: Some(written(command, &answer)?), ..Reply::default() });
        return Ok(None);
    }
    let start = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..command.concurrency {
        let (service, messages, rpc) = (service.clone(), messages.clone(), command.rpc.clone());
        let calls = command.repeat / command.concurrency;
        running.spawn(async move {
            for message in messages.iter().cycle().take(calls) {
                once::<S, C, T, U>(service.clone(), Request::new(message.clone()), &rpc).await?;
            }
            Ok(())
        });
    }
    running.join_all().await.into_iter().collect::<Result<(), Status>>()?;
    Ok(Some(start.elapsed()))
}

async fn once<S, C, T, U>(service: S, request: Request<T>, rpc: &str) -> Result<U, Status>
where
    S: GrpcService<Body, ResponseBody = Body>,
    C: Codecs,
    T: Message + 'static,
    U: Message + Default + 'static,
{
    let mut client = ready(service).await?;
    Ok(client.unary(request, path(rpc)?, C::codec()).await?.into_inner())
}

/// Makes a call that is answered by a stream.
async fn streaming<S, C, T, U>(service: S, command: &Command, output: &Output) -> Result<Option<Duration>, Status>
where
    S: GrpcService<Body, ResponseBody = Body>,
    C: Codecs,
    T: Message + Default + 'static,
    U: Message + Default + 'static,
{
    let messages = tokio_stream::iter(parse::<T>(command)?);
    let upload: Box<dyn Stream<Item = T> + Send + Unpin> =
        if command.keep_open { Box::new(messages.chain(tokio_stream::pending())) } else { Box::new(messages) };
    let mut client = ready(service).await?;
    let mut answers = client.streaming(request(command, upload)?, path(&command.rpc)?, C::codec::<T, U>()).await?.into_inner();
    let mut seen = HashMap::<String, usize>::new();
    while let Some(answer) = answers.message().await? {
        let value = written(command, &answer)?;
        for kind in value.as_object().into_iter().flat_map(|o| o.keys()) {
            *seen.entry(kind.clone()).or_default() += 1;
        }
        output.send(Reply { message: Some(value), ..Reply::default() });
        let wanted = &command.cancel_after;
        if !wanted.is_empty() && wanted.iter().all(|(kind, n)| seen.get(kind) >= Some(n)) {
            return Err(Status::cancelled("cancelled by the caller"));
        }
    }
    Ok(None)
}

async fn ready<S: GrpcService<Body>>(service: S) -> Result<Grpc<S>, Status> {
    let mut client = Grpc::new(service);
    client.ready().await.map_err(|err| Status::from_error(err.into()))?;
    Ok(client)
}

fn path(rpc: &str) -> Result<http::uri::PathAndQuery, Status> {
    format!("/{rpc}").parse().map_err(|err| Status::internal(format!("{rpc}: {err}")))
}

fn request<M>(command: &Command, message: M) -> Result<Request<M>, Status> {
    let mut request = Request::new(message);
    for (name, value) in &command.metadata {
        let pair = name.parse::<AsciiMetadataKey>().ok().zip(value.parse::<AsciiMetadataValue>().ok());
        let (name, value) = pair.ok_or_else(|| Status::internal(format!("{name} is no metadata")))?;
        request.metadata_mut().insert(name, value);
    }
    if command.timeout_ms > 0 {
        request.set_timeout(Duration::from_millis(command.timeout_ms));
    }
    Ok(request)
}

fn parse<T: Message + Default>(command: &Command) -> Result<Vec<T>, Status> {
    let method = method(command)?;
    let mut messages = Vec::new();
    for text in &command.requests {
        let mut json = serde_json::Deserializer::from_str(text.get());
        let message =
            DynamicMessage::deserialize(method.input(), &mut json).and_then(|m| m.transcode_to().map_err(serde::de::Error::custom));
        messages.push(message.map_err(|err| Status::internal(format!("request: {err}")))?);
    }
    Ok(messages)
}

/// Writes a message as proto JSON with snake_case names.
fn written<U: Message>(command: &Command, message: &U) -> Result<Value, Status> {
    let mut dynamic = DynamicMessage::new(method(command)?.output());
    let options = SerializeOptions::new().use_proto_field_name(true);
    dynamic
        .transcode_from(message)
        .map_err(|err| err.to_string())
        .and_then(|()| dynamic.serialize_with_options(serde_json::value::Serializer, &options).map_err(|err| err.to_string()))
        .map_err(|err| Status::internal(format!("answer: {err}")))
}

fn method(command: &Command) -> Result<prost_reflect::MethodDescriptor, Status> {
    let name = command.rpc.split_once('/');
    name.and_then(|(service, method)| POOL.get_service_by_name(service)?.methods().find(|m| m.name() == method))
        .ok_or_else(|| Status::internal(format!("no RPC is called {}", command.rpc)))
}

fn ended(status: &Status) -> Ended {
    let failure = Failure::from(status);
    Ended {
        code: failure.code,
        message: status.message().to_owned(),
        reason: failure.reason,
        domain: failure.domain,
        metadata: failure.metadata,
        fields: failure.fields.into_iter().map(|f| f.field).collect(),
        retry_delay_ms: failure.retry_delay.map(|d| d.as_millis()),
    }
}
