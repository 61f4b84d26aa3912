use std::{
    error::Error,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};
use tonic::{Code, Status, TimeoutExpired, body::Body, transport::Channel};
use tower_service::Service;

use crate::policy::{self, Policy, Retry};

const TIMEOUT: &str = "grpc-timeout";

/// A channel with the published retries and deadlines. Clones share it.
#[derive(Clone)]
pub struct Connection(Channel);

impl Connection {
    pub(crate) fn new(channel: Channel) -> Self {
        Self(channel)
    }
}

impl Service<Request<Body>> for Connection {
    type Response = Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(())) // each attempt waits for the channel
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let channel = self.0.clone();
        Box::pin(async move {
            let Policy { timeout, retry_policy } = policy::of(request.uri().path());
            let deadline = given(request.headers()).or(timeout).and_then(|t| Instant::now().checked_add(t));
            let answer = match retry_policy {
                Some(retry) => repeat(channel, request, &retry, deadline).await,
                None => attempt(channel, request, deadline).await,
            };
            answer.map(|a| a.map(|body| Body::new(Ending { body, deadline: deadline.map(|d| Box::pin(sleep_until(d))) })))
        })
    }
}

/// Makes a call until its answer is final. As in every gRPC client, what has begun to answer is not repeated.
async fn repeat(channel: Channel, request: Request<Body>, retry: &Retry, deadline: Option<Instant>) -> Result<Response<Body>, Status> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let mut attempts = 0;
    loop {
        let request = Request::from_parts(head.clone(), Body::new(Full::new(body.clone())));
        let answer = attempt(channel.clone(), request, deadline).await;
        attempts += 1;
        let code = match &answer {
            Ok(answer) => Status::from_header_map(answer.headers()).map_or(Code::Ok, |s| s.code()),
            Err(status) => status.code(),
        };
        let next = Instant::now() + retry.backoff(attempts);
        if attempts >= retry.max_attempts || !retry.repeats(code) || deadline.is_some_and(|d| d <= next) {
            return answer;
        }
        sleep_until(next).await;
    }
}

async fn attempt(mut channel: Channel, mut request: Request<Body>, deadline: Option<Instant>) -> Result<Response<Body>, Status> {
    let Some(deadline) = deadline else {
        return exchange(&mut channel, request).await;
    };
    let left = deadline.saturating_duration_since(Instant::now());
    request.headers_mut().insert(TIMEOUT, written(left));
    timeout_at(deadline, exchange(&mut channel, request)).await.unwrap_or_else(|_| Err(late()))
}

async fn exchange(channel: &mut Channel, request: Request<Body>) -> Result<Response<Body>, Status> {
    std::future::poll_fn(|cx| channel.poll_ready(cx)).await.map_err(broken)?;
    channel.call(request).await.map_err(broken)
}

/// A body that ends at the deadline, and whose broken connection is UNAVAILABLE as with all other gRPC clients.
struct Ending {
    body: Body,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl http_body::Body for Ending {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame.map(|f| f.map_err(broken)));
        }
        match self.deadline.as_mut().map(|d| d.as_mut().poll(cx)) {
            Some(Poll::Ready(())) => Poll::Ready(Some(Err(late()))),
            _ => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

fn late() -> Status {
    Status::deadline_exceeded("the deadline has passed")
}

/// What the transport's errors mean: tonic calls a broken connection UNKNOWN, and its own time-out CANCELLED.
fn broken(err: impl Into<Box<dyn Error + Send + Sync>>) -> Status {
    let err = err.into();
    let mut cause: Option<&(dyn Error + 'static)> = Some(err.as_ref());
    let mut text = Vec::new();
    while let Some(e) = cause {
        if e.is::<TimeoutExpired>() {
            return late();
        }
        text.push(e.to_string());
        cause = e.source();
    }
    Status::unavailable(text.join(": "))
}

/// Reads the deadline that `Request::set_timeout` wrote.
fn given(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(TIMEOUT)?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number = number.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(3600 * number)),
        "M" => Some(Duration::from_secs(60 * number)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// Writes a deadline in at most the eight digits that gRPC allows.
fn written(left: Duration) -> HeaderValue {
    let text = match left.as_millis() {
        ms @ ..=99_999_999 => format!("{ms}m"),
        ms => format!("{}S", (ms / 1000).min(99_999_999)),
    };
    HeaderValue::try_from(text).expect("digits and a letter")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_read_as_they_are_written() {
        for (duration, text) in [
            (Duration::from_millis(1500), "1500m"),
            (Duration::from_secs(99_999), "99999000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::MAX, "99999999S"),
        ] {
            assert_eq!(written(duration), text);
            let headers = HeaderMap::from_iter([(TIMEOUT.parse().unwrap(), written(duration))]);
            assert_eq!(given(&headers), Some(duration.min(Duration::from_secs(99_999_999))));
        }
    }
}
